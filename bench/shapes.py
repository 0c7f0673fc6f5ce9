"""Parameter shapes of the benchmarked models, written out from their architectures.

Only shapes reach an optimizer, so a benchmark needs neither weights nor torchvision.
``python -m bench.shapes`` checks the counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


def batch_norm(channels: int) -> list[Shape]:
    return [(channels,), (channels,)]


layer_norm = batch_norm


def linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]


def conv_bn(inputs: int, outputs: int, kernel: int) -> list[Shape]:
    return [(outputs, inputs, kernel, kernel), *batch_norm(outputs)]


def resnet50() -> list[Shape]:
    """161 tensors, 25,557,032 parameters, as torchvision's ``resnet50``."""
    shapes = conv_bn(3, 64, 7)
    channels = 64
    for width, blocks in zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True):
        outputs = 4 * width
        for block in range(blocks):
            shapes += conv_bn(channels, width, 1)
            shapes += conv_bn(width, width, 3)
            shapes += conv_bn(width, outputs, 1)
            if block == 0:
                shapes += conv_bn(channels, outputs, 1)
            channels = outputs
    return shapes + linear(channels, 1000)


def vit_b_16() -> list[Shape]:
    """152 tensors, 86,567,656 parameters, as torchvision's ``vit_b_16`` at 224 pixels."""
    width, patch = 768, 16
    tokens = (224 // patch) ** 2 + 1
    shapes: list[Shape] = [(1, 1, width), (width, 3, patch, patch), (width,), (1, tokens, width)]
    for _ in range(12):
        shapes += layer_norm(width)
        shapes += linear(width, 3 * width) + linear(width, width)
        shapes += layer_norm(width)
        shapes += linear(width, 4 * width) + linear(4 * width, width)
    return shapes + layer_norm(width) + linear(width, 1000)


def tiny() -> list[Shape]:
    """1,000 tensors of 16 elements: what a step costs when there is almost nothing to compute."""
    return [(16,)] * 1000


@dataclass(frozen=True)
class Model:
    shapes: Callable[[], list[Shape]]
    tensors: int
    parameters: int

    def check(self) -> None:
        shapes = self.shapes()
        assert len(shapes) == self.tensors, (len(shapes), self.tensors)
        total = sum(prod(shape) for shape in shapes)
        assert total == self.parameters, (total, self.parameters)


MODELS = {
    "resnet50": Model(resnet50, tensors=161, parameters=25_557_032),
    "vit_b_16": Model(vit_b_16, tensors=152, parameters=86_567_656),
    "tiny": Model(tiny, tensors=1000, parameters=16_000),
}


if __name__ == "__main__":
    for name, model in MODELS.items():
        model.check()
        print(f"{name}: {model.tensors:,} tensors, {model.parameters:,} parameters")
