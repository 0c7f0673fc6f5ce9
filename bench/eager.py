"""The papers' equations as a plain implementation has them: torch operators, one tensor after the other.

`friction_kernels.equations` also guards against overflow, which takes operators that no paper has. Ratios to
eager code are ratios to this. Sources: arXiv 2408.11839 (friction), 2006.08217 (AdamP), 2409.15314 (RSGDM).
"""

from collections.abc import Callable

import torch
from torch import Tensor

import friction_kernels as fk

FRICTION = {"sigmoid": torch.sigmoid, "tanh": lambda x: torch.tanh(x) + 1}


def defaults_of(cls: type[torch.optim.Optimizer]) -> dict:
    return cls([torch.zeros(1)]).defaults


ADAM, ADAMP, RSGDM = map(defaults_of, (fk.SigSignAdamW, fk.SigSignAdamP, fk.RSGDM))


def friction_direction(grad, exp_avg, exp_avg_sq, prev_grad, step, friction, normalized) -> Tensor:
    (beta1, beta2), eps = ADAM["betas"], ADAM["eps"]
    exp_avg.mul_(beta1).add_(grad, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    m_hat = exp_avg / (1 - beta1**step)
    v_hat = exp_avg_sq / (1 - beta2**step)
    x = prev_grad * grad
    if normalized:
        x = x / (v_hat + eps)
    s = FRICTION[friction](ADAM["beta3"] * x)
    prev_grad.copy_(grad)
    return s * m_hat / (v_hat.sqrt() + eps)


def friction_adamw(param, grad, states, step, friction="sigmoid", normalized=False) -> None:
    u = friction_direction(grad, *states, step, friction, normalized)
    param.mul_(1 - ADAM["lr"] * ADAM["weight_decay"]).sub_(u, alpha=ADAM["lr"])


def projected(param: Tensor, grad: Tensor, u: Tensor) -> Tensor | None:
    """u without its component along the parameter, where the gradient is nearly orthogonal to it."""
    for rows in (param.shape[0], 1):
        p, g = param.reshape(rows, -1), grad.reshape(rows, -1)
        cosine = torch.cosine_similarity(g, p, dim=1, eps=ADAMP["eps"]).abs().max()
        if cosine < ADAMP["delta"] / p.shape[1] ** 0.5:
            p_hat = p / (p.norm(dim=1, keepdim=True) + ADAMP["eps"])
            along = (p_hat * u.reshape(rows, -1)).sum(dim=1, keepdim=True)
            return u - (along * p_hat).reshape(u.shape)
    return None


def friction_adamp(param, grad, states, step) -> None:
    u = friction_direction(grad, *states, step, "sigmoid", normalized=False)
    lr, decay = ADAMP["lr"], ADAMP["weight_decay"]
    if param.dim() > 1 and (rest := projected(param, grad, u)) is not None:
        u, decay = rest, decay * ADAMP["wd_ratio"]
    param.mul_(1 - lr * decay).sub_(u, alpha=lr)


def rsgdm(param, grad, states, step) -> None:
    beta, (momentum_buffer, difference_buffer, prev_grad) = RSGDM["momentum"], states
    momentum_buffer.mul_(beta).add_(grad, alpha=1 - beta)
    difference_buffer.mul_(beta).add_(grad - prev_grad, alpha=1 - beta)
    prev_grad.copy_(grad)
    param.sub_(momentum_buffer + beta * difference_buffer, alpha=RSGDM["lr"])


MOMENTS = ("exp_avg", "exp_avg_sq", "prev_grad")
OF_RSGDM = ("momentum_buffer", "difference_buffer", "prev_grad")


class Eager:
    """An optimizer that takes an equation's step for each parameter."""

    def __init__(self, params: list[Tensor], update: Callable[..., None], **options) -> None:
        self.update, self.options, self.number = update, options, 0
        self.params, self.param_groups = params, [{"params": params}]
        keys = OF_RSGDM if update is rsgdm else MOMENTS
        # Averages in float32, as all optimizers here keep them; the gradient in its own type.
        self.state = {
            p: {
                k: torch.zeros_like(p, dtype=p.dtype if k == "prev_grad" else torch.float32)
                for k in keys
            }
            for p in params
        }

    @torch.no_grad()
    def step(self) -> None:
        self.number += 1
        for param in self.params:
            states = self.state[param].values()
            self.update(param, param.grad, states, self.number, **self.options)


class Compiled(Eager):
    """Those of SigSignAdamW under torch.compile: one graph for a flat tensor of any size.

    A graph over all tensors would fuse no more, since each element needs only its own, but takes
    minutes to compile for a model. The step's number is a tensor, or each step would compile anew.
    """

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, torch.compile(friction_adamw, dynamic=True))
        self.number = torch.zeros((), device=params[0].device)
        self.flatten()

    def flatten(self) -> None:
        """Look at parameters, gradients and states as vectors; anew when states were replaced."""
        lists = ((p, p.grad, *self.state[p].values()) for p in self.params)
        self.flat = [[tensor.detach().view(-1) for tensor in each] for each in lists]

    @torch.no_grad()
    def step(self) -> None:
        self.number += 1
        for param, grad, *states in self.flat:
            self.update(param, grad, states, self.number)
