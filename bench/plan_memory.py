"""How many bytes an optimizer keeps per tensor beyond parameters, gradients and state.

The allocator is asked (glibc's ``mallinfo2``), not the resident set, so the answer is exact.
Python's objects are in it because the measurement runs in a process with PYTHONMALLOC=malloc.
The plan is what the optimizer frees when its plan is dropped.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch

import friction_kernels as fk
from bench.records import ROOT
from bench.scenarios import StudyScenario

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


def measure_plan(
    scenario: StudyScenario,
    device: str,
    rounds: int | None,
    deadline: float,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """The suite's part of the results: bytes a tensor of every optimizer, found by a process of its own."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    done = subprocess.run(
        [sys.executable, "-m", "bench.plan_memory"],
        env={**os.environ, "PYTHONMALLOC": "malloc", "PYTHONPATH": path},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [
        [name, f"{size:.0f}", "met" if size < GOAL_BYTES_PER_TENSOR else "missed"]
        for name, size in found.items()
    ]
    goal = f"goal < {GOAL_BYTES_PER_TENSOR}"
    return {"tables": [{"header": ["optimizer", "bytes a tensor", goal], "rows": rows}]}


def main() -> None:
    if os.environ.get("PYTHONMALLOC") != "malloc":
        raise SystemExit("this needs PYTHONMALLOC=malloc; `python -m bench run plan` sets it")
    allocated_bytes()  # the first call allocates
    print(json.dumps({name: plan_bytes_per_tensor(cls) for name, cls in fk.OPTIMIZERS.items()}))


if __name__ == "__main__":
    main()
