"""Time of an optimizer's step against the same equations run eagerly and torch's own optimizers.

``python -m bench.bench_optimizers`` compares them round-robin; ``pytest bench/bench_optimizers.py
--benchmark-only`` times each by itself.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

from bench.baselines import ADAMW_FUSED, CONTENDERS, COPY, COPY_BYTES, Contender, with_new_gradients
from bench.goals import GOALS
from bench.machine import describe
from bench.plan_memory import report_in_new_process
from bench.rounds import Entry, Times, measure, tensors_of
from bench.shapes import MODELS

ROUNDS = {"resnet50": 32, "vit_b_16": 20, "tiny": 60}
STEPS_IN_A_ROW = {"resnet50": 1, "vit_b_16": 1, "tiny": 5}
WIDTH = 120


def contenders_for(model: str) -> list[Contender]:
    if model != "tiny":
        return CONTENDERS
    # What a step costs here is bookkeeping, and new gradients are more of it.
    optimizers = [contender for contender in CONTENDERS if contender.name != COPY]
    variants = [[c] if c.slow else [c, with_new_gradients(c)] for c in optimizers]
    return [contender for pair in variants for contender in pair]


@pytest.mark.parametrize(
    ("model", "contender"),
    [
        pytest.param(model, contender, id=f"{model}-{contender.name}")
        for model in MODELS
        for contender in contenders_for(model)
    ],
)
def test_step(benchmark, model: str, contender: Contender) -> None:
    benchmark.group = model
    entry = Entry(contender, *tensors_of(MODELS[model].shapes()))
    rounds, warmup = (3, 1) if contender.slow else (10, 3)
    benchmark.pedantic(entry.step, setup=entry.prepare, rounds=rounds, warmup_rounds=warmup)


def rows(model: str, times: Times) -> list[dict[str, Any]]:
    """A row per contender; a bandwidth only where memory, not bookkeeping, takes the time."""
    result = []
    for contender in contenders_for(model):
        name = contender.name
        row: dict[str, Any] = {
            "optimizer": name,
            "seconds": times.median(name),
            "quartiles": times.quartiles(name),
            "rounds": len(times.seconds[name]),
            "against_adamw_fused": times.ratio(name, ADAMW_FUSED),
        }
        if name in times.launches:
            row["launches"] = times.launches[name]
        if contender.eager:
            row["against_eager"] = times.ratio(name, contender.eager)
        if model != "tiny":
            moved = contender.bytes_per_parameter
            row["gb_s"] = moved * MODELS[model].parameters / times.median(name) / 1e9
            row["share_of_copy"] = moved / COPY_BYTES * times.ratio(COPY, name)
        result.append(row)
    return result


def table(model: str, found: list[dict[str, Any]]) -> Table:
    unit, per_second, digits = ("µs", 1e6, 0) if model == "tiny" else ("ms", 1e3, 1)

    def time(seconds: float) -> str:
        return f"{seconds * per_second:.{digits}f}"

    def quartiles(low_high: tuple[float, float]) -> str:
        return " to ".join(map(time, low_high))

    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "seconds": (unit, time),
        "quartiles": ("quartiles", quartiles),
        "launches": ("launches", str),
        "gb_s": ("GB/s", "{:.1f}".format),
        "share_of_copy": ("of copy", "{:.0%}".format),
        "against_eager": ("/ eager", "{:.3f}".format),
        "against_adamw_fused": ("/ AdamW fused", "{:.3f}".format),
    }
    result = Table(title=f"{model}: {MODELS[model].tensors:,} tensors, one step")
    result.add_column("optimizer", no_wrap=True)
    shown = {key: column for key, column in columns.items() if any(key in row for row in found)}
    for header, _ in shown.values():
        result.add_column(header, justify="right", no_wrap=True)
    for row in found:
        cells = (form(row[key]) if key in row else "" for key, (_, form) in shown.items())
        result.add_row(row["optimizer"], *cells)
    return result


def goals_met(model: str, times: Times) -> list[dict[str, Any]]:
    return [
        {"goal": str(goal), "measured": goal.show(goal.measured(times)), "met": goal.met(times)}
        for goal in GOALS
        if goal.model == model
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, help=f"rounds of each model, by default {ROUNDS}")
    parser.add_argument("--threads", type=int, help="by default torch's number")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument(
        "--memory", action="store_true", help="report the plans' memory instead of times"
    )
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.memory:
        return report_in_new_process()
    if options.threads:
        torch.set_num_threads(options.threads)
    console = Console(width=WIDTH)
    machine = describe()
    console.print(machine)
    results: dict[str, Any] = {}
    goals: list[dict[str, Any]] = []
    for model in options.models:
        MODELS[model].check()
        rounds = options.repeats or ROUNDS[model]
        shapes = MODELS[model].shapes()
        times = measure(contenders_for(model), shapes, rounds, STEPS_IN_A_ROW[model])
        results[model] = rows(model, times)
        goals += goals_met(model, times)
        console.print(table(model, results[model]))
    for goal in goals:
        verdict = "[green]met[/]" if goal["met"] else "[red]missed[/]"
        console.print(f"{verdict}  {goal['goal']}: measured {goal['measured']}")
    if options.json:
        machine["copy_bandwidth_gb_s"] = {
            model: row["gb_s"]
            for model, found in results.items()
            for row in found
            if row["optimizer"] == COPY
        }
        report = {"machine": machine, "models": results, "goals": goals}
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
