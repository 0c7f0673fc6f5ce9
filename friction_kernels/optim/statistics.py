"""What the friction does: mean and standard deviation of S at the last step."""

from __future__ import annotations

import math
from operator import add
from typing import NamedTuple

from friction_kernels.equations import NEUTRAL_FRICTION
from friction_kernels.optim.friction_adam import FrictionAdam
from friction_kernels.optim.planning import StepPlan


class FrictionStats(NamedTuple):
    """S over `count` elements of a group; `mean` and `std` are nan where none was stepped."""

    mean: float
    std: float
    count: int  # type: ignore[assignment]  # in the place of tuple.count


def friction_stats(opt: FrictionAdam) -> list[FrictionStats]:
    """Mean and standard deviation of the friction S at the last step, for each parameter group.

    S is 1/2 (sigmoid) or 1 (tanh) where friction does nothing. A standard deviation near zero says
    that it does nothing anywhere, which is usual for friction_input="product"; try "normalized".

    Source of S: arXiv 2408.11839; what is measured of it is this library's.

    Args:
        opt: one of the friction optimizers, after at least one step.

    Returns:
        one FrictionStats(mean, std, count) for each group; a step that was skipped is over no element.

    S needs the gradient that a step
    replaces, so a native step leaves two sums for every eighth block of 2,048 elements (the first of
    each tensor always), and the statistics are put together from them when asked for: they are exact
    for tensors of up to 2,048 elements, and a sample of an eighth for larger ones. After a reference
    step they are over all elements. Of parameters that are spread over processes, all of it is of this
    process's parts.

    Raises:
        TypeError: another optimizer, which has no friction.
        RuntimeError: no step has been made yet.
    """
    if not isinstance(opt, FrictionAdam):
        raise TypeError(
            f"{type(opt).__name__} has no friction; friction_stats takes a friction optimizer"
        )
    plans = [] if opt._released is None else list(opt._released.plans())
    if opt._plan is not None:
        plans.append((0, opt._plan))
    if not plans:
        raise RuntimeError("friction_stats needs a step: call it after opt.step()")
    sums = [(0, 0.0, 0.0)] * max(first + len(plan.choices) for first, plan in plans)
    for first, plan in plans:
        ours = _sums_of(plan, NEUTRAL_FRICTION[opt.friction])
        for group, of_group in enumerate(ours, start=first):
            sums[group] = tuple(map(add, sums[group], of_group))
    return [_stats(NEUTRAL_FRICTION[opt.friction], *group) for group in sums]


def _sums_of(plan: StepPlan, neutral: float) -> list[tuple[int, float, float]]:
    """Of each group: how many elements, the sum of S - neutral, and that of its squares."""
    groups = len(plan.choices)
    sums = [(0, 0.0, 0.0)] * groups
    if plan.native is not None:
        sums = plan.native.observations(groups)
    if plan.reference:
        for index, frictions in enumerate(plan.observed):
            for s in frictions:
                deviation = s.double() - neutral
                count, total, square_total = sums[index]
                sums[index] = (
                    count + s.numel(),
                    total + deviation.sum().item(),
                    square_total + deviation.square().sum().item(),
                )
    return sums


def _stats(neutral: float, count: int, total: float, square_total: float) -> FrictionStats:
    if count == 0:
        return FrictionStats(math.nan, math.nan, 0)
    mean = total / count
    return FrictionStats(neutral + mean, math.sqrt(max(square_total / count - mean**2, 0.0)), count)
