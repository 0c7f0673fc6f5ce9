"""A step's time inside a training loop against the same step alone.

In a loop torch's worker threads have just run the backward pass and may still be spinning. Step
kernels whose threads spin against them would be slower here, or slow the next forward pass, and
would show it nowhere else. torch's own fused optimizers are the control.
``python -m bench.bench_training_loop``
"""

import argparse
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from bench.baselines import ADAMW_FUSED, CONTENDERS, SGD_FUSED, Contender
from examples.image_models import ViT

BATCH, CLASSES = 4, 10
WARMUP_ROUNDS = 3
COMPARED = ("SigSignAdamW", ADAMW_FUSED, "RSGDM", SGD_FUSED)
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


@dataclass
class Training:
    contender: Contender
    model: nn.Module
    images: Tensor
    labels: Tensor
    backward: list[float] = field(default_factory=list)
    in_loop: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.step = self.contender.build(list(self.model.parameters()))

    def forward_backward(self) -> None:
        self.model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(self.images), self.labels).backward()

    def train(self) -> None:
        self.backward.append(timed(self.forward_backward))
        self.in_loop.append(timed(self.step))

    def round(self) -> None:
        # The second iteration is the one kept: its forward pass follows this optimizer's step.
        self.train()
        self.train()
        del self.backward[-2], self.in_loop[-2]
        fill_caches()
        self.alone.append(timed(self.step))


def measure(model: nn.Module, rounds: int) -> list[Training]:
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(CLASSES, (BATCH,))
    by_name = {contender.name: contender for contender in CONTENDERS}
    runs = [Training(by_name[name], deepcopy(model), images, labels) for name in COMPARED]
    for _ in range(WARMUP_ROUNDS + rounds):
        for run in runs:
            run.round()
    for run in runs:
        for times in (run.backward, run.in_loop, run.alone):
            del times[:WARMUP_ROUNDS]
    return runs


def table(title: str, runs: list[Training]) -> Table:
    result = Table(title=title)
    result.add_column("optimizer", no_wrap=True)
    for header in ("fwd+bwd ms", "in loop µs", "alone µs", "loop / alone"):
        result.add_column(header, justify="right")
    for run in runs:
        ratios = [a / b for a, b in zip(run.in_loop, run.alone, strict=True)]
        result.add_row(
            run.contender.name,
            f"{median(run.backward) * 1e3:.1f}",
            f"{median(run.in_loop) * 1e6:.0f}",
            f"{median(run.alone) * 1e6:.0f}",
            f"{median(ratios):.2f}",
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, help="by default torch's number")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for name, build in MODELS.items():
        model = build()
        parameters = list(model.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        title = f"{name}: {len(parameters)} tensors, {count:,} parameters"
        Console().print(table(title, measure(model, options.rounds)))


if __name__ == "__main__":
    main()
