"""Runs the GPU report's commands: each in a process group of its own, which ends when its time is up."""

import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(command: list, log: Path, seconds: float, env: dict[str, str] | None = None):
    """The exit status (None: stopped, time was up) and the output, which goes to a log too."""
    path = os.pathsep.join(
        filter(None, [os.environ.get("PYTHONPATH"), str(ROOT), str(ROOT / "triton_kernels")])
    )
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
            os.killpg(process.pid, signal.SIGKILL)  # it, and what it started
            process.wait()
            status = None
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return status, log.read_bytes()[start:].decode(errors="replace")


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"
