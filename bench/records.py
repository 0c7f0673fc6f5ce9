"""The results file that every suite writes; README.md has its fields."""

import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

from bench import machine

Report = dict[str, Any]
Points = list[tuple[float, float]]

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
SIGNIFICANT = 6  # digits
TIME_IS_UP = "the time was used up"
INNERMOST = re.compile(r"[\[{][^][{}]*[]}]")  # lists and objects that hold no other


def new_report(suite: str, device: str, arguments: dict[str, Any]) -> Report:
    return {
        "schema": SCHEMA,
        "suite": suite,
        "kind": "partial run",
        "date": time.strftime("%Y-%m-%d"),
        "arguments": arguments,
        "machine": machine.record(device),
        "scenarios": [],
        "goals": [],
        "seconds": 0.0,
    }


def results_folder(device: str, whole: bool = True) -> Path:
    """What is measured whole is kept with the project, so that nothing less replaces it."""
    return ROOT / "bench" / "results" / machine.slug(device) if whole else ROOT / "build" / "bench"


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:200]


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{SIGNIFICANT}g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return value


def save(report: Report, path: Path) -> None:
    """Whole or not at all: a crash leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(report), indent=1, ensure_ascii=False)
    part = path.with_suffix(".part")
    part.write_text(INNERMOST.sub(lambda found: " ".join(found[0].split()), text) + "\n")
    os.replace(part, path)


def load(path: Path) -> Report:
    report = json.loads(path.read_text())
    if report.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {report.get('schema')}, and this reads {SCHEMA}; measure anew"
        )
    return report


# Numbers out of results.


def measured(report: Report) -> list[dict[str, Any]]:
    """Scenarios with rows."""
    return [s for s in report["scenarios"] if s.get("rows")]


def full_graphs(report: Report) -> list[dict[str, Any]]:
    """G-Loss's scenarios of the commonest shape and precision, by N."""
    found = measured(report)
    shapes = [(s["dim"], s["classes"], s["precision"]) for s in found]
    usual = max(shapes, key=shapes.count, default=None)
    chosen = [s for s, shape in zip(found, shapes, strict=True) if shape == usual]
    return sorted(chosen, key=lambda s: s["nodes"])


def curve(scenarios: list[dict[str, Any]], contender: str, x: str, y: str) -> Points:
    """(scenario's x, row's y) where the contender has it and it is above zero."""
    rows = ((s[x], s["rows"].get(contender, {}).get(y)) for s in scenarios)
    return [(at, value) for at, value in rows if value]


def contenders_in(scenarios: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for s in scenarios for name in s["rows"]))


def slope(points: Points) -> float | None:
    """The exponent p of y = c x^p fitted by least squares to the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points if y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    above = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return above / sum((x - mean_x) ** 2 for x, _ in logs)


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
