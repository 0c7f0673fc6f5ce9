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
from bench.scenarios import OwnScenario

BATCH, CLASSES = 4, 10
ROUNDS, WARMUP_ROUNDS = 20, 3
COMPARED = {"SigSignAdamW": ADAMW_FUSED, "RSGDM": SGD_FUSED, ADAMW_FUSED: None, SGD_FUSED: None}
HEADER = [
    "ms",
    "in the loop",
    "alone",
    "fwd + bwd",
    "in the loop / alone",
    "in the loop / baseline",
]
WIDTHS = {"small ViT": 32, "wide ViT": 256}
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
    scenario: OwnScenario, device: str, rounds: int | None, deadline: float
) -> dict[str, Any]:
    """A scenario's part of the results, on the processor."""
    from examples.image_models import ViT

    torch.manual_seed(0)
    model = ViT(channels=3, image_size=32, classes=CLASSES, width=WIDTHS[scenario.model])
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(CLASSES, (BATCH,))
    by_name = {contender.name: contender for contender in OPTIMIZERS}
    runs = [Training(by_name[name], deepcopy(model), images, labels) for name in COMPARED]
    for _ in range(WARMUP_ROUNDS + (2 if scenario.quick else rounds or ROUNDS)):
        for run in runs:
            run.round()
    times = Times({run.name: dict(enumerate(run.in_loop[WARMUP_ROUNDS:])) for run in runs})
    rows = []
    for run in runs:
        in_loop, alone = run.in_loop[WARMUP_ROUNDS:], run.alone[WARMUP_ROUNDS:]
        seconds = median(in_loop), median(alone), median(run.backward[WARMUP_ROUNDS:])
        ratio = times.ratio(run.name, COMPARED[run.name]) if COMPARED[run.name] else None
        rows.append([run.name, *(f"{1e3 * each:.3g}" for each in seconds)])
        rows[-1] += [f"{median(a / b for a, b in zip(in_loop, alone, strict=True)):.2f}"]
        rows[-1] += [f"{ratio:.3f} of {COMPARED[run.name]}" if ratio else ""]
    return {"tables": [{"header": HEADER, "rows": rows}]}
