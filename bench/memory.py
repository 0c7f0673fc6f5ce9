"""Memory: what a device has left, what an optimizer keeps, and the peak of what runs."""

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from friction_kernels.optim.memory import MemoryReport

SHARE = 0.85  # of what is available, that may be taken


def available_bytes(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    raise RuntimeError("/proc/meminfo has no MemAvailable; benchmarks need Linux")


def why_too_large(needed: float, device: str) -> str | None:
    available = available_bytes(device)
    if needed <= SHARE * available:
        return None
    return f"needs about {needed / 2**30:.3g} GiB, and {available / 2**30:.3g} GiB are free"


def tensors_in(value: Any) -> list[Tensor]:
    """Of a state, which for torchao is a tensor made of others, for flashoptim an object with some."""
    if hasattr(value, "__tensor_flatten__"):
        return [getattr(value, name) for name in value.__tensor_flatten__()[0]]
    if isinstance(value, Tensor):
        return [value]
    return [each for each in getattr(value, "__dict__", {}).values() if isinstance(each, Tensor)]


def memory_of(opt: Any) -> MemoryReport:
    """What `memory_report` says, for optimizers that have none, too."""
    if hasattr(opt, "memory_report"):
        return opt.memory_report()
    params = [param for group in opt.param_groups for param in group["params"]]
    sizes = {"parameter": sum(param.nbytes for param in params)}
    seen = set()  # bitsandbytes keeps one table for all parameters
    for param in params:
        for key, value in opt.state[param].items():
            for tensor in tensors_in(value):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    sizes[key] = sizes.get(key, 0) + tensor.nbytes
    parameters = sum(param.numel() for param in params)
    return MemoryReport(parameters, sizes, parameters, sizes)  # none is frozen


def status_bytes(key: str) -> int:
    """VmRSS or VmHWM (its peak) of this process; ru_maxrss would begin at that of the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def forget_peak() -> int:
    """Let the process's peak begin at what it has now; returns that."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or what was freed would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


@contextmanager
def peak(device: str) -> Iterator[SimpleNamespace]:
    """Afterwards `.bytes` has how much more there was at once; None where the system cannot tell."""
    found = SimpleNamespace(bytes=None)
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield found
        torch.cuda.synchronize()
        found.bytes = torch.cuda.max_memory_allocated() - before
        return
    try:
        before = forget_peak()
    except (OSError, AttributeError, RuntimeError):  # not Linux with glibc, or not allowed
        before = None
    yield found
    if before is not None:
        found.bytes = max(0, status_bytes("VmHWM") - before)
