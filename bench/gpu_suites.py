"""Suites as the GPU report runs them: the commands, their time, and what became of them."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Apart:
    """A suite with minutes of its own: seconds of its tests, of all of it, and in which it begins work."""

    limit: float
    begin_within: float
    tests: tuple[str, ...] = ()
    tests_limit: float = 0
    dry: tuple[str, ...] = ()  # filters of a dry run


APART = {
    "scale": Apart(limit=90, begin_within=50),
    "gloss": Apart(  # less than 8 minutes
        limit=300,
        begin_within=200,
        tests=("tests/test_triton_scores.py", "tests/test_triton_batch.py"),
        tests_limit=150,
        dry=("--nodes", "64"),
    ),
}


def suite_command(suite: str, device: str, quick: bool, folder: Path, *more: object) -> list:
    command = [sys.executable, "-m", "bench", "run", suite, "--device", device, "--out", folder]
    return [*command, *more, *(["--quick"] if quick or device == "cpu" else [])]


def faults(report: dict[str, Any]) -> list[str]:
    """What of ours was not measured, and why. A peer may be missing, and a goal missed."""
    from bench.scenarios import scenarios_of

    suite, device = report["suite"], report["machine"]["kind"]
    everyone = [c for s in scenarios_of(suite, device) for c in getattr(s, "contenders", ())]
    ours = {contender.name for contender in everyone if contender.ours}
    found = [f"{s['name']}: {s['skipped']}" for s in report["scenarios"] if "skipped" in s]
    for scenario in report["scenarios"]:
        missing = scenario.get("missing", {}).items()
        found += [f"{scenario['name']}, {name}: {why}" for name, why in missing if name in ours]
    return found


def counted(report: dict[str, Any]) -> str:
    verdicts = Counter(goal["verdict"] for goal in report["goals"])
    goals = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    parts = [f"{report['kind']}, {len(report['scenarios'])} scenarios", f"goals: {goals or 'none'}"]
    return "; ".join([*parts, *faults(report)])
