"""Results on disk: numbers short, what is not a number as null, and a file that is whole at any moment."""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm

DIGITS = 6
INNERMOST = re.compile(r"[\[{][^][{}]*[]}]")  # lists and objects that hold no other


def is_number(value: float | None) -> bool:
    """Not of what diverged, nor of what a single value cannot tell."""
    return value is not None and math.isfinite(value)


def plain(value: Any, digits: int = DIGITS) -> Any:
    """With numbers of few digits, and None for those that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(each, digits) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, digits) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    return value


def write(path: Path, report: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    text = json.dumps(plain(report), indent=1, ensure_ascii=False)
    flat = INNERMOST.sub(lambda found: " ".join(found[0].split()), text)
    part.write_text(flat + "\n")
    os.replace(part, path)  # whoever is stopped leaves the last whole one


def finished(work: Callable, jobs: Iterable, workers: int, title: str) -> Iterator:
    """The results of work(job), as they come, with a bar that tells the time left."""
    jobs = list(jobs)
    parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
    results = parallel(delayed(work)(job) for job in jobs)
    yield from tqdm(results, title, total=len(jobs), unit="training", smoothing=0)
