"""Which card the GPU report runs on, and how it runs commands."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.records import ROOT


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


def run(command: list, log: Path, seconds: float, env: dict[str, str] | None = None):
    """The exit status (None: stopped, time was up) and the output, which goes to a log too.

    It and what it starts are a process group, which ends when its time is up.
    """
    folders = (ROOT, ROOT / "triton_kernels", ROOT / "tests" / "support")
    path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), *map(str, folders))))
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return status, log.read_bytes()[start:].decode(errors="replace")


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
