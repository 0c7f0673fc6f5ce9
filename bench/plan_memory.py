"""How many bytes an optimizer keeps per tensor beyond parameters, gradients and state.

The allocator is asked (glibc's ``mallinfo2``), not the resident set, so the answer is exact.
Python's objects are in it because the measurement runs in a process with PYTHONMALLOC=malloc.
The plan is what the optimizer frees when its plan is dropped.
"""

import ctypes
import gc
import os
import subprocess
import sys

import torch

import friction_kernels as fk

TENSORS = 20_000
GOAL_BYTES_PER_TENSOR = 1024
MALLINFO2_FIELDS = (
    *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
    *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
)


class MallInfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in MALLINFO2_FIELDS]


def allocated_bytes() -> int:
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo2
    info = mallinfo2()
    return info.uordblks + info.hblkhd


def plan_bytes_per_tensor(cls: type[torch.optim.Optimizer]) -> float:
    params = [torch.zeros(16, requires_grad=True) for _ in range(TENSORS)]
    for param in params:
        param.grad = torch.ones_like(param)
    opt = cls(params, backend="native")
    for _ in range(2):
        opt.step()
    with_plan = allocated_bytes()
    opt._plan = None
    return (with_plan - allocated_bytes()) / TENSORS


def report() -> None:
    allocated_bytes()  # the first call allocates
    for name, cls in fk.OPTIMIZERS.items():
        measured = plan_bytes_per_tensor(cls)
        verdict = "met" if measured < GOAL_BYTES_PER_TENSOR else "missed"
        print(
            f"{name}: the plan holds {measured:.0f} bytes a tensor "
            f"(goal < {GOAL_BYTES_PER_TENSOR}: {verdict})"
        )


def report_in_new_process() -> None:
    environment = {**os.environ, "PYTHONMALLOC": "malloc"}
    subprocess.run([sys.executable, "-m", "bench.plan_memory"], env=environment, check=True)


if __name__ == "__main__":
    if os.environ.get("PYTHONMALLOC") == "malloc":
        report()
    else:
        report_in_new_process()
