"""Parameter shapes of the benchmarked models, written out from their architectures.

Only shapes reach an optimizer, so a benchmark needs neither weights nor torchvision.
"""

from collections.abc import Callable
from functools import partial
from math import prod

Shape = tuple[int, ...]


def norm(channels: int) -> list[Shape]:
    return [(channels,), (channels,)]


def linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]


def conv_bn(inputs: int, outputs: int, kernel: int) -> list[Shape]:
    return [(outputs, inputs, kernel, kernel), *norm(outputs)]


def transformer_block(width: int) -> list[Shape]:
    attention = [*norm(width), *linear(width, 3 * width), *linear(width, width)]
    return [*attention, *norm(width), *linear(width, 4 * width), *linear(4 * width, width)]


def resnet50() -> list[Shape]:
    """As torchvision's ``resnet50``."""
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
    """As torchvision's ``vit_b_16`` at 224 pixels."""
    width, patch = 768, 16
    tokens = (224 // patch) ** 2 + 1
    shapes: list[Shape] = [(1, 1, width), (width, 3, patch, patch), (width,), (1, tokens, width)]
    for _ in range(12):
        shapes += transformer_block(width)
    return shapes + norm(width) + linear(width, 1000)


def gpt2() -> list[Shape]:
    """GPT-2 small, its head tied to the embedding."""
    width = 768
    blocks = [shape for _ in range(12) for shape in transformer_block(width)]
    return [(50_257, width), (1024, width), *blocks, *norm(width)]


def llama_layer(width: int, key_value: int, hidden: int) -> list[Shape]:
    attention = [(width, width), (key_value, width), (key_value, width), (width, width)]
    mlp = [(hidden, width), (hidden, width), (width, hidden)]
    return [*attention, *mlp, (width,), (width,)]


def llama_1b(layers: int = 16) -> list[Shape]:
    """Llama 3.2 1B (its head is tied to the embedding), or as many of its layers."""
    width = 2048
    blocks = [shape for _ in range(layers) for shape in llama_layer(width, 512, 8192)]
    return [(128_256, width), *blocks, (width,)]


def llama_7b_layers() -> list[Shape]:
    """8 of the 32 layers of Llama 2 7B."""
    return [shape for _ in range(8) for shape in llama_layer(4096, 4096, 11_008)]


def vectors(count: int) -> list[Shape]:
    """Tensors of 16 elements: what a step costs when there is almost nothing to compute."""
    return [(16,)] * count


def miniature() -> list[Shape]:
    """For trials: of each kind of tensor one."""
    return [(64, 3, 7, 7), (64,), (129, 257), (), (5000,)]


def zoo(name: str) -> list[Shape]:
    """What is trained of a model of examples/zoo, whose data have to be there."""
    from examples.zoo import fetch, workload  # the examples are no part of the package

    model = workload.load(name, fetch.cache_folder()).model()
    return [tuple(param.shape) for param in model.parameters() if param.requires_grad]


COUNTS = (10, 100, 1000, 10_000)  # of tensors
MODELS: dict[str, Callable[[], list[Shape]]] = {
    "resnet50": resnet50,
    "vit_b_16": vit_b_16,
    "gpt2": gpt2,
    "llama_1b": llama_1b,
    "llama_1b_4_of_16_layers": partial(llama_1b, 4),
    "llama_7b_8_of_32_layers": llama_7b_layers,
    "tiny": partial(vectors, 1000),
    **{f"vectors_{n}": partial(vectors, n) for n in COUNTS},
    "miniature": miniature,
}


ZOO = "zoo/"  # before the name of a model of examples/zoo


def shapes_of(model: str) -> list[Shape]:
    return zoo(model.removeprefix(ZOO)) if model.startswith(ZOO) else MODELS[model]()


def elements(shapes: list[Shape]) -> int:
    return sum(map(prod, shapes))
