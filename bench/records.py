"""The results file that every suite writes; README.md has its fields."""

import json
import os
import re
import time
from pathlib import Path
from typing import Any

from bench import machine

SCHEMA = 1
ROOT = Path(__file__).resolve().parents[1]
SIGNIFICANT = 6  # digits
TIME_IS_UP = "the time was used up"
INNERMOST = re.compile(r"[\[{][^][{}]*[]}]")  # lists and objects that hold no other


def new_report(suite: str, device: str, arguments: dict[str, Any]) -> dict[str, Any]:
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


def save(report: dict[str, Any], path: Path) -> None:
    """Whole or not at all: a crash leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(rounded(report), indent=1, ensure_ascii=False)
    part = path.with_suffix(".part")
    part.write_text(INNERMOST.sub(lambda found: " ".join(found[0].split()), text) + "\n")
    os.replace(part, path)


def load(path: Path) -> dict[str, Any]:
    report = json.loads(path.read_text())
    if report.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} has schema {report.get('schema')}, and this reads {SCHEMA}; measure anew"
        )
    return report
