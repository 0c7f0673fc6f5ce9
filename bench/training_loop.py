"""A step's time inside a training loop against the same step alone.

In a loop torch's worker threads have just run the backward pass and may still be spinning. Step kernels
whose threads spin against them would be slower here, or slow the next forward pass, and would show it
nowhere else. torch's own fused optimizers are the control.
"""

import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from bench.contenders import ADAMW_FUSED, OPTIMIZERS, SGD_FUSED, Contender
from bench.rounds import Times
from bench.scenarios import StudyScenario
from examples.image_models import ViT

BATCH, CLASSES = 4, 10
ROUNDS, WARMUP_ROUNDS = 20, 3
COMPARED = {"SigSignAdamW": ADAMW_FUSED, "RSGDM": SGD_FUSED, ADAMW_FUSED: None, SGD_FUSED: None}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "small ViT": lambda: ViT(channels=3, image_size=32, classes=CLASSES),
    "wide ViT": lambda: ViT(channels=3, image_size=32, classes=CLASSES, width=256),
}
other_data = bytearray(64 * 2**20), memoryview(bytearray(64 * 2**20))


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fill_caches() -> None:
    """The backward pass leaves little of the state in cache, so a step alone must not find it.

    A plain copy by this thread: torch's workers go to sleep meanwhile.
    """
    source, target = other_data
    target[:] = source


class Training:
    def __init__(
        self, contender: Contender, model: nn.Module, images: Tensor, labels: Tensor
    ) -> None:
        self.name, self.model, self.images, self.labels = contender.name, model, images, labels
        self.step = contender.build(list(model.parameters())).step
        self.backward: list[float] = []
        self.in_loop: list[float] = []
        self.alone: list[float] = []

    def forward_backward(self) -> None:
        self.model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(self.images), self.labels).backward()

    def round(self) -> None:
        # The second iteration is the one kept: its forward pass follows this optimizer's step.
        self.forward_backward()
        self.step()
        self.backward.append(timed(self.forward_backward))
        self.in_loop.append(timed(self.step))
        fill_caches()
        self.alone.append(timed(self.step))


def measure_loop(
    scenario: StudyScenario,
    device: str,
    rounds: int | None,
    deadline: float,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """A scenario's part of the results: `seconds` are those in the loop. On the processor."""
    torch.manual_seed(0)
    model = MODELS[scenario.model]()
    parameters = list(model.parameters())
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(CLASSES, (BATCH,))
    by_name = {contender.name: contender for contender in OPTIMIZERS}
    runs = [Training(by_name[name], deepcopy(model), images, labels) for name in COMPARED]
    rounds = 2 if scenario.quick else rounds or ROUNDS
    for i in range(WARMUP_ROUNDS + rounds):
        for run in runs:
            run.round()
        advance((i + 1) / (WARMUP_ROUNDS + rounds))
    times = Times({run.name: dict(enumerate(run.in_loop[WARMUP_ROUNDS:])) for run in runs})
    rows = {}
    for run in runs:
        alone, backward = run.alone[WARMUP_ROUNDS:], run.backward[WARMUP_ROUNDS:]
        ratios = [a / b for a, b in zip(run.in_loop[WARMUP_ROUNDS:], alone, strict=True)]
        baseline = COMPARED[run.name]
        rows[run.name] = times.row(run.name) | {
            "ours": by_name[run.name].ours,
            "baseline": baseline,
            "ratio": times.ratio(run.name, baseline) if baseline else None,
            "alone_seconds": median(alone),
            "backward_seconds": median(backward),
            "loop_to_alone": median(ratios),
        }
    return {
        "model": scenario.model,
        "tensors": len(parameters),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "rows": rows,
        "missing": {},
    }
