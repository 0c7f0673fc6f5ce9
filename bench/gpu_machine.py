"""Which card the GPU report runs on, and with what."""

import importlib.util
import re
import subprocess
import sys
from typing import Any


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def find_device(device: str) -> dict[str, Any]:
    """The card, and the versions of what is measured; asked in a way that changes nothing."""
    import torch

    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda,
    }
    for module in ("triton", "flashoptim", "optimi", "adamp"):
        spec = importlib.util.find_spec(module)
        version = getattr(importlib.import_module(module), "__version__", "here") if spec else None
        found[module] = version or "not installed"
    if device == "cpu":
        return {"device": "cpu dry run", "capability": None, **found}
    if not torch.cuda.is_available():
        raise SystemExit(
            "there is no CUDA device that torch can use; --device cpu tries the script"
        )
    card = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        driver = "unknown"
    return {
        "device": card.name,
        "capability": f"{card.major}{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gb": card.total_memory / 1e9,
        "driver": driver,
        **found,
    }
