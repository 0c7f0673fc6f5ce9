"""diffGrad: Adam scaled by the change of the gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from friction_kernels.backends import Backend
from friction_kernels.optim import options
from friction_kernels.optim.adam_rule import FrictionAdamRule
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.options import Master, Rounding, StateDtype
from friction_kernels.optim.taking import TAKE_GRADIENTS

_DOC = """{summary}

    Equals, for every parameter p with gradient g (negated if `maximize`), at its t-th step:

        {coupled}exp_avg.mul_(beta1).add_(g, alpha=1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m_hat = exp_avg / (1 - beta1**t)
        v_hat = exp_avg_sq / (1 - beta2**t)
        S = torch.sigmoid(beta3 * (prev_grad - g).abs())
        prev_grad.copy_(g)
        {decay}p.add_(S * m_hat / (v_hat.sqrt() + eps), alpha=-lr)

    S is between 1/2, where the gradient does not change, and 1. At usual gradient scales (|g| near 1e-3) it
    stays close to 1/2: the optimizer is then {base} at half the learning rate.
    `friction_kernels.friction_stats(opt)` reports the distribution of S.

    Source: Dubey et al., "diffGrad: An Optimization Method for Convolutional Neural Networks",
    arXiv 1909.11015. Published: the update with beta3 = 1{published}. The authors' code adds eps
    to the root of exp_avg_sq instead of v_hat's; this class follows the paper. Choices of this library:
    beta3 as an option, a zero gradient before the first{choices}.

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
        beta3: strength of the friction, at least 0; 0 makes S = 1/2 (default 1.0).
        maximize: maximize the objective (default False).
        {take_gradients}
        {shared_args}

    State: `step`, `exp_avg`, `exp_avg_sq`, `prev_grad`.
    {extra_states}
    A state_dict of {base} loads, from here and from torch.optim.{base}, with a prev_grad that
    starts at zero, and this one's loads there.

    Raises:
        {raises}
    """


class DiffGrad(PlannedOptimizer):
    __doc__ = _DOC.format(
        summary="diffGrad: Adam scaled by the change of the gradient.",
        coupled="g = g + weight_decay * p\n        ",
        decay="",
        base="Adam",
        published=", and the coupled decay",
        choices="",
        decay_kind="coupled (added to the gradient, as in torch.optim.Adam)",
        weight_decay="0.0",
        take_gradients=TAKE_GRADIENTS,
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        raises=options.RAISES,
    )

    rule = FrictionAdamRule("diff", decoupled=False)

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


class DiffGradW(PlannedOptimizer):
    __doc__ = _DOC.format(
        summary="diffGrad with AdamW's decoupled decay.",
        coupled="",
        decay="p.mul_(1 - lr * weight_decay)\n        ",
        base="AdamW",
        published="",
        choices=", the decoupled decay",
        decay_kind="decoupled (as in torch.optim.AdamW)",
        weight_decay="1e-2",
        take_gradients=TAKE_GRADIENTS,
        shared_args=options.ARGS,
        extra_states=options.EXTRA_STATES,
        raises=options.RAISES,
    )

    rule = FrictionAdamRule("diff", decoupled=True)

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
