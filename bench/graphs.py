"""Measures one scenario of G-Loss. ``python -m bench.graphs`` is the process whose memory is told."""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from bench import counting
from bench.gloss_contenders import CONTENDERS, OURS, Graph, Step
from bench.gloss_forms import GAMMA, SIGMA, Problem, make_problem
from bench.memory import peak, status_bytes, why_too_large
from bench.peers import why_not_importable
from bench.records import ROOT, TIME_IS_UP, first_line
from bench.rounds import Clock, measure, set_repeats
from bench.scenarios import GraphScenario

SAMPLE_SECONDS = 0.02
WARMUP_STEPS = 2
LONG = 2  # seconds of a step that is not worth repeating to warm up
FEWEST_NODES_FOR_MEMORY = 512  # smaller graphs take less than what else moves in a process
PROCESS_SECONDS = 300
LOADED_ON = 64  # nodes: loads libraries
TUNED_ON = 16_384  # kernels are tuned once for a d, on graphs whose passes take milliseconds
COUNTED_ON = 4608  # nodes: so many that plain torch, too, stores nothing

Last = dict[
    str, tuple[int, float]
]  # by contender: the largest size so far, seconds of a step there


def why_not(graph: Graph, scenario: GraphScenario, device: str, last: Last) -> str | None:
    """Why it is not tried at this size."""
    nodes = scenario.nodes
    if reason := why_not_importable(graph.needs):
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
    nodes = nodes or scenario.nodes
    shape = scenario.dim, scenario.classes
    return make_problem(nodes, *shape, device, scenario.dtype, scenario.precision)


def warm(
    graph: Graph, scenario: GraphScenario, problem: Problem, device: str
) -> tuple[Step, dict[str, Any], float]:
    """The step ready to be timed, what its first run told, and seconds of one."""
    clock = Clock(device, lead=False)
    if graph.ours and device == "cuda" and scenario.nodes > TUNED_ON:
        Step(graph, problem_of(scenario, device, TUNED_ON)).step()
    elif not graph.compiles:
        Step(graph, problem_of(scenario, device, LOADED_ON)).step()
    step, found = Step(graph, problem), {}
    if graph.compiles or device == "cuda":
        step.step()
    start = time.perf_counter()
    with peak(device) as peaked:
        if graph.compiles:
            step.step()
        elif device == "cuda" and graph.ours:
            found["launches"] = counting.launches_of(step.step)
        else:
            with counting.matrix_operations() as counted:
                found["operators"] = counting.operators_of(step.step)
            found["flops"] = counted.get_total_flops()
    once = time.perf_counter() - start
    if peaked.bytes and (device == "cuda" or scenario.nodes >= FEWEST_NODES_FOR_MEMORY):
        # Beyond inputs and gradient.
        gradient = problem.embeddings.nbytes if graph.backward else 0
        found["peak_bytes"] = max(0, peaked.bytes - gradient)
    if once < LONG:
        once = min(clock.steps(step) for _ in range(WARMUP_STEPS))
    return step, found, once


def operations_on_card(graph: Graph, scenario: GraphScenario) -> float:
    """Of kernels, which torch cannot count: of the same passes in plain torch, which grow with N^2."""
    step = Step(graph, problem_of(scenario, "cpu", COUNTED_ON))
    if hasattr(step.loss, "gloss"):
        step.loss.gloss.memory_budget = 0  # kernels store nothing
    with counting.matrix_operations() as counted:
        step.step()
    return counted.get_total_flops() * (scenario.nodes / COUNTED_ON) ** 2


