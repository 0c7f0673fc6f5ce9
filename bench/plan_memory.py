"""How many bytes an optimizer keeps per tensor beyond parameters, gradients and state.

The allocator is asked (glibc's ``mallinfo2``), not the resident set, so the answer is exact.
Python's objects are in it because the measurement runs in a process with PYTHONMALLOC=malloc.
The plan is what the optimizer frees when its plan is dropped.
"""

import ctypes
import gc
import json
import os
from typing import Any

import torch

import friction_kernels as fk
from bench.memory import told_by_process
from bench.scenarios import OwnScenario

TENSORS = 20_000
GOAL = 1024  # bytes a tensor


class MallInfo2(ctypes.Structure):
    _fields_ = [("sizes", ctypes.c_size_t * 10)]


def allocated_bytes() -> int:
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo2
    sizes = mallinfo2().sizes
    return sizes[7] + sizes[4]  # uordblks: in use on the heap; hblkhd: mapped by themselves


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


def measure_plan(scenario: OwnScenario, *_) -> dict[str, Any]:
    """The suite's part of the results: bytes a tensor of every optimizer, found by a process of its own."""
    found = json.loads(told_by_process("bench.plan_memory", PYTHONMALLOC="malloc"))
    rows = [[k, f"{v:.0f}", "met" if v < GOAL else "missed"] for k, v in found.items()]
    header = ["optimizer", "bytes a tensor", f"goal < {GOAL}"]
    return {"tables": [{"header": header, "rows": rows}]}


def main() -> None:
    if os.environ.get("PYTHONMALLOC") != "malloc":
        raise SystemExit("this needs PYTHONMALLOC=malloc; `python -m bench run plan` sets it")
    allocated_bytes()  # the first call allocates
    print(json.dumps({name: plan_bytes_per_tensor(cls) for name, cls in fk.OPTIMIZERS.items()}))


if __name__ == "__main__":
    main()
