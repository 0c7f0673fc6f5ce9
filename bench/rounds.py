"""Round-robin timing: every contender steps once a round, on its own parameters.

A busy machine slows whatever runs at that moment, so two contenders are compared by the ratio
of their times within a round, and the median of those ratios is reported.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles

import torch
from torch import Tensor

from bench.baselines import Contender, Step
from bench.shapes import Shape
from friction_kernels import count_launches

SLOW_EVERY = 4
WARMUP_STEPS = 3


@dataclass
class Times:
    """Seconds of each contender by round, and how many kernels our contenders launch a step."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    launches: dict[str, int] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return median(self.seconds[name].values())

    def quartiles(self, name: str) -> tuple[float, float]:
        times = list(self.seconds[name].values())
        if len(times) < 2:
            return times[0], times[0]
        low, _, high = quantiles(times, n=4, method="inclusive")
        return low, high

    def ratio(self, name: str, against: str) -> float:
        """The median, over the rounds that both ran in, of their times' ratio."""
        mine, theirs = self.seconds[name], self.seconds[against]
        return median(mine[i] / theirs[i] for i in mine.keys() & theirs.keys())


class Entry:
    """A contender with parameters and state of its own.

    The parameters' and gradients' memory is common to all, because 13 copies of a large model would
    not fit; no time depends on their values.
    """

    def __init__(self, contender: Contender, values: list[Tensor], grads: list[Tensor]) -> None:
        self.contender = contender
        self.grads = grads
        self.params = [value.detach().requires_grad_() for value in values]
        self.set_gradients(grads)
        self.step: Step = contender.build(self.params)

    def set_gradients(self, grads: list[Tensor]) -> None:
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad

    def timed_steps(self, steps: int) -> float:
        return median(self.timed_step() for _ in range(steps))

    def prepare(self) -> None:
        if self.contender.new_gradients:
            # Cloned while the last ones still live, so that their addresses change too.
            self.set_gradients([grad.clone() for grad in self.grads])

    def timed_step(self) -> float:
        self.prepare()
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start


def tensors_of(shapes: Sequence[Shape]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameter values and gradients of a plausible size."""
    torch.manual_seed(0)
    values = [torch.randn(shape).mul_(0.02) for shape in shapes]
    return values, [torch.randn(shape).mul_(0.01) for shape in shapes]


def measure(
    contenders: Sequence[Contender], shapes: Sequence[Shape], rounds: int, steps: int
) -> Times:
    """Times by round: the median of that many steps in a row.

    Where a step is short, the first of them mostly waits for what the other contenders drove out
    of the caches.
    """
    values, grads = tensors_of(shapes)
    entries = [Entry(contender, values, grads) for contender in contenders]
    times = Times()
    for entry in entries:
        entry.timed_steps(1 if entry.contender.slow else WARMUP_STEPS)
        if entry.contender.ours:
            with count_launches() as launches:
                entry.timed_step()
            times.launches[entry.contender.name] = launches.total
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for entry in entries:
                if i % SLOW_EVERY == 0 or not entry.contender.slow:
                    seconds = times.seconds.setdefault(entry.contender.name, {})
                    seconds[i] = entry.timed_steps(steps)
    finally:
        gc.enable()
    del entry, entries
    gc.collect()
    return times
