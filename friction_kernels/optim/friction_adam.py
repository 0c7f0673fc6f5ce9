"""Friction Adam: sigSignGrad, tanhSignGrad and their AdamW and AdamP variants."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from friction_kernels.backends import Backend
from friction_kernels.choices import check_choice
from friction_kernels.optim import checks, options
from friction_kernels.optim.adam import ADAMP_ARGS, PROJECTION
from friction_kernels.optim.adam_rule import (
    FRICTION_INPUTS,
    FRICTIONS,
    AdamRule,
    Friction,
    FrictionAdamPRule,
    FrictionAdamRule,
    FrictionInput,
)
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.options import Master, Rounding, StateDtype
from friction_kernels.optim.taking import TAKE_GRADIENTS

_DOC = """{summary}

    Equals, for every parameter p with gradient g (negated if `maximize`), at its t-th step:

        {coupled}exp_avg.mul_(beta1).add_(g, alpha=1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m_hat = exp_avg / (1 - beta1**t)
        v_hat = exp_avg_sq / (1 - beta2**t)
        x = prev_grad * g                      # friction_input="product"
        x = prev_grad * g / (v_hat + eps)      # friction_input="normalized"
        S = {friction}
        prev_grad.copy_(g)
        {update}

    At usual gradient scales (|g| near 1e-3) the product form's x is so small that S stays close to
    {neutral}: the optimizer is then {without}. `friction_input="normalized"` does not depend on the
    scale of the gradients; `friction_kernels.friction_stats(opt)` reports the distribution of S.

    Source: Zheng et al., "Adaptive Friction in Deep Learning", arXiv 2408.11839{more_sources}.
    Published: the product form of S. Choices of this library, because the source was not readable:
    beta3 = 1, a zero gradient before the first, S multiplies the bias-corrected first moment{choices}.
    Its own addition: friction_input="normalized".

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts with any of the options
            below. Floating-point or complex (updated as pairs of reals), of any dense layout.
            Moments are stored in at least float32, prev_grad in the parameter's dtype. Frozen
            parameters (requires_grad=False, no gradient) may have any dtype and device.
        lr: learning rate, at least 0; like the numbers below it may be a one-element tensor (default
            1e-3).
        betas: decay of the two moments, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the square root of the second moment, at least 0 (default 1e-8).
        weight_decay: {decay_kind}, at least 0 (default {weight_decay}).
        beta3: strength of the friction, at least 0; 0 makes S = {neutral} (default 1.0).
{more_args}        maximize: maximize the objective (default False).
        friction_input: "product" (published) or "normalized" (default "product").
        {take_gradients}
        {shared_args}

    State: `step`, `exp_avg`, `exp_avg_sq`, `prev_grad`.
    {extra_states}
    A state_dict of {base} loads, from here and from {torchs}, with a prev_grad that starts at zero, and
    this one's loads there.

    Raises:
        {raises}
    """


class FrictionAdam(PlannedOptimizer):
    """Base of the six named classes."""

    rule: FrictionAdamRule


class _Coupled(FrictionAdam):
    """The constructor of SigSignGrad and TanhSignGrad: decay is added to the gradient."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 0.0,
        *,
        beta3: float | Tensor = 1.0,
        maximize: bool = False,
        friction_input: FrictionInput = "product",
        take_gradients: bool = False,
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


class _Decoupled(FrictionAdam):
    """The constructor of the two AdamW classes."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        *,
        beta3: float | Tensor = 1.0,
        maximize: bool = False,
        friction_input: FrictionInput = "product",
        take_gradients: bool = False,
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


class _Projected(FrictionAdam):
    """The constructor of the two AdamP classes."""

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        *,
        beta3: float | Tensor = 1.0,
        delta: float | Tensor = 0.1,
        wd_ratio: float | Tensor = 0.1,
        nesterov: bool = False,
        maximize: bool = False,
        friction_input: FrictionInput = "product",
        take_gradients: bool = False,
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


class FrictionAdamW(PlannedOptimizer):
    __doc__ = f"""AdamW with a friction of your choice, or none: one word tells them apart.

    Equals TanhSignAdamW ("tanh"), SigSignAdamW ("sigmoid"), DiffGradW ("diff") or AdamW (None) of the
    same options; see there for equations, sources and states. Defaults that differ are choices of this
    library, made for trying friction at AdamW's learning rate and decay: tanh, whose S is 1 without
    friction, and the normalized input, which does not depend on the scale of the gradients.

        optimizer = FrictionAdamW(model.parameters(), lr=3e-4, friction="tanh")

    Args:
        params: parameters, (name, parameter) pairs, or groups, of any dense layout, as in AdamW.
        lr: learning rate, at least 0; like the numbers below it may be a one-element tensor (default
            1e-3).
        betas: decay of the two moments, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the square root of the second moment, at least 0 (default 1e-8).
        weight_decay: decoupled (as in torch.optim.AdamW), at least 0 (default 1e-2).
        friction: "tanh", "sigmoid", "diff" or None (default "tanh").
        friction_input: of tanh and sigmoid, "product" (published) or "normalized" (default "normalized").
        beta3: strength of the friction, at least 0; without friction, this, friction_input and
            take_gradients are not used (default 1.0).
        maximize: maximize the objective (default False).
        {TAKE_GRADIENTS}
        {options.ARGS}

    A state_dict is that of the named class.

    Raises:
        {options.RAISES}
    """

    rule: AdamRule

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        *,
        friction: Friction | None = "tanh",
        friction_input: FrictionInput = "normalized",
        beta3: float | Tensor = 1.0,
        maximize: bool = False,
        take_gradients: bool = False,
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
        check_choice("friction", friction, (*FRICTIONS, None))
        # Checked without friction, too, so that turning it on is the only change.
        check_choice("friction_input", friction_input, FRICTION_INPUTS)
        check_choice("take_gradients", take_gradients, (False, True))
        checks.check_number("beta3", beta3)
        self.rule = (
            AdamRule(decoupled=True)
            if friction is None
            else FrictionAdamRule(friction, decoupled=True)
        )
        own = options.given(locals(), unused=("friction",))
        if friction is None:
            del own["take_gradients"]
        super().__init__(params, own)


def _give_own_init(cls: type[FrictionAdam]) -> None:
    """Give the class its own copy of the constructor, so that errors about arguments name the class."""
    shared = cast("FunctionType", cls.__init__)
    own = FunctionType(
        shared.__code__, shared.__globals__, closure=shared.__closure__, argdefs=shared.__defaults__
    )
    own.__kwdefaults__, own.__annotations__ = shared.__kwdefaults__, shared.__annotations__
    own.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = own  # type: ignore[method-assign]


class _Base(NamedTuple):
    """What a friction is added to: its names, and its part of the equations."""

    ours: str
    torchs: str
    update: str
    coupled: str = ""
    decay_kind: str = "decoupled (as in torch.optim.AdamW)"
    weight_decay: str = "1e-2"


_DESCEND = "p.add_(S * m_hat / (v_hat.sqrt() + eps), alpha=-lr)"
_BASES = {
    "coupled": _Base(
        ours="Adam",
        torchs="torch.optim.Adam",
        update=_DESCEND,
        coupled="g = g + weight_decay * p\n        ",
        decay_kind="coupled (added to the gradient, as in torch.optim.Adam)",
        weight_decay="0.0",
    ),
    "decoupled": _Base(
        ours="AdamW",
        torchs="torch.optim.AdamW",
        update="p.mul_(1 - lr * weight_decay)\n        " + _DESCEND,
    ),
    "projected": _Base(
        ours="AdamP",
        torchs="adamp.AdamP",
        update="u = S * m_hat / (v_hat.sqrt() + eps)\n        " + PROJECTION,
    ),
}


def _describe(cls: type[FrictionAdam], summary: str, kind: str) -> None:
    """Set the class's docstring and the name of its constructor. kind: a key of _BASES."""
    _give_own_init(cls)
    base, adamp, tanh = _BASES[kind], kind == "projected", cls.rule.friction == "tanh"
    cls.__doc__ = _DOC.format(
        summary=summary,
        coupled=base.coupled,
        friction="torch.tanh(beta3 * x) + 1" if tanh else "torch.sigmoid(beta3 * x)",
        update=base.update,
        neutral="1" if tanh else "1/2",
        without=base.ours + ("" if tanh else " at half the learning rate"),
        more_sources='; projection: Heo et al., "AdamP", arXiv 2006.08217' if adamp else "",
        choices=", and it does so before the projection" if adamp else "",
        decay_kind=base.decay_kind,
        weight_decay=base.weight_decay,
        more_args=ADAMP_ARGS if adamp else "",
        take_gradients=TAKE_GRADIENTS,
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        base=base.ours,
        torchs=base.torchs,
        raises=options.RAISES,
    )


class SigSignGrad(_Coupled):
    rule = FrictionAdamRule("sigmoid", decoupled=False)


class TanhSignGrad(_Coupled):
    rule = FrictionAdamRule("tanh", decoupled=False)


class SigSignAdamW(_Decoupled):
    rule = FrictionAdamRule("sigmoid", decoupled=True)


class TanhSignAdamW(_Decoupled):
    rule = FrictionAdamRule("tanh", decoupled=True)


class SigSignAdamP(_Projected):
    rule = FrictionAdamPRule("sigmoid")


class TanhSignAdamP(_Projected):
    rule = FrictionAdamPRule("tanh")


_describe(SigSignGrad, "Adam with sigmoid friction.", "coupled")
_describe(TanhSignGrad, "Adam with tanh friction.", "coupled")
_describe(SigSignAdamW, "AdamW with sigmoid friction.", "decoupled")
_describe(TanhSignAdamW, "AdamW with tanh friction.", "decoupled")
_describe(SigSignAdamP, "AdamP with sigmoid friction.", "projected")
_describe(TanhSignAdamP, "AdamP with tanh friction.", "projected")
