"""Trainings whose states are stored in few bits after each step: of the models of an example."""

import math
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bench.quantiser_maps import Scheme
from friction_kernels import RSGDM, SigSignAdamW
from friction_kernels.optim.packed import BLOCK

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))  # scripts, no package

from train_low_precision import RATE, TASKS, Batch, Task, logits_and_targets

RATES = {"ViT on digits": {RSGDM: 0.3}, "GPT on Python's sources": {RSGDM: 1.0}}


@cache
def task_of(name: str) -> Task:
    return TASKS[name]()


class Training:
    def __init__(self, name: str, optimizer: type, steps: int, seed: int = 0) -> None:
        self.task, self.steps = task_of(name), steps
        torch.manual_seed(seed)
        self.random = torch.Generator().manual_seed(seed)
        self.model = self.task.model()
        options = {"friction_input": "normalized"} if optimizer is SigSignAdamW else {}
        rate = RATES[name].get(optimizer, RATE)
        self.optimizer = optimizer(self.model.parameters(), lr=rate, **options)
        self.losses: list[float] = []

    def loss(self, batch: Batch) -> Tensor:
        return cross_entropy(*logits_and_targets(self.model, batch))

    def run(self, scheme: Scheme | None = None) -> Iterator[tuple[int, bool]]:
        """Yields each step, with its gradients there, and whether to look: early, midway, last."""
        group = self.optimizer.param_groups[0]
        # Not at states of the first step: some layers start at zero, and those before have no gradient.
        early = max(3, self.steps // 8)
        rate, looks = group["lr"], (early, self.steps // 2, self.steps)
        for step in range(1, self.steps + 1):
            cosine = 0.5 + 0.5 * math.cos(math.pi * step / self.steps)
            group["lr"] = rate * min(10 * step / self.steps, cosine)
            self.optimizer.zero_grad()
            loss = self.loss(self.task.batch(self.random))
            loss.backward()
            self.losses.append(loss.item())
            yield step, step in looks
            self.optimizer.step()
            for state in self.optimizer.state.values() if scheme else ():
                for name, tensor in state.items():
                    if tensor.numel() >= BLOCK:
                        tensor.copy_(scheme.round_trip(name, tensor, step))

    def final_losses(self, scheme: Scheme | None = None) -> Tensor:
        """Of the last steps, and on other data."""
        for _ in self.run(scheme):
            pass
        with torch.no_grad():
            return torch.tensor([fmean(self.losses[-20:]), self.loss(self.task.test)])
