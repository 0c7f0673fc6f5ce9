"""The papers' equations in plain torch, one commented line each: reference backend and test oracle.

Each function advances one tensor by one step, in place. Arithmetic and moments use float32, or float64
for a float64 parameter; all other tensors keep their own dtype.
Sources: Adam arXiv 1412.6980, AdamW arXiv 1711.05101, AdamP arXiv 2006.08217, diffGrad arXiv 1909.11015,
friction Adam arXiv 2408.11839, RSGDM arXiv 2409.15314; SGD as in torch.optim.SGD.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# S when consecutive gradients are orthogonal ("diff": equal): the value "without friction".
NEUTRAL_FRICTION = {"sigmoid": 0.5, "tanh": 1.0, "diff": 0.5}


def _arithmetic(param: Tensor) -> torch.dtype:
    return torch.promote_types(param.dtype, torch.float32)


def _gradient(param: Tensor, grad: Tensor, *, maximize: bool, coupled_decay: float) -> Tensor:
    g = -grad if maximize else grad  # g_t, negated when maximizing
    return g + coupled_decay * param if coupled_decay else g  # g_t + lambda theta_{t-1}


def _power(base: float, exponent: float) -> float:
    """base**exponent by repeated squaring, as the kernels compute it, so that all have the same bits."""
    result, bits = 1.0, int(exponent)
    while bits:
        if bits & 1:
            result *= base
        base, bits = base * base, bits >> 1
    return result


def adam_direction(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: float,
    *,
    rate: float,
    betas: tuple[float, float],
    eps: float,
    coupled_decay: float,
    maximize: bool,
    nesterov: bool = False,
) -> Tensor:
    """Advance the states; return rate m^_t / (sqrt(v^_t) + eps), in the order that Adam's paper proposes."""
    beta1, beta2 = betas
    p, g = param.to(_arithmetic(param)), grad.to(_arithmetic(param))
    g = _gradient(p, g, maximize=maximize, coupled_decay=coupled_decay)
    exp_avg.mul_(beta1).add_((1 - beta1) * g)  # m_t = b1 m_{t-1} + (1 - b1) g_t
    exp_avg_sq.mul_(beta2).add_((1 - beta2) * g * g)  # v_t = b2 v_{t-1} + (1 - b2) g_t^2
    c = math.sqrt(1 - _power(beta2, step))
    rate = rate * c / (1 - _power(beta1, step))  # m^_t = m_t / (1 - b1^t), v^_t = v_t / (1 - b2^t):
    m = (
        exp_avg * rate
    )  # rate m^_t / (sqrt(v^_t) + eps) = rate c / (1 - b1^t) m_t / (sqrt(v_t) + c eps)
    if nesterov:
        m = exp_avg * (rate * beta1) + g * (rate * (1 - beta1))  # b1 m_t + (1 - b1) g_t for m_t
    return m / (exp_avg_sq.sqrt() + c * eps)


def adam(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: float,
    *,
    lr: float,
    weight_decay: float,
    decoupled: bool,
    **direction_options: Any,
) -> None:
    """Adam, and AdamW if decay is decoupled."""
    u = adam_direction(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        step,
        rate=lr,
        coupled_decay=0.0 if decoupled else weight_decay,
        **direction_options,
    )
    p = param.to(u.dtype)
    if decoupled:
        p = p * (1 - lr * weight_decay)  # theta <- theta (1 - eta lambda)
    param.copy_(p - u)  # theta_t = theta_{t-1} - eta m^_t / (sqrt(v^_t) + eps)


def friction_factor(
    grad: Tensor,
    exp_avg_sq: Tensor,
    prev_grad: Tensor,
    step: float,
    *,
    beta2: float,
    beta3: float,
    eps: float,
    friction: str,
    friction_input: str = "product",
) -> Tensor:
    """S_t as a function of g_t, v_t and g_{t-1}."""
    if friction == "diff":
        x = (prev_grad - grad).abs()  # x = |g_{t-1} - g_t|
    elif friction_input == "normalized":
        # x = g_{t-1} g_t / (v^_t + eps), ours. Multiplied through by 1 - b2 to overflow only where v_t does.
        v_correction = 1 - beta2**step
        x = (1 - beta2) * grad * prev_grad / (exp_avg_sq + v_correction * eps)
        x = x * (v_correction / (1 - beta2))
    else:
        x = prev_grad * grad  # x = g_{t-1} g_t
    y = (beta3 * x).nan_to_num()  # no friction where overflow yields 0 * inf or inf / inf
    s = torch.tanh(y) + 1 if friction == "tanh" else torch.sigmoid(y)  # S_t = f(b3 x)
    return torch.where(grad.isnan(), grad, s)


