"""Adam, AdamW and AdamP, the bases of the friction optimizers, in the same engine."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from friction_kernels.backends import Backend
from friction_kernels.optim import options
from friction_kernels.optim.adam_rule import AdamPRule, AdamRule
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.options import Master, Rounding, StateDtype

_DOC = """{summary}

    Equals, for every parameter p with gradient g (negated if `maximize`), at its t-th step:

        {coupled}exp_avg.mul_(beta1).add_(g, alpha=1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m_hat = exp_avg / (1 - beta1**t)
        v_hat = exp_avg_sq / (1 - beta2**t)
        {update}

    that is, {equal}, to rounding. {friction_class} adds a friction to it.

    Source: {source}. Everything is published{choices}.

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts with any of the options
            below. Floating-point or complex (updated as pairs of reals), of any dense layout.
            Moments are stored in at least float32. Frozen parameters (requires_grad=False, no gradient)
            may have any dtype and device.
        lr: learning rate, at least 0; like the numbers below it may be a one-element tensor (default
            1e-3).
        betas: decay of the two moments, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the square root of the second moment, at least 0 (default 1e-8).
        weight_decay: {decay_kind}, at least 0 (default {weight_decay}).
{more_args}        maximize: maximize the objective (default False).
        {shared_args}

    State: `step`, `exp_avg`, `exp_avg_sq`.
    {extra_states}
    A state_dict of {torchs} loads, and this one's loads there. So do those of the
    friction optimizers with the same decay{and_projection}; a prev_grad is dropped one way and starts at
    zero the other.

    Raises:
        {raises}
    """

_TORCHS = ("amsgrad", "foreach", "differentiable", "fused")
_TORCHS_ARGS = f"""\
        amsgrad: as in torch's constructor; only False (default False).
        {options.TORCHS_ARGS}
"""
ADAMP_ARGS = """\
        delta: bound of the cosine test, at least 0 (default 0.1).
        wd_ratio: factor of the decay if the update is projected, at least 0 (default 0.1).
        nesterov: look one step ahead in the first moment (default False).
"""
PROJECTION = """\
# nesterov: beta1 * exp_avg + (1 - beta1) * g in place of exp_avg
        # Projection (p.dim() > 1): if every row of p (first dimension) is nearly
        # orthogonal to g, |cosine_similarity(p_row, g_row, eps=eps)| <
        # delta / sqrt(len(p_row)), or else p as a whole is, the component along
        # p_row / (p_row.norm() + eps) is removed from u, and the decay is scaled by
        # wd_ratio.
        p.mul_(1 - lr * weight_decay).add_(u, alpha=-lr)"""


class Adam(PlannedOptimizer):
    __doc__ = _DOC.format(
        summary="Adam, with decay coupled to the gradient.",
        coupled="g = g + weight_decay * p\n        ",
        update="p.add_(m_hat / (v_hat.sqrt() + eps), alpha=-lr)",
        equal="torch.optim.Adam",
        friction_class="SigSignGrad, TanhSignGrad and DiffGrad each",
        source='Kingma and Ba, "Adam", arXiv 1412.6980',
        choices="",
        decay_kind="coupled (added to the gradient)",
        weight_decay="0.0",
        more_args=_TORCHS_ARGS
        + "        decoupled_weight_decay: as in torch's constructor; only False: AdamW has it "
        "(default False).\n",
        torchs="torch.optim.Adam",
        and_projection="",
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        raises=options.RAISES,
    )

    rule = AdamRule(decoupled=False)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
        super().__init__(
            params, options.given(locals(), refused=(*_TORCHS, "decoupled_weight_decay"))
        )


class AdamW(PlannedOptimizer):
    __doc__ = _DOC.format(
        summary="AdamW: Adam with decoupled decay.",
        coupled="",
        update="p.mul_(1 - lr * weight_decay)\n        p.add_(m_hat / (v_hat.sqrt() + eps), alpha=-lr)",
        equal="torch.optim.AdamW",
        friction_class="FrictionAdamW",
        source='Loshchilov and Hutter, "Decoupled Weight Decay Regularization", arXiv 1711.05101',
        choices="",
        decay_kind="decoupled (the parameter shrinks by lr * weight_decay)",
        weight_decay="1e-2",
        more_args=_TORCHS_ARGS,
        torchs="torch.optim.AdamW",
        and_projection="",
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        raises=options.RAISES,
    )

    rule = AdamRule(decoupled=True)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        amsgrad: bool = False,
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


class AdamP(PlannedOptimizer):
    __doc__ = _DOC.format(
        summary="AdamP: AdamW whose update does not grow scale-invariant weights.",
        coupled="",
        update="u = m_hat / (v_hat.sqrt() + eps)\n        " + PROJECTION,
        equal="AdamP of the package adamp",
        friction_class="SigSignAdamP and TanhSignAdamP each",
        source='Heo et al., "AdamP", arXiv 2006.08217',
        choices="; nesterov is of the authors' code",
        decay_kind="decoupled (the parameter shrinks by lr * weight_decay)",
        weight_decay="0.0",
        more_args=ADAMP_ARGS,
        torchs="adamp.AdamP",
        and_projection=" and projection",
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        raises=options.RAISES,
    )

    rule = AdamPRule()

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 0.0,
        delta: float | Tensor = 0.1,
        wd_ratio: float | Tensor = 0.1,
        nesterov: bool = False,
        *,
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
