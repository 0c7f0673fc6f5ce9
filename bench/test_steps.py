"""Steps of each contender by itself: ``pytest bench --benchmark-only``."""

import pytest

from bench.scenarios import scenarios_of
from bench.shapes import shapes_of
from bench.steps import Entry, Pool, tensors_of

CASES = [(s, c) for s in scenarios_of("optimizers", "cpu") if s.default for c in s.contenders]


@pytest.mark.parametrize(("scenario", "contender"), CASES, ids=lambda case: case.name)
def test_step(benchmark, scenario, contender):
    if contender.compiles or contender.slow:
        pytest.skip("it takes minutes; `python -m bench run` measures it")
    if contender.needs:
        pytest.importorskip(contender.needs)
    shapes, dtype = shapes_of(scenario.model), contender.dtype or scenario.dtype
    entry = Entry(contender, tensors_of(shapes, "cpu", dtype), Pool())
    benchmark.group = scenario.name
    benchmark.pedantic(entry.step, setup=entry.prepare, rounds=10, warmup_rounds=1)
