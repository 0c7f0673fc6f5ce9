"""Measures one scenario of G-Loss. ``python -m bench.gloss`` is the process whose memory is told."""

import argparse
import gc
import time
import warnings
from typing import Any

from torch import Tensor

from bench.gloss_contenders import CONTENDERS, OURS, Graph
from bench.gloss_forms import GAMMA, SIGMA, Problem, make_problem
from bench.goals import compared_with
from bench.memory import calls_of, peak, status_bytes, told_by_process, why_too_large
from bench.peers import import_failure
from bench.records import TIME_IS_UP, first_line
from bench.rounds import Clock, measure, set_repeats
from bench.scenarios import GraphScenario

LONG = 2  # seconds of a step that is not worth repeating to warm up
FEWEST_NODES_FOR_MEMORY = 512  # smaller graphs take less than what else moves in a process
LOADED_ON = 64  # nodes: loads libraries
TUNED_ON = 16_384  # kernels are tuned once for a d, on graphs whose passes take milliseconds

# By contender: the largest size so far, and seconds of a step there.
Last = dict[str, tuple[int, float]]


class Step:
    """Forward and backward of one contender; gradients do not accumulate."""

    slow = new_gradients = False

    def __init__(self, contender: Graph, problem: Problem) -> None:
        self.contender, self.name, self.repeats = contender, contender.name, 1
        self.loss = contender.build(problem)
        self.embeddings = problem.embeddings.detach().requires_grad_(contender.backward)

    def prepare(self) -> None:
        self.embeddings.grad = None

    def step(self) -> Tensor:
        self.embeddings.grad = None
        loss = self.loss(self.embeddings)
        if self.contender.backward:
            loss.backward()
        return loss.detach()


def skip_reason(graph: Graph, scenario: GraphScenario, device: str, last: Last) -> str | None:
    """Why it is not tried at this size."""
    nodes = scenario.nodes
    if reason := import_failure(graph.needs):
        return reason
    if nodes > graph.most_nodes:
        return f"not tried beyond N = {graph.most_nodes:,}"
    if reason := why_too_large(graph.bytes_per_pair * nodes**2, device):
        return reason
    if graph.name in last and nodes > graph.sure_up_to:
        before, seconds = last[graph.name]
        expected = seconds * (nodes / before) ** graph.power
        if expected > scenario.step_seconds:
            return f"a step would take about {expected:.0f} s"
    return None


def problem_of(scenario: GraphScenario, device: str, nodes: int | None = None) -> Problem:
    shape = nodes or scenario.nodes, scenario.dim, scenario.classes
    return make_problem(*shape, device, scenario.dtype, scenario.precision)


def warm(
    graph: Graph, scenario: GraphScenario, problem: Problem, device: str
) -> tuple[Step, dict[str, Any], float]:
    """The step ready to be timed, what its first run told, and seconds of one."""
    clock, on_card = Clock(device, lead=False), device == "cuda"
    if not graph.compiles:
        tuned = graph.ours and on_card and scenario.nodes > TUNED_ON
        Step(graph, problem_of(scenario, device, TUNED_ON if tuned else LOADED_ON)).step()
    step, found = Step(graph, problem), {}
    if graph.compiles or on_card:
        step.step()
    start = time.perf_counter()
    with peak(device) as peaked:
        if graph.compiles:
            step.step()
        else:
            found = calls_of(step.step, ours=graph.ours and on_card)
    once = time.perf_counter() - start
    if peaked.bytes and (on_card or scenario.nodes >= FEWEST_NODES_FOR_MEMORY):
        # Beyond inputs and gradient.
        gradient = problem.embeddings.nbytes if graph.backward else 0
        found["peak_bytes"] = max(0, peaked.bytes - gradient)
    if once < LONG:
        once = min(clock.steps(step) for _ in range(2))
    return step, found, once


def measure_gloss(
    scenario: GraphScenario, device: str, rounds: int | None, deadline: float, last: Last
) -> dict[str, Any]:
    """A scenario's part of the results; `last` is read for what can be tried, and brought up to date."""
    problem = problem_of(scenario, device)
    steps, rows, missing = [], {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's and KeOps's advice, scikit-learn's too
        for graph in scenario.contenders:
            # Variants of ours have their sizes; of others it is said that they are not tried.
            if device not in graph.devices or (graph.ours and scenario.nodes > graph.most_nodes):
                continue
            late = time.monotonic() > deadline
            reason = TIME_IS_UP if late else skip_reason(graph, scenario, device, last)
            if reason is None:
                try:
                    step, rows[graph.name], once = warm(graph, scenario, problem, device)
                    steps.append(step)
                    last[graph.name] = scenario.nodes, once
                except Exception as error:  # a peer may not serve this machine or this size
                    reason = first_line(error)
            if reason is not None:
                missing[graph.name] = reason
        clock = Clock(device, lead=False)
        set_repeats((s for s in steps if last[s.name][1] < LONG), clock)
        seconds = max(0.1, min(scenario.seconds, deadline - time.monotonic()))
        times = measure(steps, clock, rounds or scenario.rounds, seconds)
    for step in steps:
        graph, name = step.contender, step.name
        rows[name] |= {k: getattr(graph, k) for k in ("ours", "baseline") if getattr(graph, k)}
        rows[name] |= times.row(name, {graph.baseline, *compared_with(name)})
        rows[name]["steps_in_a_row"] = step.repeats
        if graph.ours:
            rows[name]["iterations"] = int(step.loss.gloss.last.iterations)
        last[name] = scenario.nodes, times.median(name)
    if scenario.own_process and OURS in rows:
        rows[OURS] |= peak_in_process(OURS, scenario)
    shape = {key: getattr(scenario, key) for key in ("nodes", "dim", "classes", "precision")}
    return {**shape, "sigma": SIGMA, "gamma": GAMMA, "rows": rows, "missing": missing}


def peak_in_process(name: str, scenario: GraphScenario) -> dict[str, Any]:
    """All that a process has at its peak that computes this once, and nothing else."""
    arguments = "--nodes", scenario.nodes, "--dim", scenario.dim, "--classes", scenario.classes
    try:
        return {"process_bytes": int(told_by_process("bench.gloss", name, *arguments))}
    except Exception as error:
        return {"process_missing": first_line(error)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the process's peak of memory in bytes.")
    parser.add_argument("contender", choices=[c.name for c in CONTENDERS])
    for option in ("--nodes", "--dim", "--classes"):
        parser.add_argument(option, type=int, required=True)
    options = parser.parse_args()
    graph = next(c for c in CONTENDERS if c.name == options.contender)
    Step(graph, make_problem(options.nodes, options.dim, options.classes)).step()
    gc.collect()
    print(status_bytes("VmHWM"))


if __name__ == "__main__":
    main()
