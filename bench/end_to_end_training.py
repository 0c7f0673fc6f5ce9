"""One training from its first step to its last: everything that is random comes from its seed."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from bench.end_to_end_tasks import Batch, task_of

WARM_UP = 0.1  # of the steps; thereafter the rate falls as a cosine
LAST = 0.1  # of the steps, over which the last training loss is averaged
POINTS = 25  # of a curve
# Called before each step of the optimizer, whose gradients are there.
Look = Callable[[int, nn.Module, Optimizer], None]


@dataclass(frozen=True)
class Trained:
    """Losses are cross-entropies in nats; all but the curve are nan where the training diverged.

    curve: the training loss, averaged over as many equal parts of the training.
    """

    first_loss: float
    training_loss: float
    test_loss: float
    accuracy: float
    curve: list[float]


def train(
    task_name: str,
    build: Callable[..., Optimizer],
    seed: int,
    steps: int,
    look: Look | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    """build: makes the optimizer of the model's parameters, at its highest rate; dtype: theirs."""
    torch.set_num_threads(1)  # threads would wait for each other longer than such models take
    task = task_of(task_name)
    torch.manual_seed(seed)
    model = task.model().to(dtype)  # of the same numbers in every type
    random = torch.Generator().manual_seed(seed)
    optimizer = build(model.parameters())
    highest = optimizer.param_groups[0]["lr"]
    schedule = OneCycleLR(
        optimizer, highest, total_steps=steps + 1, pct_start=WARM_UP, cycle_momentum=False
    )
    losses: list[float] = []
    for step in range(1, steps + 1):
        loss = cross_entropy(*outputs_and_targets(model, task.batch(random)))
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            return Trained(losses[0], math.nan, math.nan, math.nan, curve_of(losses))
        optimizer.zero_grad()
        loss.backward()
        if look is not None:
            look(step, model, optimizer)
        optimizer.step()
        schedule.step()
    test_loss, accuracy = test(model, task.test)
    last = max(1, round(LAST * steps))
    return Trained(losses[0], fmean(losses[-last:]), test_loss, accuracy, curve_of(losses))


def outputs_and_targets(model: nn.Module, batch: Batch) -> Batch:
    inputs, targets = batch
    if inputs.is_floating_point():
        inputs = inputs.to(next(model.parameters()).dtype)
    return model(inputs).flatten(0, -2), targets.flatten()


@torch.no_grad()
def test(model: nn.Module, batch: Batch) -> tuple[float, float]:
    """The loss, and the share of right answers, on data that was not trained on."""
    model.eval()
    logits, targets = outputs_and_targets(model, batch)
    right = (logits.argmax(dim=1) == targets).double().mean().item()
    return cross_entropy(logits, targets).item(), right


def curve_of(losses: list[float]) -> list[float]:
    points = min(POINTS, len(losses))
    edges = [round(i * len(losses) / points) for i in range(points + 1)]
    return [fmean(losses[a:b]) for a, b in itertools.pairwise(edges)]