def measure_graphs(
    scenario: GraphScenario,
    device: str,
    rounds: int | None,
    deadline: float,
    advance: Callable[[float], None],
    last: Last,
) -> dict[str, Any]:
    """A scenario's part of the results; `last` is read for what can be tried, and brought up to date."""
    problem = problem_of(scenario, device)
    everyone = [
        graph
        for graph in scenario.contenders
        if device in graph.devices and graph.fewest_nodes <= scenario.nodes
        # Variants of ours have their sizes; of others it is said that they are not tried.
        if scenario.nodes <= graph.most_nodes or not graph.ours
    ]
    steps, told, missing = [], {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's and KeOps's advice, scikit-learn's too
        for i, graph in enumerate(everyone):
            late = time.monotonic() > deadline
            reason = TIME_IS_UP if late else why_not(graph, scenario, device, last)
            if reason is None:
                try:
                    step, told[graph.name], once = warm(graph, scenario, problem, device)
                    steps.append(step)
                    last[graph.name] = scenario.nodes, once
                except Exception as error:  # a peer may not serve this machine or this size
                    reason = first_line(error)
            if reason is not None:
                missing[graph.name] = reason
            advance(0.4 * (i + 1) / len(everyone))
        clock = Clock(device, lead=False)
        set_repeats((s for s in steps if last[s.name][1] < LONG), clock, SAMPLE_SECONDS)
        seconds = max(0.1, min(scenario.seconds, deadline - time.monotonic()))
        times = measure(
            steps, clock, rounds or scenario.rounds, seconds, lambda x: advance(0.4 + 0.5 * x)
        )
    rows = {step.name: times.row(step.name) for step in steps}
    for step in steps:
        rows[step.name] |= row_of(step, scenario, device, told, rows[step.name])
        last[step.name] = scenario.nodes, times.median(step.name)
    if scenario.own_process and OURS in rows:
        rows[OURS] |= peak_in_process(OURS, scenario)
    return {
        "nodes": scenario.nodes,
        "dim": scenario.dim,
        "classes": scenario.classes,
        "precision": scenario.precision,
        "sigma": SIGMA,
        "gamma": GAMMA,
        "rows": rows,
        "missing": missing,
    }


def row_of(
    step: Step, scenario: GraphScenario, device: str, told: dict[str, dict], row: dict[str, Any]
) -> dict[str, Any]:
    graph = step.contender
    found = {key: getattr(graph, key) for key in ("ours", "baseline") if getattr(graph, key)}
    found |= told[step.name] | {"steps_in_a_row": step.repeats, "backward": graph.backward}
    found["ratio"] = row["ratios"].get(graph.baseline)
    if device == "cuda" and graph.ours:
        found["flops"] = operations_on_card(graph, scenario)
    elif graph.counted_as in told and not found.get("flops"):
        found["flops"] = told[graph.counted_as].get("flops")
    if not found.get("flops"):  # what is not made of torch's operators
        found.pop("flops", None)
    # What no way can avoid: embeddings are read, and their gradient is written.
    found["bytes"] = step.embeddings.nbytes * (1 + graph.backward)
    found["gb_s"] = found["bytes"] / row["seconds"] / 1e9
    if graph.ours and hasattr(step.loss, "gloss"):
        found["iterations"] = int(step.loss.gloss.last.iterations)
    return found


def peak_in_process(name: str, scenario: GraphScenario) -> dict[str, Any]:
    """All that a process has at its peak that computes this once, and nothing else."""
    command = [sys.executable, "-m", "bench.graphs", "--contender", name]
    command += ["--nodes", scenario.nodes, "--dim", scenario.dim, "--classes", scenario.classes]
    threads = str(torch.get_num_threads())
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    environment = {"OMP_NUM_THREADS": threads, "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [*map(str, command)],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=PROCESS_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"process_missing": f"stopped after {PROCESS_SECONDS} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"process_missing": lines[-1][:200] if lines else f"exit status {done.returncode}"}
    return {"process_bytes": int(json.loads(done.stdout.splitlines()[-1]))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the process's peak of memory in bytes.")
    parser.add_argument("--contender", choices=[c.name for c in CONTENDERS], required=True)
    for option in ("--nodes", "--dim", "--classes"):
        parser.add_argument(option, type=int, required=True)
    options = parser.parse_args()
    graph = next(c for c in CONTENDERS if c.name == options.contender)
    Step(graph, make_problem(options.nodes, options.dim, options.classes)).step()
    gc.collect()
    print(status_bytes("VmHWM"))


if __name__ == "__main__":
    main()
