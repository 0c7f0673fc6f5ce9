"""Measures operations on lists of tensors."""

import time
from typing import Any

import torch

from bench.goals import compared_with
from bench.list_contenders import Entry, entries_of
from bench.memory import calls_of, peak
from bench.rounds import Clock, measure, set_repeats
from bench.scenarios import OwnScenario
from bench.shapes import MODELS, elements

LISTS = 5  # of which the last one takes results
ROUNDS = 16


def measure_lists(
    scenario: OwnScenario, device: str, rounds: int | None, deadline: float
) -> dict[str, Any]:
    shapes = MODELS["miniature" if scenario.quick else scenario.model]()
    torch.manual_seed(0)
    given = [[torch.randn(s, device=device) for s in shapes] for _ in range(LISTS)]
    rows = measure_entries(entries_of(given), scenario, device, rounds, deadline)
    return {"tensors": len(shapes), "parameters": elements(shapes), "rows": rows}


def measure_entries(
    entries: list[Entry], scenario: OwnScenario, device: str, rounds: int | None, deadline: float
) -> dict[str, Any]:
    """Rows of the results: calls, memory and times."""
    clock, rows = Clock(device, lead=False), {}
    for entry in entries:
        entry.step()  # loads libraries
        with peak(device) as peaked:
            rows[entry.name] = calls_of(entry.step, entry.ours)
        if peaked.bytes:
            rows[entry.name]["peak_bytes"] = peaked.bytes
    set_repeats(entries, clock)
    seconds = max(0.1, min(scenario.seconds, deadline - time.monotonic()))
    times = measure(entries, clock, rounds or ROUNDS, seconds)
    for entry in entries:
        fields = {"ours": entry.ours, "baseline": entry.baseline}
        rows[entry.name] |= {key: value for key, value in fields.items() if value}
        rows[entry.name] |= times.row(entry.name, {entry.baseline, *compared_with(entry.name)})
    return rows
