"""What a time depends on beside the code, and what the machine's memory can do at all."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

COPY_BYTES = {"cpu": 2**28, "cuda": 2**31}  # much more than any cache holds


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


def copy_bandwidth(device: str = "cpu") -> float:
    """Bytes a second of a large copy, read plus written."""
    source = torch.rand(COPY_BYTES[device] // 4, device=device)
    names = {"source": source, "target": torch.empty_like(source)}
    timer = Timer("target.copy_(source)", globals=names, num_threads=torch.get_num_threads())
    return 2 * source.nbytes / timer.blocked_autorange(min_run_time=0.5).median


def record(device: str = "cpu") -> dict[str, Any]:
    """The head of every results file: device, versions, threads, and the bandwidth of a copy."""
    from friction_kernels import backends  # late: a build may change what it finds

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
    return {**found, **backends.describe(), "copy_gb_s": copy_bandwidth(device) / 1e9}
