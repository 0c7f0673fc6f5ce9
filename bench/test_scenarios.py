"""The table of scenarios, one contender at a time: ``pytest bench --benchmark-only``.

What compares contenders is ``python -m bench run``, which interleaves them; here each runs by itself.
"""

import pytest

from bench.contenders import Contender
from bench.entries import Entry, Pool, tensors_of
from bench.gloss_contenders import Graph, Step
from bench.graphs import problem_of
from bench.memory import why_too_large
from bench.peers import why_not_importable
from bench.scenarios import GraphScenario, StepScenario, scenarios_of
from bench.shapes import MODELS

DEVICE = "cpu"
MOST_NODES = 2048  # of graphs, that all contenders finish in seconds


def cases(suite: str) -> list:
    return [
        pytest.param(scenario, contender, id=f"{scenario.name}-{contender.name}")
        for scenario in scenarios_of(suite, DEVICE)
        if scenario.default
        for contender in scenario.contenders
        if not contender.compiles
    ]


@pytest.mark.parametrize(
    ("scenario", "contender"), [*cases("optimizers"), *cases("scale"), *cases("host")]
)
def test_step(benchmark, scenario: StepScenario, contender: Contender) -> None:
    model, dtype = MODELS[scenario.model], contender.dtype or scenario.dtype
    needed = model.parameters * (8 + 3 * dtype.itemsize)
    if reason := why_not_importable(contender.needs) or why_too_large(needed, DEVICE):
        pytest.skip(reason)
    benchmark.group = scenario.name
    try:
        entry = Entry(contender, tensors_of(model.shapes(), DEVICE, dtype), Pool())
    except RuntimeError as error:  # of a peer that needs a card, for one
        if not contender.needs:
            raise
        pytest.skip(str(error))
    rounds = 3 if entry.slow else 10
    benchmark.pedantic(entry.step, setup=entry.prepare, rounds=rounds, warmup_rounds=1)


@pytest.mark.parametrize(
    ("scenario", "graph"),
    [case for case in cases("gloss") if case.values[0].nodes <= MOST_NODES],
)
def test_graph(benchmark, scenario: GraphScenario, graph: Graph) -> None:
    if DEVICE not in graph.devices or not graph.fewest_nodes <= scenario.nodes <= graph.most_nodes:
        pytest.skip(f"{graph.name} is not for {scenario.nodes} nodes on a {DEVICE}")
    if reason := why_not_importable(graph.needs):
        pytest.skip(reason)
    benchmark.group = scenario.name
    step = Step(graph, problem_of(scenario, DEVICE))
    benchmark.pedantic(step.step, setup=step.prepare, rounds=5, warmup_rounds=1)
