"""Measures losses of row softmaxes."""

from typing import Any

import torch

from bench.lists import measure_entries
from bench.loss_contenders import MINIATURE, PEER, SIZES, STORED, STORED_COPIES, Given, entries_of
from bench.memory import why_too_large
from bench.scenarios import OwnScenario


def measure_losses(
    scenario: OwnScenario, device: str, rounds: int | None, deadline: float
) -> dict[str, Any]:
    sizes = MINIATURE if scenario.quick else SIZES[device][scenario.model]
    given = Given.of(sizes, device, torch.bfloat16 if device == "cuda" else torch.float32)
    entries, missing = entries_of(scenario.model, given, device)
    if reason := why_too_large(4 * STORED_COPIES * sizes.rows * sizes.columns, device):
        missing |= {entry.name: reason for entry in entries if entry.name in (STORED, PEER)}
        entries = [entry for entry in entries if entry.name not in missing]
    rows = measure_entries(entries, scenario, device, rounds, deadline)
    return {**sizes._asdict(), "rows": rows, "missing": missing}
