"""Time of whole training steps, by optimizer: forward, backward and the step itself.

Every optimizer has a copy of the model. They take turns, so that what else the machine does meets all
alike, and two are compared by the median ratio of their times within a turn.
"""

import gc
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bench.end_to_end_optimizers import (
    ADAM_RATES,
    ADAMW_FUSED,
    SGD_FUSED,
    SGD_RATES,
    TIMED,
    Entrant,
)
from bench.end_to_end_tasks import TimedModel

WARM_UP_TURNS = 1


@dataclass
class Trainer:
    """Seconds of each turn: of the forward and backward pass, and of the optimizer's step."""

    entrant: Entrant
    model: nn.Module
    passes: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        rate = min(ADAM_RATES if self.entrant.adaptive else SGD_RATES)
        self.optimizer = self.entrant.build(self.model.parameters(), rate)

    def train(self, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
        begin = time.perf_counter()
        self.optimizer.zero_grad()
        cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten()).backward()
        middle = time.perf_counter()
        self.optimizer.step()
        return middle - begin, time.perf_counter() - middle

    def turn(self, inputs: Tensor, targets: Tensor) -> None:
        # The second step counts: what is in the caches then is this optimizer's doing.
        self.train(inputs, targets)
        passes, step = self.train(inputs, targets)
        self.passes.append(passes)
        self.steps.append(step)

    @property
    def whole(self) -> list[float]:
        return [a + b for a, b in zip(self.passes, self.steps, strict=True)]


def spread(seconds: list[float]) -> dict[str, Any]:
    quartiles = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else 3 * seconds
    return {"median": median(seconds), "quartiles": [quartiles[0], quartiles[2]]}


def ratio(ours: list[float], theirs: list[float]) -> float:
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def step_times(timed: TimedModel, turns: int, after_turn: Callable[[], object]) -> dict[str, Any]:
    """Of each optimizer: seconds, the optimizer's share, and ratios to torch's fused one of its kind."""
    model, inputs, targets = timed.make()
    trainers = {name: Trainer(entrant, deepcopy(model)) for name, entrant in TIMED.items()}
    gc.collect()
    gc.disable()
    try:
        for turn in range(WARM_UP_TURNS + turns):
            for trainer in trainers.values():
                trainer.turn(inputs, targets)
                if turn < WARM_UP_TURNS:
                    trainer.passes.clear()
                    trainer.steps.clear()
            after_turn()
    finally:
        gc.enable()
    rows = {}
    for name, trainer in trainers.items():
        against = ADAMW_FUSED if trainer.entrant.adaptive else SGD_FUSED
        rows[name] = {
            "step": spread(trainer.whole),
            "passes": spread(trainer.passes),
            "optimizer": spread(trainer.steps),
            "share": ratio(trainer.steps, trainer.whole),
            "against": against,
            "step_ratio": ratio(trainer.whole, trainers[against].whole),
            "optimizer_ratio": ratio(trainer.steps, trainers[against].steps),
        }
    parameters = list(model.parameters())
    return {
        "parameters": sum(parameter.numel() for parameter in parameters),
        "tensors": len(parameters),
        "batch": timed.batch,
        "turns": turns,
        "rows": rows,
    }
