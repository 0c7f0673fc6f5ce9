"""Launches kernels and counts the launches, so that tests can check that a batch takes one."""

from __future__ import annotations

import contextlib

import torch

counts: dict[str, int] = {}  # launches by kernel name since the process began


def launch(kernel, grid: tuple[int, ...], device: torch.device, *args, **options) -> None:
    """kernel[grid](*args, **options) on `device`, counted under the kernel's name.

    What autotuning launches to compare configurations is not counted.
    """
    counts[kernel.__name__] = counts.get(kernel.__name__, 0) + 1
    # Triton launches on the current device, wherever the tensors are.
    current = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with current:
        kernel[grid](*args, **options)
