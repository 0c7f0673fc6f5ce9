"""What a time depends on beside the code, and what the machine can do at all."""

import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from friction_kernels import backends

SAMPLES = 9
# Copied, so much larger than any cache; and the sides of the matrices that are multiplied.
COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}
MATRIX_SIDE = {"cpu": 1536, "cuda": 8192}
RATED = {"cpu": ("float32", "float64"), "cuda": ("float32", "tf32", "bfloat16")}


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def slug(device: str = "cpu") -> str:
    """The name of the folder in which this machine's results are kept."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        model = re.sub(r"\(.*?\)|processor|\bcpu\b.*|@.*|\d+-core.*", "", cpu_model(), flags=re.I)
        name = f"cpu {model.strip()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def describe(device: str = "cpu") -> dict[str, Any]:
    """Device, versions and threads; measures nothing."""
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "kind": device,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["card memory GB"] = round(card.total_memory / 1e9, 1)
        found["cuda of torch"] = torch.version.cuda
    return {**found, **backends.describe()}


def seconds_of(work: Callable[[], object], device: str) -> float:
    """The median of some runs, after one that warms up."""
    found = []
    for _ in range(1 + SAMPLES):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second of a large copy, read plus written."""
    source = torch.rand(COPY_BYTES[device] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source), device)


def matrix_rate(dtype: str, device: str = "cpu") -> float:
    """Operations a second of a square product, an addition and a multiplication being two.

    dtype: a type of torch's, or "tf32", which is float32 with that precision allowed.
    """
    side = MATRIX_SIDE[device]
    kind = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    out = torch.empty_like(a)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        return 2 * side**3 / seconds_of(lambda: torch.mm(a, b, out=out), device)
    finally:
        torch.set_float32_matmul_precision(before)


def record(device: str = "cpu") -> dict[str, Any]:
    """The head of every results file: `describe`, and what memory and multipliers do here (a few seconds).

    copy_gb_s: of a large copy, read plus written; matrix_gflop_s: of a square matrix product, by type.
    """
    return {
        **describe(device),
        "copy_gb_s": copy_bandwidth(device) / 1e9,
        "matrix_gflop_s": {name: matrix_rate(name, device) / 1e9 for name in RATED[device]},
    }
