"""What a time depends on beside the code."""

import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from friction_kernels import backends


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def describe() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        **backends.describe(),
    }


def machine_of(device: str) -> dict[str, Any]:
    found = describe()
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "card memory GB": round(card.total_memory / 1e9, 1)}
        found["cuda of torch"] = torch.version.cuda
    return found


def slug(device: str) -> str:
    """As the other results of this machine are filed."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        model = re.sub(r"\(.*?\)|processor|\bcpu\b.*|@.*|\d+-core.*", "", cpu_model(), flags=re.I)
        name = f"cpu {model.strip()} {os.cpu_count()} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
