"""One training of one model with one optimizer, and what is measured of it."""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from examples.zoo.optimizers import Setting
from examples.zoo.workload import Workload

FIRST_STEPS = 3  # they allocate, and load libraries
WARM_UP = 0.05  # of the steps


@dataclass
class Run:
    """Losses and seconds are one a step."""

    workload: str
    optimizer: str
    lr: float
    seed: int
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)  # forward, backward and update
    update_seconds: list[float] = field(default_factory=list)
    score: float = math.nan  # the workload's metric
    details: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    state_bytes: int = 0  # of the optimizer

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.score) or not math.isfinite(self.losses[-1])

    @property
    def step_ms(self) -> float:
        return milliseconds(self.step_seconds)

    @property
    def update_ms(self) -> float:
        return milliseconds(self.update_seconds)


def milliseconds(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds[FIRST_STEPS:] or seconds)


def train(
    workload: Workload,
    setting: Setting,
    seed: int,
    *,
    model: nn.Module | None = None,
    lr: float | None = None,
    steps: int | None = None,
    backend: str = "auto",
    advance: Callable[[], None] = lambda: None,
) -> Run:
    """Train on the seed's batches; `advance` is called after each step.

    model: left trained; default a new one, with the seed's weights.
    """
    lr = setting.rate(workload) if lr is None else lr
    steps = workload.steps if steps is None else steps
    run = Run(workload.name, setting.text, lr, seed)
    torch.manual_seed(seed)
    model = (workload.model() if model is None else model).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = setting.optimizer(trained, lr, backend)
    schedule = LambdaLR(optimizer, lambda step: rate_factor(step, steps))
    for batch in itertools.islice(workload.batches(seed), steps):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = workload.backward(model, batch)
        computed = time.perf_counter()
        optimizer.step()
        ended = time.perf_counter()
        schedule.step()
        run.step_seconds.append(ended - started)
        run.update_seconds.append(ended - computed)
        run.losses.append(loss.item())
        advance()
        if not math.isfinite(run.losses[-1]):
            break
    else:
        with torch.no_grad():
            run.score = workload.evaluate(model.eval())
            run.details = workload.details(model)
    run.parameters = sum(p.numel() for p in trained)
    run.state_bytes = state_bytes(optimizer)
    return run


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def state_bytes(optimizer: Optimizer) -> int:
    states = itertools.chain.from_iterable(s.values() for s in optimizer.state.values())
    return sum(value.nbytes for value in states if isinstance(value, Tensor))
