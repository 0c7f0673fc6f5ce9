"""The part of the GPU report that is `bench.bench_scale`: which command runs, and what became of it."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

# Seconds it may take, and after which it begins nothing more.
LIMIT, BEGIN_WITHIN = 90, 50


def benchmark(device: str, quick: bool, folder: Path) -> list:
    command = [sys.executable, "-m", "bench.bench_scale", "--device", device, "--out", folder]
    command += ["--seconds", BEGIN_WITHIN]
    return command + (["--quick"] if quick or device == "cpu" else [])


def faults(report: dict[str, Any]) -> list[str]:
    """What of ours was not measured, and why. A peer may be missing, and a goal missed."""
    return [f"{n}: {why}" for n, why in report["missing"].items() if "SigSign" in n]


def summary(report: dict[str, Any]) -> str:
    verdicts = Counter(goal["verdict"] for goal in report["goals"])
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    parts = [f"{report['kind']}, {len(report['rows'])} variants", f"goals: {counted}"]
    return "; ".join([*parts, *faults(report)])


def goals(report: dict[str, Any]) -> list[dict[str, str]]:
    """As they stand beside the optimizers'."""
    return [{**goal, "goal": f"at scale, {goal['goal']}"} for goal in report["goals"]]
