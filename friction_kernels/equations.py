"""The papers' equations in plain torch, one commented line each: reference backend and oracle.

Each function advances one tensor by one step, in place. Arithmetic runs in float32, or in float64
for a float64 parameter; moments are kept in that type, everything else in its own.
Sources: friction Adam arXiv 2408.11839, AdamP arXiv 2006.08217, RSGDM arXiv 2409.15314.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

# S where consecutive gradients are orthogonal: the value "without friction".
NEUTRAL_FRICTION = {"sigmoid": 0.5, "tanh": 1.0}


def _arithmetic(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def _gradient(param: Tensor, grad: Tensor, *, maximize: bool, coupled_decay: float) -> Tensor:
    g = -grad if maximize else grad  # g_t, flipped where the objective is maximized
    return g + coupled_decay * param if coupled_decay else g  # g_t + lambda theta_{t-1}


def friction_direction(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    prev_grad: Tensor,
    step: float,
    *,
    betas: tuple[float, float],
    beta3: float,
    eps: float,
    coupled_decay: float,
    maximize: bool,
    friction: str,
    friction_input: str,
    nesterov: bool = False,
) -> tuple[Tensor, Tensor]:
    """Advance the states; return (S_t m^_t / (sqrt(v^_t) + eps), S_t)."""
    beta1, beta2 = betas
    p, g = param.to(_arithmetic(param)), grad.to(_arithmetic(param))
    g = _gradient(p, g, maximize=maximize, coupled_decay=coupled_decay)
    exp_avg.mul_(beta1).add_(g, alpha=1 - beta1)  # m_t = b1 m_{t-1} + (1 - b1) g_t
    exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # v_t = b2 v_{t-1} + (1 - b2) g_t^2
    m = beta1 * exp_avg + (1 - beta1) * g if nesterov else exp_avg
    m_hat = m / (1 - beta1**step)  # m^_t = m_t / (1 - b1^t)
    v_hat = exp_avg_sq / (1 - beta2**step)  # v^_t = v_t / (1 - b2^t)
    x = prev_grad * g  # x = g_{t-1} g_t
    if friction_input == "normalized":
        x = x / (v_hat + eps)  # x = g_{t-1} g_t / (v^_t + eps), ours
    if friction == "sigmoid":  # noqa: SIM108 - one equation a line
        s = torch.sigmoid(beta3 * x)  # S_t = sigma(b3 x)
    else:
        s = torch.tanh(beta3 * x) + 1  # S_t = tanh(b3 x) + 1
    prev_grad.copy_(g)
    return s * m_hat / (v_hat.sqrt() + eps), s


def friction_adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    prev_grad: Tensor,
    step: float,
    *,
    lr: float,
    weight_decay: float,
    decoupled: bool,
    **direction_options: Any,
) -> Tensor:
    """SigSignGrad, TanhSignGrad and their AdamW forms. Returns S_t."""
    u, s = friction_direction(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        prev_grad,
        step,
        coupled_decay=0.0 if decoupled else weight_decay,
        **direction_options,
    )
    p = param.to(u.dtype)
    if decoupled:
        p = p * (1 - lr * weight_decay)  # theta <- theta (1 - eta lambda)
    param.copy_(p - lr * u)  # theta_t = theta_{t-1} - eta S_t m^_t / (sqrt(v^_t) + eps)
    return s


def project(
    param: Tensor, grad: Tensor, u: Tensor, *, delta: float, eps: float
) -> tuple[Tensor, bool]:
    """AdamP's projection of u: by rows, else as a whole, else not. Returns (u, projected)."""
    if param.numel() == 0:
        return u, False
    for rows in (param.shape[0], 1):
        p, g = param.reshape(rows, -1), grad.reshape(rows, -1)
        cosine = cosine_similarity(p, g, dim=1, eps=eps).abs()
        if cosine.max() < delta / p.shape[1] ** 0.5:  # |cos(theta_row, g_row)| < delta / sqrt(len)
            p_hat = p / (p.norm(dim=1, keepdim=True) + eps)  # theta_row / (|theta_row| + eps)
            rows_of_u = u.reshape(rows, -1)
            along = (p_hat * rows_of_u).sum(dim=1, keepdim=True)  # the component along theta_row
            return (rows_of_u - along * p_hat).reshape(u.shape), True
    return u, False


def friction_adamp(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    prev_grad: Tensor,
    step: float,
    *,
    lr: float,
    weight_decay: float,
    eps: float,
    delta: float,
    wd_ratio: float,
    is_matrix: bool,
    **direction_options: Any,
) -> Tensor:
    """SigSignAdamP and TanhSignAdamP; `is_matrix`: more than one dimension. Returns S_t."""
    u, s = friction_direction(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        prev_grad,
        step,
        eps=eps,
        coupled_decay=0.0,
        **direction_options,
    )
    p, projected = param.to(u.dtype), False
    if is_matrix:
        u, projected = project(p, grad.to(u.dtype), u, delta=delta, eps=eps)
    decay = weight_decay * wd_ratio if projected else weight_decay
    p = p * (1 - lr * decay)  # theta <- theta (1 - eta lambda), lambda scaled where projected
    param.copy_(p - lr * u)  # theta_t = theta_{t-1} - eta u_t
    return s


def rsgdm(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    difference_buffer: Tensor,
    prev_grad: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    decoupled: bool,
    maximize: bool,
) -> None:
    """RSGDM, literally: with the differential estimate z and the previous gradient."""
    p, g = param.to(_arithmetic(param)), grad.to(_arithmetic(param))
    g = _gradient(p, g, maximize=maximize, coupled_decay=0.0 if decoupled else weight_decay)
    momentum_buffer.mul_(momentum).add_(g, alpha=1 - momentum)  # m_t = b m_{t-1} + (1 - b) g_t
    difference = g - prev_grad  # g_t - g_{t-1}
    # z_t = b z_{t-1} + (1 - b) (g_t - g_{t-1})
    difference_buffer.mul_(momentum).add_(difference, alpha=1 - momentum)
    prev_grad.copy_(g)
    if decoupled:
        p = p * (1 - lr * weight_decay)  # theta <- theta (1 - eta lambda)
    # theta_t = theta_{t-1} - eta (m_t + b z_t)
    param.copy_(p - lr * (momentum_buffer + momentum * difference_buffer))
