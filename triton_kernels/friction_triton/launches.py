"""Launch and count kernels, so that tests can check that a batch takes three launches."""

from __future__ import annotations

import contextlib

import torch

counts: dict[str, int] = {}  # launches by kernel name since the process started


def launch(kernel, grid: tuple[int, ...], device: torch.device, *args, **options) -> None:
    """Run kernel[grid](*args, **options) on `device`, counted under the kernel's name.

    Launches by autotuning are not counted.
    """
    counts[kernel.__name__] = counts.get(kernel.__name__, 0) + 1
    # Triton launches on the current device, whatever the tensors' device.
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with current:
        kernel[grid](*args, **options)
