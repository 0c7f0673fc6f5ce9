"""Properties of a device that matter to score matrices: free memory and support for Triton kernels."""

from __future__ import annotations

import os
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")  # a container may have less memory than its machine


def free_memory(device: torch.device) -> int:
    """Bytes that can be allocated, or 0 if unknown."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
            return int(torch.cuda.mem_get_info()[0]) + unused
    if device.type != "cpu":
        return 0
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    of_machine = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return min([*of_machine, *_left_in_container()], default=0)


def _left_in_container() -> list[int]:
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = (CGROUP / "memory.current").read_text().strip()
    except OSError:
        return []
    return [] if limit == "max" else [max(0, int(limit) - int(used))]


def triton_unavailable_reason(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why the Triton kernels cannot serve embeddings, or None if they can."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the embeddings are on {device}, and its kernels run on CUDA devices"
    if dtype == torch.float64:
        return "the embeddings are float64, and its kernels compute in float32"
    try:
        import friction_triton.scores  # noqa: F401
    except ImportError as error:
        return f"it cannot be imported ({error}); install with `pip install 'friction-kernels[triton]'`"
    return None
