"""From single trainings to tables: chosen rates, and means over seeds with their intervals."""

import math
from typing import Any

from bench.end_to_end_optimizers import ADAMW, RSGDM, SGD_NESTEROV, TRAINED
from bench.end_to_end_results import is_number
from bench.end_to_end_statistics import interval, paired
from bench.end_to_end_tasks import TASKS

MEASURES = ("training_loss", "test_loss", "accuracy")
Trainings = list[dict[str, Any]]


def of(trainings: Trainings, task: str, optimizer: str) -> Trainings:
    found = [t for t in trainings if (t["task"], t["optimizer"]) == (task, optimizer)]
    return sorted(found, key=lambda training: training["seed"])


def chosen_rate(search: Trainings, task: str, optimizer: str) -> float:
    """The rate of the least training loss; what diverged is not chosen unless all did."""
    tries = of(search, task, optimizer)
    losses = {t["rate"]: t["training_loss"] for t in tries}
    return min(losses, key=lambda rate: losses[rate] if is_number(losses[rate]) else math.inf)


def by_seed(trainings: Trainings, measure: str) -> dict[int, float]:
    return {t["seed"]: t[measure] for t in trainings if is_number(t[measure])}


def summary(trainings: Trainings) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and optimizer: each measure's mean and half its interval, and those of the difference
    to AdamW at the same seeds. Trainings that diverged are counted and left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for task in (name for name in TASKS if any(t["task"] == name for t in trainings)):
        adamw = of(trainings, task, ADAMW)
        rows = found[task] = {}
        for optimizer in TRAINED:
            ours = of(trainings, task, optimizer)
            if not ours:
                continue
            row = rows[optimizer] = {
                "rate": ours[0]["rate"],
                "seeds": len(ours),
                "diverged": sum(not is_number(each["training_loss"]) for each in ours),
            }
            for measure in MEASURES:
                values = by_seed(ours, measure)
                if values:
                    row[measure] = interval(list(values.values()))
                theirs = by_seed(adamw, measure)
                if optimizer != ADAMW and values.keys() & theirs.keys():
                    row[f"{measure}_less_adamw"] = paired(values, theirs)
    return found


def against_adamw(rows: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Optimizers by whether their test loss is better or worse than AdamW's, or not told apart from it."""
    found: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for name, row in rows.items():
        mean, half = row.get("test_loss_less_adamw") or (math.nan, math.nan)
        if is_number(half) and abs(mean) > half:
            found["better" if mean < 0 else "worse"].append(name)
        elif name != ADAMW:
            found["not told apart"].append(name)
    return found


def distances(trainings: Trainings) -> dict[str, tuple[float, float]]:
    """By task, how far RSGDM's training loss is from Nesterov's at the same seed and rate: in the
    curve's first point, and at most in any."""
    found = {}
    for task in TASKS:
        theirs = {(t["seed"], t["rate"]): t for t in of(trainings, task, SGD_NESTEROV)}
        apart = [
            [abs(a - b) for a, b in zip(ours["curve"], other["curve"], strict=True)]
            for ours in of(trainings, task, RSGDM)
            if (other := theirs.get((ours["seed"], ours["rate"])))
            and is_number(ours["training_loss"])
            and is_number(other["training_loss"])
        ]
        if apart:
            found[task] = (max(each[0] for each in apart), max(map(max, apart)))
    return found
