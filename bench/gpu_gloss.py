"""G-Loss's part of the GPU report: which commands run, and what became of them."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

# Seconds: of the tests, of the benchmark, and after which no further measurement of it begins. Together
# they are less than 8 minutes.
TESTS_LIMIT, LIMIT, BEGIN_WITHIN = 150, 300, 200
TESTS = ("tests/test_triton_similarity.py", "tests/test_triton_batch.py")


def benchmark(device: str, quick: bool, folder: Path) -> list:
    """Keeps what it has measured, should it fail or hang."""
    command = [sys.executable, "-m", "bench.bench_gloss", "--device", device, "--out", folder]
    command += ["--seconds", BEGIN_WITHIN]
    if device == "cpu":
        command += ["--sizes", 64]
    return command + (["--quick"] if quick or device == "cpu" else [])


def faults(report: dict[str, Any]) -> list[str]:
    """What of ours was not measured, and why. A peer may be missing, and a goal missed."""
    from bench.gloss_baselines import OURS, OURS_BF16  # late: it loads what the report builds

    found = [
        f"{name} at N = {int(nodes):,}: {size['missing'][name]}"
        for nodes, size in report["sizes"].items()
        for name in (OURS, OURS_BF16)
        if name in size["missing"]
    ]
    cases = report["cases"].items()
    found += [f"{name}: {case['missing']}" for name, case in cases if "missing" in case]
    if report["left_out"]:
        found.append(f"left out, the time was used up: {'; '.join(report['left_out'])}")
    return found


def summary(report: dict[str, Any]) -> str:
    verdicts = Counter(goal["verdict"] for goal in report["goals"])
    counted = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    sizes, cases = len(report["sizes"]), len(report["cases"])
    parts = [f"{report['kind']}, {sizes} sizes, {cases} cases", f"goals: {counted}"]
    return "; ".join([*parts, *faults(report)])


def goals(report: dict[str, Any]) -> list[dict[str, str]]:
    """As they stand beside the optimizers'."""
    return [{**goal, "goal": f"G-Loss, {goal['goal']}"} for goal in report["goals"]]
