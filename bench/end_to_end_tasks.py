"""What is trained: the examples' ViT and ResNet on digits, and their GPT on Python's own sources.

Small, to be trained to an end many times; and large, so that a step is more than overhead.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))  # scripts, no package

from character_gpt import CHARACTERS, GPT
from command_line import at_least  # noqa: F401 - for others
from image_data import digits
from image_models import ResNet, ViT
from train_low_precision import Batch, Task, text_task

IMAGES_OF_A_BATCH = 32
CLASSES = 10


def digits_task(network: Callable[..., nn.Module]) -> Task:
    images = digits()
    inputs, labels = images.standardize(images.train_images), images.train_labels

    def batch(random: torch.Generator) -> Batch:
        rows = torch.randint(len(labels), (IMAGES_OF_A_BATCH,), generator=random)
        return inputs[rows], labels[rows]

    model = partial(network, *images.shape, images.classes)
    return Task(model, batch, (images.standardize(images.test_images), images.test_labels))


TASKS: dict[str, Callable[[], Task]] = {
    "ViT on digits": partial(digits_task, ViT),
    "ResNet on digits": partial(digits_task, ResNet),
    "GPT on Python's sources": text_task,  # 16 windows of 64 bytes a batch
}


@cache
def task_of(name: str) -> Task:
    return TASKS[name]()


def color_images(size: int, side: int) -> Tensor:
    return torch.randn(size, 3, side, side)


def windows(size: int, length: int) -> Tensor:
    return torch.randint(CHARACTERS, (size, length))


@dataclass(frozen=True)
class TimedModel:
    """A network and a batch of its inputs and classes; no time depends on what they mean."""

    model: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    classes: int
    batch: str

    def make(self) -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        model, inputs = self.model(), self.inputs()
        with torch.no_grad():
            targets = torch.randint(self.classes, model(inputs).shape[:-1])
        return model, inputs, targets


TIMED = {
    "ResNet": TimedModel(
        partial(ResNet, 3, 32, CLASSES, widths=(64, 128, 256, 512), blocks_per_stage=2),
        partial(color_images, 8, 32),
        CLASSES,
        "8 images of 32 x 32",
    ),
    "ViT": TimedModel(
        partial(ViT, 3, 32, CLASSES, width=512, depth=9, heads=8),
        partial(color_images, 8, 32),
        CLASSES,
        "8 images of 32 x 32",
    ),
    "GPT": TimedModel(
        partial(GPT, width=384, depth=8, heads=8),
        partial(windows, 8, 64),
        CHARACTERS,
        "8 windows of 64 bytes",
    ),
}
# For a quick look at whether all works.
MINIATURE = TimedModel(
    partial(ViT, 3, 8, CLASSES, width=16, depth=1), partial(color_images, 2, 8), CLASSES, "2 images"
)