def next_friction(
    param: Tensor,
    grad: Tensor,
    exp_avg_sq: Tensor,
    prev_grad: Tensor,
    step: float,
    *,
    beta2: float,
    coupled_decay: float,
    maximize: bool,
    **friction_options: Any,
) -> Tensor:
    """S_t of the step that a gradient would make. Has no side effects."""
    g = _gradient(
        param, grad.to(_arithmetic(param)), maximize=maximize, coupled_decay=coupled_decay
    )
    v: Tensor = beta2 * exp_avg_sq + (1 - beta2) * g * g
    return friction_factor(g, v, prev_grad, step, beta2=beta2, **friction_options)


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
    nesterov: bool = False,
    **friction_options: Any,
) -> Tensor:
    """Advance the states; return S_t m^_t / (sqrt(v^_t) + eps)."""
    beta1, beta2 = betas
    p, g = param.to(_arithmetic(param)), grad.to(_arithmetic(param))
    g = _gradient(p, g, maximize=maximize, coupled_decay=coupled_decay)
    exp_avg.mul_(beta1).add_(g, alpha=1 - beta1)  # m_t = b1 m_{t-1} + (1 - b1) g_t
    exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)  # v_t = b2 v_{t-1} + (1 - b2) g_t^2
    m = beta1 * exp_avg + (1 - beta1) * g if nesterov else exp_avg
    m_correction, v_correction = 1 - beta1**step, 1 - beta2**step
    # sqrt(v^_t) + eps, v^_t = v_t / (1 - b2^t), ordered to overflow only where v_t does
    denominator = exp_avg_sq.sqrt() / v_correction**0.5 + eps
    adam: Tensor = (
        m / denominator / m_correction
    )  # m^_t / (sqrt(v^_t) + eps), m^_t = m_t / (1 - b1^t)
    options = {"beta2": beta2, "beta3": beta3, "eps": eps, **friction_options}
    adam.mul_(friction_factor(g, exp_avg_sq, prev_grad, step, **options))  # times S_t
    prev_grad.copy_(g)
    return adam


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
) -> None:
    """SigSignGrad, TanhSignGrad, DiffGrad and their AdamW variants."""
    u = friction_direction(
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


def nearly_orthogonal(
    pg: Tensor, pp: Tensor, gg: Tensor, length: int, *, delta: float, eps: float
) -> Tensor:
    """Which rows are nearly orthogonal to their gradients, from their sums of theta g, theta^2 and g^2."""
    bound: float = delta / max(length, 1) ** 0.5
    cosine = pg / (pp.sqrt().clamp_min(eps) * gg.sqrt().clamp_min(eps))
    return cosine.abs() < bound  # |cos(theta_row, g_row)| < delta / sqrt(len)


def project(
    param: Tensor, grad: Tensor, u: Tensor, *, delta: float, eps: float
) -> tuple[Tensor, bool]:
    """AdamP's projection of u: by rows, else as a whole, else none. Returns (u, projected).

    Sums are accumulated in float64, where squares of float32 numbers do not overflow.
    """
    if param.numel() == 0:
        return u, False
    for rows in (param.shape[0], 1):
        p, g, of_rows = (t.reshape(rows, -1).double() for t in (param, grad, u))
        pg, pp, gg = ((a * b).sum(dim=1) for a, b in ((p, g), (p, p), (g, g)))
        if nearly_orthogonal(pg, pp, gg, p.shape[1], delta=delta, eps=eps).all():
            p_hat = p / (pp.sqrt()[:, None] + eps)  # theta_row / (|theta_row| + eps)
            along = (p_hat * of_rows).sum(dim=1, keepdim=True)  # the component along theta_row
            return (of_rows - along * p_hat).to(u.dtype).reshape(u.shape), True
    return u, False


def descend_projected(
    param: Tensor,
    grad: Tensor,
    u: Tensor,
    *,
    lr: float,
    weight_decay: float,
    eps: float,
    delta: float,
    wd_ratio: float,
    is_matrix: bool,
) -> None:
    """AdamP's step in the direction u. `is_matrix`: the parameter has more than one dimension."""
    p, projected = param.to(u.dtype), False
    if is_matrix:
        u, projected = project(p, grad.to(u.dtype), u, delta=delta, eps=eps)
    decay = weight_decay * wd_ratio if projected else weight_decay
    p = p * (1 - lr * decay)  # theta <- theta (1 - eta lambda), lambda scaled if projected
    param.copy_(p - lr * u)  # theta_t = theta_{t-1} - eta u_t


def sgd(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """SGD with momentum; the buffer starts at zero."""
    p, g = param.to(_arithmetic(param)), grad.to(_arithmetic(param))
    g = _gradient(p, g, maximize=maximize, coupled_decay=weight_decay)
    momentum_buffer.mul_(momentum).add_(g)  # m_t = b m_{t-1} + g_t
    u = g + momentum * momentum_buffer if nesterov else momentum_buffer  # g_t + b m_t, or m_t
    param.copy_(p - lr * u)  # theta_t = theta_{t-1} - eta u_t


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
    """RSGDM exactly as published, with the differential estimate z and the previous gradient."""
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
