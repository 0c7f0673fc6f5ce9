"""RSGDM: momentum with a differential correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from friction_kernels import equations
from friction_kernels.backends import Backend
from friction_kernels.choices import check_choice
from friction_kernels.optim import checks, options
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.options import Master, Rounding, StateDtype
from friction_kernels.optim.rule import Operands, Rule

_DOC = """Momentum corrected by its own change.

    Equals, for every parameter p with gradient g (negated if `maximize`):

        g = g + weight_decay * p               # unless decoupled_weight_decay
        previous = momentum_buffer.clone()
        momentum_buffer.mul_(momentum).add_(g, alpha=1 - momentum)
        difference = momentum_buffer - previous
        p.mul_(1 - lr * weight_decay)          # if decoupled_weight_decay
        p.add_(momentum_buffer + momentum * difference, alpha=-lr)

    The paper's estimate z_t = b z_{{t-1}} + (1 - b)(g_t - g_{{t-1}}), with z_0 = g_0 = 0, is the
    difference of the two momentum buffers, so one buffer is enough. With a constant lr, the whole
    update is Nesterov momentum, reparametrised: RSGDM(lr, momentum) equals
    torch.optim.SGD(lr=lr * (1 - momentum), momentum=momentum, nesterov=True) up to rounding.
    Expect the same results, with a learning rate 1 / (1 - momentum) times as large.

    Source: Qin et al., "Reducing Bias in Deep Learning Optimization: The RSGDM Approach",
    arXiv 2409.15314. Published: the update. Choices of this library: the coupled and the decoupled
    weight decay, `maximize`, the start z_0 = g_0 = 0, and z_t = m_t - m_{{t-1}} even if the momentum
    changes between steps (a scheduler may cycle it), where the paper's z_t is not this difference.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts with any of the options below.
            Floating-point or complex (updated as pairs of reals), of any dense layout. The buffer is
            stored in at least float32. Frozen parameters (requires_grad=False, no gradient) may have
            any dtype and device.
        lr: learning rate, at least 0; like the numbers below it may be a one-element tensor (default 0.1).
        momentum: decay of the momentum, in [0, 1) (default 0.9).
        weight_decay: at least 0 (default 0.0).
        decoupled_weight_decay: shrink the parameter instead of adding to the gradient (default False).
        maximize: maximize the objective (default False).
        {shared_args}

    State: `step`, `momentum_buffer`.
    {extra_states}
    A state_dict of SGD, ours or torch's, with momentum and without dampening loads as equivalent Nesterov
    momentum: its buffer and learning rate are converted (but not a scheduler's, which must be created
    anew), and its weight decay stays coupled.

    Raises:
        {raises}
    """


class RSGDMRule(Rule):
    name = "sgd"  # Nesterov momentum of averaged gradients
    states_of = "sgd"

    def check_group(self, group: Mapping[str, Any]) -> None:
        checks.check_number("lr", group["lr"])
        checks.check_number("momentum", group["momentum"], below=1.0)
        checks.check_number("weight_decay", group["weight_decay"])
        for flag in ("decoupled_weight_decay", "maximize"):
            check_choice(flag, group[flag], (False, True))

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: group[name] for name in ("lr", "momentum", "weight_decay", "maximize")}
        decoupled = group["decoupled_weight_decay"]
        return {**own, "decoupled": decoupled, "averages": True, "nesterov": True}

    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        # The equations need a history z_{t-1}, g_{t-1}. Every history that leads to m_{t-1} gives the same
        # z_t = m_t - m_{t-1}; use z_{t-1} = 0, g_{t-1} = m_{t-1}, so that only m is stored.
        m = x.states["momentum_buffer"]
        equations.rsgdm(
            x.param,
            x.grad,
            m,
            torch.zeros_like(m),
            m.clone(),
            lr=float(group["lr"]),
            momentum=float(group["momentum"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=group["decoupled_weight_decay"],
            maximize=group["maximize"],
        )

    def understood(self, state_dict: dict[str, Any], class_name: str) -> dict[str, Any]:
        if any("dampening" in group for group in state_dict["param_groups"]):
            return _from_sgd(state_dict)
        return state_dict


class RSGDM(PlannedOptimizer):
    __doc__ = _DOC.format(
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        raises=options.RAISES,
    )

    rule = RSGDMRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.1,
        momentum: float | Tensor = 0.9,
        *,
        weight_decay: float | Tensor = 0.0,
        decoupled_weight_decay: bool = False,
        maximize: bool = False,
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        master: Master | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        state_dtype: StateDtype | Mapping[str, StateDtype | None] | None = None,
        process_group: torch.distributed.ProcessGroup | str | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, options.given(locals()))


def _from_sgd(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Convert a state_dict of torch.optim.SGD to RSGDM.

    SGD's buffer is the sum of momentum**k g_{t-k}; RSGDM's is 1 - momentum times that. A step with SGD's
    buffer and lr therefore equals a step with RSGDM's buffer and lr / (1 - momentum).
    """
    groups, states = [], dict(state_dict["state"])
    for index, group in enumerate(state_dict["param_groups"]):
        which = f"the state_dict is one of SGD, and its group {index} was made "
        momentum, dampening = (
            checks.as_number(f"the state_dict's group {index}: {key}", group.get(key))
            for key in ("momentum", "dampening")
        )
        if dampening != 0:
            raise ValueError(
                f"{which}with dampening={group['dampening']}: how much of its momentum_buffer is the first "
                "gradient, which is not dampened, is not known; start RSGDM afresh"
            )
        if not 0 < momentum < 1:
            raise ValueError(
                f"{which}with momentum={momentum:g}, so that there is no momentum_buffer to go on from; "
                "start RSGDM afresh"
            )
        rest = 1 - momentum
        for number in group["params"]:
            state = states.get(number)
            if isinstance(state, dict) and isinstance(state.get("momentum_buffer"), Tensor):
                buffer = state["momentum_buffer"] * rest
                states[number] = {
                    "step": 0.0,
                    **state,
                    "momentum_buffer": buffer,
                }  # torch's has no step
        kept = {k: v for k, v in group.items() if k not in ("dampening", "nesterov")}
        for key in ("lr", "initial_lr"):
            if key in kept:
                checks.check_number(f"the state_dict's group {index}: {key}", kept[key])
        rates = {k: kept[k] / rest for k in ("lr", "initial_lr") if k in kept}
        groups.append({**kept, **rates, "decoupled_weight_decay": False})
    return {**state_dict, "state": states, "param_groups": groups}
