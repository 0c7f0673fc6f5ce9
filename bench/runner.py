"""Runs suites: picks scenarios, measures one after the other, and keeps each as soon as it is there."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import scenarios
from bench.goals import judge
from bench.machine import slug
from bench.progress import progress
from bench.records import ROOT, TIME_IS_UP, first_line, new_report, save
from bench.scenarios import GraphScenario, Scenario, StepScenario

INTERRUPTED = 130  # a shell's exit status for Ctrl-C
# What a scenario is expected to take, for the estimate of the time left.
SETUP, COMPILING = 1.5, 15  # times its rounds, and seconds for each contender that compiles


def results_folder(device: str) -> Path:
    return ROOT / "bench" / "results" / slug(device)


def chosen(words: list[str] | None, name: str) -> bool:
    return words is None or any(word.lower() in name.lower() for word in words)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def asked_for(scenario: Scenario, options: argparse.Namespace) -> bool:
    """What is not run by default is run where its model is named, and its type if not the usual one."""
    if isinstance(scenario, GraphScenario):
        of_precision = options.dtypes is None or scenario.precision in options.dtypes
        return of_precision and (options.nodes is None or scenario.nodes in options.nodes)
    if options.models is None:
        return scenario.default
    usual = scenario.default or scenario.dtype == torch.float32 or options.dtypes is not None
    return scenario.model in options.models and usual


def with_contenders(scenario: Scenario, options: argparse.Namespace) -> Scenario | None:
    """With the contenders that are asked for; None where none of ours is among them."""
    if not hasattr(scenario, "contenders"):
        return scenario

    def wanted(contender) -> bool:
        of_steps = isinstance(scenario, StepScenario) and options.dtypes is not None
        if of_steps and name_of(contender.dtype or scenario.dtype) not in options.dtypes:
            return False
        if contender.ours:
            of_state = options.states is None or contender.state in options.states
            return of_state and chosen(options.optimizers, contender.optimizer)
        return chosen(options.baselines, contender.name)

    few = tuple(c for c in scenario.contenders if wanted(c))
    return replace(scenario, contenders=few) if any(c.ours for c in few) else None


def pick(suite: str, options: argparse.Namespace) -> list[Scenario]:
    found = scenarios.scenarios_of(suite, options.device)
    if suite == "gloss" and options.nodes is not None:
        found = [scenarios.graph_of(options.device, nodes) for nodes in sorted(options.nodes)]
    found = [with_contenders(s, options) for s in found if asked_for(s, options)]
    found = [scenario for scenario in found if scenario is not None]
    if options.quick:
        found = [scenarios.miniature(scenario) for scenario in found]
    return list({scenario.name: scenario for scenario in found}.values())


def expected_seconds(scenario: Scenario) -> float:
    compiling = sum(contender.compiles for contender in getattr(scenario, "contenders", ()))
    return SETUP * scenario.seconds + COMPILING * compiling


def measurer(suite: str) -> Callable[..., dict[str, Any]]:
    """What measures the suite's scenarios; loaded late, because each needs packages of its own."""
    if suite == "gloss":
        from functools import partial

        from bench.graphs import measure_graphs

        return partial(measure_graphs, last={})
    if suite == "loop":
        from bench.training_loop import measure_loop

        return measure_loop
    if suite == "plan":
        from bench.plan_memory import measure_plan

        return measure_plan
    if suite == "quantisers":
        from bench.quantisers import measure_quantisers

        return measure_quantisers
    from bench.steps import measure_steps

    return measure_steps


def is_whole(options: argparse.Namespace, defaults: argparse.Namespace) -> bool:
    """Whether nothing but device, threads and place was asked for."""
    narrowing = ("models", "optimizers", "dtypes", "states", "baselines", "nodes", "repeats")
    same = all(getattr(options, key) == getattr(defaults, key) for key in narrowing)
    return same and not options.quick


def run(options: argparse.Namespace, defaults: argparse.Namespace) -> int:
    """Measure the suites; returns the exit status. What is done is kept whatever comes then."""
    if options.threads:
        torch.set_num_threads(options.threads)
    work = {suite: pick(suite, options) for suite in options.suites}
    if empty := [suite for suite, found in work.items() if not found]:
        print(f"nothing of {', '.join(empty)} is left by these filters; see `python -m bench list`")
        return 2
    total = sum(expected_seconds(s) for found in work.values() for s in found)
    deadline = time.monotonic() + options.seconds
    whole, files = is_whole(options, defaults), Files(options)
    arguments = {key: value for key, value in vars(options).items() if key != "out"}
    arguments = {k: v for k, v in arguments.items() if v != getattr(defaults, k)}
    with progress(total) as show:
        try:
            for suite, found in work.items():
                report = new_report(suite, options.device, arguments)
                begin, measure = time.monotonic(), measurer(suite)
                for scenario in found:
                    show.scenario(f"{suite}: {scenario.name}", expected_seconds(scenario))
                    done = one(scenario, measure, options, deadline, show.advance)
                    report["scenarios"].append(done)
                    show.advance(1)
                    show.say(summary(suite, done))
                    judge_and_time(report, begin, whole and len(report["scenarios"]) == len(found))
                    files.keep(report)
                for goal in report["goals"]:
                    show.say(f"{goal['verdict']}: {goal['goal']}; measured: {goal['measured']}")
        except KeyboardInterrupt:
            show.say("stopped")
            return INTERRUPTED
        finally:
            for path, count in files.kept.items():
                show.say(f"{count} scenarios are kept in {path}")
    return 0


class Files:
    """Where results are kept. With the project only what is whole is, so that nothing less replaces it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.kept: dict[Path, int] = {}

    def keep(self, report: dict[str, Any]) -> None:
        partial, full = ROOT / "build" / "bench", results_folder(self.options.device)
        folder = self.options.out or (full if report["kind"] == "full run" else partial)
        path = folder / f"{report['suite']}.json"
        save(report, path)
        self.kept.pop(partial / path.name, None)
        self.kept[path] = len(report["scenarios"])


def one(
    scenario: Scenario,
    measure: Callable[..., dict[str, Any]],
    options: argparse.Namespace,
    deadline: float,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    begin, found = time.monotonic(), {"name": scenario.name}
    if begin > deadline:
        found["skipped"] = TIME_IS_UP
    else:
        try:
            found |= measure(scenario, options.device, options.repeats, deadline, advance)
        except Exception as error:  # the other scenarios go on
            found["skipped"] = first_line(error)
    if isinstance(found.get("rows"), dict) and not found["rows"]:
        found.setdefault("skipped", "nobody could be measured")
    return {**found, "took_seconds": time.monotonic() - begin}


def judge_and_time(report: dict[str, Any], begin: float, complete: bool) -> None:
    late = [s["name"] for s in report["scenarios"] if s.get("skipped") == TIME_IS_UP]
    cut = [s for s in report["scenarios"] if TIME_IS_UP in s.get("missing", {}).values()]
    if complete and not late and not cut:
        report["kind"] = "full run"
    report["goals"] = judge(report)
    report["seconds"] = time.monotonic() - begin


def summary(suite: str, scenario: dict[str, Any]) -> str:
    name = f"{suite}: {scenario['name']}"
    if "skipped" in scenario:
        return f"{name}: skipped, {scenario['skipped']}"
    rows = scenario.get("rows", {})
    best = [f"{n} {1e3 * r['seconds']:.3g} ms" for n, r in rows.items() if r.get("ours")][:4]
    text = f"{name}: {'; '.join(best) or 'done'}"
    if scenario.get("missing"):
        text += f"; not measured: {', '.join(scenario['missing'])}"
    return text
