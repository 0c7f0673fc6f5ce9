"""What only a card shows of GLoss: launches of a batch, and graphs of many nodes."""

from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from bench.gloss_baselines import GAMMA, Contender, Ours, Step, make_problem
from bench.gloss_goals import BATCH, HUGE, LARGE
from bench.gloss_measure import first_line, peak_on_card, timed


@dataclass(frozen=True)
class Case:
    name: str
    nodes: int
    dim: int
    classes: int
    dtype: torch.dtype
    precision: str
    memory_budget: int = 0
    rounds: int = 5


CASES = [
    Case(BATCH, 128, 768, 8, torch.float32, "fp32", rounds=20),
    Case(LARGE, 65_536, 768, 52, torch.bfloat16, "bf16"),
    Case(f"{LARGE}, 1 GB for T_UU", 65_536, 768, 52, torch.bfloat16, "bf16", 1_000_000_000),
    Case("N = 65,536, d = 768, C = 52, tf32", 65_536, 768, 52, torch.float32, "tf32"),
    Case(HUGE, 1_000_000, 384, 8, torch.bfloat16, "bf16", rounds=1),
]
QUICK_NODES = 2048  # of large cases in a quick run, whose names then say so
TUNED_ON = 16_384  # nodes: kernels are tuned once for a d, on graphs whose passes take milliseconds


def measure_case(case: Case, device: str, quick: bool = False) -> dict[str, Any]:
    nodes = min(case.nodes, QUICK_NODES) if quick else case.nodes
    try:
        problem = make_problem(nodes, case.dim, case.classes, device, case.dtype)
        options = {"precision": case.precision, "memory_budget": case.memory_budget}
        contender = Contender(case.name, lambda p: Ours(p, **options))
        if device == "cuda" and nodes > TUNED_ON:
            Step(contender, make_problem(TUNED_ON, case.dim, case.classes, device, case.dtype))()
        step = Step(contender, problem)
        if device != "cuda":
            return {"nodes": nodes, "seconds": timed(step, 1, device)}
        found: dict[str, Any] = {"nodes": nodes, "gamma": GAMMA}
        found["launches"], found["kernels"] = launches_of(step)  # a first step, which may compile
        found |= peak_on_card(step)  # of a second
        seconds = [timed(step, 1, device) for _ in range(case.rounds)]
        found |= {"seconds": median(seconds), "fastest": min(seconds), "slowest": max(seconds)}
        found["iterations"] = int(step.loss.gloss.last.iterations)
        return found
    except Exception as error:  # the other cases go on
        return {"nodes": nodes, "missing": first_line(error)}
    finally:
        if device == "cuda":
            torch.cuda.empty_cache()


def launches_of(step: Step) -> tuple[int | None, dict[str, int]]:
    """Launches that this library makes in a step, in all and by kernel."""
    try:
        from friction_triton import launches
    except ImportError:
        return None, {}
    before = dict(launches.counts)
    step()
    new = {name: count - before.get(name, 0) for name, count in launches.counts.items()}
    new = {name: count for name, count in new.items() if count}
    return sum(new.values()), new
