"""The models of the GPU report: what the CPU's benchmarks have, and Llamas that fit a card of 78 GiB.

``python -m bench.gpu_shapes`` checks the counts.
"""

from bench.shapes import MODELS, Model, Shape


def llama_layer(width: int, key_value: int, hidden: int) -> list[Shape]:
    attention = [(width, width), (key_value, width), (key_value, width), (width, width)]
    mlp = [(hidden, width), (hidden, width), (width, hidden)]
    return [*attention, *mlp, (width,), (width,)]


def llama_1b() -> list[Shape]:
    """146 tensors, 1,235,814,400 parameters, as Llama 3.2 1B (its head is tied to the embedding)."""
    width = 2048
    layers = [shape for _ in range(16) for shape in llama_layer(width, 512, 8192)]
    return [(128_256, width), *layers, (width,)]


def llama_7b_layers() -> list[Shape]:
    """8 of the 32 layers of Llama 2 7B: 72 tensors, 1,619,066,880 parameters."""
    return [shape for _ in range(8) for shape in llama_layer(4096, 4096, 11_008)]


def miniature() -> list[Shape]:
    """For dry runs: of each kind of tensor one."""
    return [(64, 3, 7, 7), (64,), (129, 257), (), (5000,)]


GPU_MODELS = {
    "resnet50": MODELS["resnet50"],
    "vit_b_16": MODELS["vit_b_16"],
    "llama_1b": Model(llama_1b, tensors=146, parameters=1_235_814_400),
    "llama_7b_layers": Model(llama_7b_layers, tensors=72, parameters=1_619_066_880),
    "tiny": MODELS["tiny"],
}


if __name__ == "__main__":
    for name, model in GPU_MODELS.items():
        model.check()
        print(f"{name}: {model.tensors:,} tensors, {model.parameters:,} parameters")
