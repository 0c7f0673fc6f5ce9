"""Memory: what a device has left, what an optimizer keeps, and the peak of what runs. And launches."""

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.records import ROOT
from friction_kernels import count_launches

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


def sizes_of(opt: Any) -> dict[str, int]:
    """Bytes of parameters and of each list of states; `memory_report` says it of ours."""
    if hasattr(opt, "memory_report"):
        return dict(opt.memory_report().sizes)
    params = [param for group in opt.param_groups for param in group["params"]]
    sizes = {"parameter": sum(param.nbytes for param in params)}
    seen = set()  # bitsandbytes keeps one table for all parameters
    for param in params:
        for key, value in opt.state[param].items():
            for tensor in tensors_in(value):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    sizes[key] = sizes.get(key, 0) + tensor.nbytes
    return sizes


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


def told_by_process(module: str, *arguments: object, **environment: str) -> str:
    """The last line that `python -m module` prints, a process that does nothing else."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    threads = str(torch.get_num_threads())
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout.splitlines()[-1]


class Operators(TorchDispatchMode):
    """Counts what torch dispatches, whatever that calls in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func._schema.name.startswith("profiler::")
        return func(*args, **(kwargs or {}))


def calls_of(step: Callable[[], object], ours: bool) -> dict[str, Any]:
    """Of ours the launches by kernel; of others the operators that torch dispatches."""
    if ours:
        with count_launches() as launches:
            step()
        return {"launches": dict(launches)}
    with Operators() as operators:
        step()
    return {"operators": operators.count}
