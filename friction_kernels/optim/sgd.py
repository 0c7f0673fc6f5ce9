"""SGD with momentum."""

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

_TORCHS = ("foreach", "differentiable", "fused")


class SGDRule(Rule):
    """SGD with momentum, with Nesterov momentum or without."""

    name = "sgd"
    states_of = "sgd"

    def check_group(self, group: Mapping[str, Any]) -> None:
        checks.check_number("lr", group["lr"])
        checks.check_number("momentum", group["momentum"])
        checks.check_number("weight_decay", group["weight_decay"])
        if group["dampening"] != 0:
            raise ValueError(f"dampening must be 0, got {group['dampening']!r}; leave it out")
        for flag in ("nesterov", "maximize"):
            check_choice(flag, group[flag], (False, True))
        if group["nesterov"] and checks.as_number("momentum", group["momentum"]) == 0:
            raise ValueError("nesterov=True needs a momentum above 0, got momentum=0")

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        own = ("lr", "momentum", "weight_decay", "nesterov", "maximize")
        return {**{name: group[name] for name in own}, "averages": False, "decoupled": False}

    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        equations.sgd(
            x.param,
            x.grad,
            x.states["momentum_buffer"],
            lr=float(group["lr"]),
            momentum=float(group["momentum"]),
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )

    def understood(self, state_dict: dict[str, Any], class_name: str) -> dict[str, Any]:
        states = {n: _with_step(state) for n, state in state_dict["state"].items()}
        groups = [_of_sgd(i, group) for i, group in enumerate(state_dict["param_groups"])]
        for saved, group in zip(state_dict["param_groups"], groups, strict=True):
            if _is_rsgdms(saved):
                scale = 1 / (1 - group["momentum"])
                states.update({n: _scaled(states.get(n), scale) for n in group["params"]})
        return {**state_dict, "state": states, "param_groups": groups}


def _with_step(state: Any) -> Any:
    """A parameter's state, with the step count that torch's SGD does not keep; empty without a buffer."""
    if not isinstance(state, dict) or "step" in state:
        return state
    if state.get("momentum_buffer") is None:
        return {}
    return {"step": 0.0, **state}


def _is_rsgdms(group: Mapping[str, Any]) -> bool:
    return {"momentum", "decoupled_weight_decay"} <= group.keys() and "dampening" not in group


def _of_sgd(index: int, group: Any) -> Any:
    """A group of SGD's, or one of RSGDM's as the equivalent Nesterov momentum."""
    if "ns_steps" in group:
        raise ValueError(
            "the state_dict is not one of SGD: it is one of torch.optim.Muon; start SGD afresh"
        )
    if not _is_rsgdms(group):
        return group
    which = f"the state_dict is one of RSGDM, and its group {index} "
    momentum, decay, _ = (
        checks.as_number(f"the state_dict's group {index}: {key}", group.get(key))
        for key in ("momentum", "weight_decay", "lr")
    )
    if not 0 < momentum < 1:
        raise ValueError(f"{which}has momentum={momentum:g}; start SGD afresh")
    if group["decoupled_weight_decay"] and decay != 0:
        raise ValueError(
            f"{which}has decoupled_weight_decay=True, which SGD does not have; set it to False in the "
            "state_dict to couple the decay to the gradient"
        )
    kept = {key: value for key, value in group.items() if key != "decoupled_weight_decay"}
    rates = {key: kept[key] * (1 - momentum) for key in ("lr", "initial_lr") if key in kept}
    return {**kept, **rates, "dampening": 0, "nesterov": True}


def _scaled(state: Any, scale: float) -> Any:
    if not isinstance(state, dict) or not isinstance(state.get("momentum_buffer"), Tensor):
        return state
    return {**state, "momentum_buffer": state["momentum_buffer"] * scale}


class SGD(PlannedOptimizer):
    __doc__ = f"""SGD with momentum.

    Equals, for every parameter p with gradient g (negated if `maximize`):

        g = g + weight_decay * p
        momentum_buffer.mul_(momentum).add_(g)
        u = g + momentum * momentum_buffer if nesterov else momentum_buffer
        p.add_(u, alpha=-lr)

    that is, torch.optim.SGD with dampening=0, to rounding. The buffer is kept without momentum, too.

    Source: torch.optim.SGD, whose Nesterov momentum is that of Sutskever et al., "On the importance of
    initialization and momentum in deep learning", ICML 2013, as torch documents it.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts with any of the options below.
            Floating-point or complex (updated as pairs of reals), of any dense layout. The buffer is
            stored in at least float32. Frozen parameters (requires_grad=False, no gradient) may have
            any dtype and device.
        lr: learning rate, at least 0; like the numbers below it may be a one-element tensor (default 1e-3).
        momentum: factor of the momentum buffer, at least 0 (default 0.0).
        dampening: 0, as in torch's constructor (default 0).
        weight_decay: coupled (added to the gradient), at least 0 (default 0.0).
        nesterov: use Nesterov momentum, which needs a momentum above 0 (default False).
        maximize: maximize the objective (default False).
        {options.TORCHS_ARGS}
        {options.ARGS}

    State: `step`, `momentum_buffer`.
    {options.EXTRA_STATES}
    A state_dict of torch.optim.SGD without dampening loads, and this one's loads there. One of RSGDM with
    coupled decay loads as the equivalent Nesterov momentum, and this one's with momentum loads into RSGDM:
    buffer and learning rate are converted (but not a scheduler's, which must be created anew).

    Raises:
        {options.RAISES}
    """

    rule = SGDRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float | Tensor = 0.0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
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
        super().__init__(params, options.given(locals(), refused=_TORCHS))
