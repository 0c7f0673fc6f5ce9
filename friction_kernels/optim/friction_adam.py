"""Friction Adam: sigSignGrad, tanhSignGrad and their AdamW and AdamP variants."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType
from typing import ClassVar, cast

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from friction_kernels.backends import Backend
from friction_kernels.optim import options
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.friction_rule import FrictionAdamPRule, FrictionAdamRule, FrictionInput
from friction_kernels.optim.options import Master, Rounding, StateDtype

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
            {lr}).
        betas: decay of the two moments, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the square root of the second moment, at least 0 (default 1e-8).
        weight_decay: {decay_kind}, at least 0 (default {weight_decay}).
        beta3: strength of the friction, at least 0; 0 makes S = {neutral} (default 1.0).
{more_args}        maximize: maximize the objective (default False).
        friction_input: "product" (published) or "normalized" (default "product").
        {shared_args}
        capturable: allow capturing the step in a CUDA graph: `step` is on the parameter's device, and
            every replay reads lr, weight_decay, betas and the like from there if they are tensors (a
            number keeps its captured value) (default False).
        backend: "auto" (native if it can serve, else reference, with a warning), "native" (raises with the
            reason if it cannot serve) or "reference" (default "auto").

    State: `step`, `exp_avg`, `exp_avg_sq`, `prev_grad`.
    {extra_states}
    A state_dict of torch.optim.Adam loads into the classes with coupled decay, one of AdamW into the
    others, either into all if weight_decay is 0; the missing prev_grad starts at zero.

    Raises:
        ValueError, TypeError: an option out of range, an option of torch that this class does not have
            (fused=True), or kinds of devices mixed within a group; from the constructor and
            add_param_group.
        RuntimeError: a sparse or mismatched gradient or state, or backend="native" that cannot serve;
            from step(), before anything is changed.
    """


class FrictionAdam(PlannedOptimizer):
    """Base of the six classes."""

    rule: ClassVar[FrictionAdamRule]


class FrictionAdamCoupled(FrictionAdam):
    """Base of SigSignGrad and TanhSignGrad: decay is added to the gradient."""

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


class FrictionAdamW(FrictionAdam):
    """Base of the two AdamW classes: decoupled decay."""

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


class FrictionAdamP(FrictionAdam):
    """Base of the two AdamP classes: decoupled decay and the projection."""

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


def _give_own_init(cls: type[FrictionAdam]) -> None:
    """Give the class its own copy of the constructor, so that errors about arguments name the class."""
    shared = cast("FunctionType", cls.__init__)
    own = FunctionType(
        shared.__code__, shared.__globals__, closure=shared.__closure__, argdefs=shared.__defaults__
    )
    own.__kwdefaults__, own.__annotations__ = shared.__kwdefaults__, shared.__annotations__
    own.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = own  # type: ignore[method-assign]


def _describe(cls: type[FrictionAdam], summary: str, decay: str) -> None:
    """Set the class's docstring and the name of its constructor.

    decay: "coupled", "decoupled" or "projected".
    """
    _give_own_init(cls)
    tanh = cls.rule.friction == "tanh"
    adamp = decay == "projected"
    descend = "p.add_(S * m_hat / (v_hat.sqrt() + eps), alpha=-lr)"
    shrink = "p.mul_(1 - lr * weight_decay)\n        "
    project = (
        "u = S * m_hat / (v_hat.sqrt() + eps)   # nesterov: (beta1 * exp_avg + (1 - beta1) * g) for exp_avg\n"
        "        # Projection (p.dim() > 1): if every row of p (first dimension) is nearly orthogonal to g,\n"
        "        # |cosine_similarity(p_row, g_row, eps=eps)| < delta / sqrt(len(p_row)), or else p as a\n"
        "        # whole is, the component along p_row / (p_row.norm() + eps) is removed from u, and the\n"
        "        # decay is scaled by wd_ratio.\n"
        "        p.mul_(1 - lr * weight_decay).add_(u, alpha=-lr)"
    )
    updates = {"coupled": descend, "decoupled": shrink + descend, "projected": project}
    cls.__doc__ = _DOC.format(
        summary=summary,
        coupled="g = g + weight_decay * p\n        " if decay == "coupled" else "",
        friction="torch.tanh(beta3 * x) + 1" if tanh else "torch.sigmoid(beta3 * x)",
        update=updates[decay],
        neutral="1" if tanh else "1/2",
        without={
            "coupled": "torch.optim.Adam",
            "decoupled": "torch.optim.AdamW",
            "projected": "AdamP",
        }[decay]
        + ("" if tanh else " at half the learning rate"),
        more_sources='; projection: Heo et al., "AdamP", arXiv 2006.08217' if adamp else "",
        choices=", and it does so before the projection" if adamp else "",
        lr="1e-3",
        decay_kind="coupled (added to the gradient, as in torch.optim.Adam)"
        if decay == "coupled"
        else "decoupled (as in torch.optim.AdamW)",
        weight_decay="0.0" if decay == "coupled" else "1e-2",
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        more_args=(
            "        delta: bound of the cosine test, at least 0 (default 0.1).\n"
            "        wd_ratio: factor of the decay if the update is projected, at least 0 (default 0.1).\n"
            "        nesterov: look one step ahead in the first moment (default False).\n"
        )
        if adamp
        else "",
    )


class SigSignGrad(FrictionAdamCoupled):
    rule = FrictionAdamRule("sigmoid", decoupled=False)


class TanhSignGrad(FrictionAdamCoupled):
    rule = FrictionAdamRule("tanh", decoupled=False)


class SigSignAdamW(FrictionAdamW):
    rule = FrictionAdamRule("sigmoid", decoupled=True)


class TanhSignAdamW(FrictionAdamW):
    rule = FrictionAdamRule("tanh", decoupled=True)


class SigSignAdamP(FrictionAdamP):
    rule = FrictionAdamPRule("sigmoid")


class TanhSignAdamP(FrictionAdamP):
    rule = FrictionAdamPRule("tanh")


_describe(SigSignGrad, "Adam with sigmoid friction.", "coupled")
_describe(TanhSignGrad, "Adam with tanh friction.", "coupled")
_describe(SigSignAdamW, "AdamW with sigmoid friction.", "decoupled")
_describe(TanhSignAdamW, "AdamW with tanh friction.", "decoupled")
_describe(SigSignAdamP, "AdamP with sigmoid friction.", "projected")
_describe(TanhSignAdamP, "AdamP with tanh friction.", "projected")
