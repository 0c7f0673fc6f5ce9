"""A small run of every kernel for compute-sanitizer: ``compute-sanitizer python -m bench.gpu_sanitize``.

With PYTORCH_NO_CUDA_MEMORY_CACHING=1 each tensor is an allocation of its own, so that an access
beyond it is seen. Numbers are made on the processor and copied, and no statistics are read: they copy
whole buffers of which a step fills the slots that count, and initcheck would name the rest.
"""

import argparse

import torch

from friction_kernels import OPTIMIZERS

# Tails of vectors and chunks; AdamP's rows summed by a thread, a warp, a block, and over many stages.
SHAPES = [(1,), (3,), (2047,), (2048,), (2049,), (5, 3), (64, 40), (3, 700), (2, 70_000), (0,)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64]
STEPS = 2
# One of each kernel; the other classes differ in numbers alone.
OPTIONS = {
    "AdamW": {},
    "SigSignAdamW": {},
    "TanhSignAdamP": {"friction_input": "normalized", "nesterov": True},
    "RSGDM": {"weight_decay": 0.1},
}


def make(shape, dtype, device, layout):
    """A parameter and its gradient; `gaps` are strides of two, `offset` begins at an odd place."""

    def random() -> torch.Tensor:
        tensor = torch.randn(shape, dtype=dtype)
        if layout == "offset":
            whole = torch.cat([tensor.new_zeros(1), tensor.reshape(-1)]).to(device)
            return whole[1:].view(shape)
        if layout == "gaps":
            return torch.stack([tensor, tensor], dim=-1).to(device)[..., 0]
        return tensor.to(device)

    param = random().requires_grad_()
    param.grad = random()
    return param


def run(device: str) -> int:
    torch.manual_seed(0)
    steps = 0
    for name, options in OPTIONS.items():
        for capturable in (False, True):
            params = [make(s, dtype, device, "contiguous") for dtype in DTYPES for s in SHAPES]
            params += [make(s, DTYPES[0], device, "offset") for s in SHAPES]
            params += [make(s, DTYPES[0], device, "gaps") for s in SHAPES]
            # More than a launch's parameters hold: the table lies in device memory.
            params += [make((5,), DTYPES[0], device, "contiguous") for _ in range(700)]
            opt = OPTIMIZERS[name](params, backend="native", capturable=capturable, **options)
            for _ in range(STEPS):
                opt.step()
                steps += 1
            assert all(param.isfinite().all().item() for param in params[: len(SHAPES)])
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    print(f"{run(parser.parse_args().device)} steps ran")
