"""Friction statistics: mean and standard deviation of S in the upcoming step."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from friction_kernels.equations import NEUTRAL_FRICTION
from friction_kernels.optim.adam_rule import FrictionAdamRule
from friction_kernels.optim.base import PlannedOptimizer, is_applied
from friction_kernels.optim.diffgrad import DiffGrad, DiffGradW
from friction_kernels.optim.friction_adam import FrictionAdam, FrictionAdamW
from friction_kernels.optim.planning import StepPlan


class FrictionStats(NamedTuple):
    """S over `count` elements of a group; `mean` and `std` are nan if there are none."""

    mean: float
    std: float
    count: int  # type: ignore[assignment]  # shadows tuple.count


@torch.no_grad()
def friction_stats(opt: FrictionAdam | FrictionAdamW | DiffGrad | DiffGradW) -> list[FrictionStats]:
    """Mean and standard deviation of the friction S in the next step, for each parameter group.

    Call it between backward() and step(): S depends on the previous gradient and the one about to be
    applied, with its clipping, loss scale, `maximize` and coupled decay. It is computed over every element
    that has a gradient, in one launch that changes no parameter, and one for the norm if a group clips.
    (States that do not exist yet are created, as zeros.) Which gradients are about to be applied is told
    by the first one that a step updates: replace all of them, or none.

        loss.backward()
        print(friction_stats(opt))
        opt.step()

    S is 1/2 (sigmoid, diffGrad) or 1 (tanh) where friction has no effect. A standard deviation near zero
    means that it has no effect anywhere, which is usual for friction_input="product"; try "normalized".

    Source of S: arXiv 2408.11839; these statistics are this library's.

    Args:
        opt: one of the friction optimizers. If a torch.amp.GradScaler scaled the loss, call
            scaler.unscale_(opt) first.

    Returns:
        one FrictionStats(mean, std, count) for each group; a step that will be skipped covers no elements.
        For sharded parameters they cover this process's parts only, and all processes must call this
        function if a norm is taken over them. Waits for GPUs.

    Raises:
        TypeError: another optimizer, which has no friction.
        RuntimeError: no gradient is about to be applied, because none was computed, step() has applied it
            already, or release_gradients applies each as it arrives; or the step cannot be made.
    """
    if not isinstance(opt, PlannedOptimizer) or not isinstance(opt.rule, FrictionAdamRule):
        raise TypeError(
            f"{type(opt).__name__} has no friction; friction_stats takes a friction optimizer"
        )
    opt._check_step()
    check_gradients(opt, "friction_stats")
    opt._plan, sums = opt._with_plan(StepPlan.statistics, opt._plan, opt.param_groups)
    return [_stats(NEUTRAL_FRICTION[opt.rule.friction], *group) for group in sums]


def check_gradients(opt: PlannedOptimizer, caller: str) -> None:
    """Raise unless there are gradients that a step has yet to apply."""
    if opt._released is not None:
        raise RuntimeError(
            "release_gradients applies each gradient as it comes, so that there is none between backward() "
            "and step(); measure without the release"
        )
    params = (param for group in opt.param_groups for param in group["params"])
    grads = [param.grad for param in params if param.grad is not None]
    if not grads:
        raise RuntimeError(
            f"there is no gradient: call {caller} between backward() and step(), before zero_grad()"
        )
    if any(map(is_applied, grads)):
        raise RuntimeError(
            f"step() has applied these gradients already: call {caller} between backward() and step()"
        )


def _stats(neutral: float, count: int, total: float, square_total: float) -> FrictionStats:
    if count == 0:
        return FrictionStats(math.nan, math.nan, 0)
    mean = total / count
    return FrictionStats(neutral + mean, math.sqrt(max(square_total / count - mean**2, 0.0)), count)
