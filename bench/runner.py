"""Runs suites: picks scenarios, measures one after the other, and keeps each as soon as it is there."""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench import scenarios
from bench.goals import judge
from bench.records import TIME_IS_UP, first_line, new_report, results_folder, save
from bench.scenarios import GraphScenario, Scenario

INTERRUPTED = 130  # a shell's exit status for Ctrl-C
# What else has a way of its own to measure; loaded late, because each needs packages of its own.
MEASURERS = {
    "gloss": "bench.gloss",
    "lists": "bench.lists",
    "loop": "bench.training_loop",
    "losses": "bench.losses",
    "plan": "bench.plan_memory",
}


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def asked_for(scenario: Scenario, options: argparse.Namespace) -> bool:
    """What is not run by default is run where its model is named, and its type if not the usual one."""
    models, dtypes = options.models, options.dtypes
    if isinstance(scenario, GraphScenario):
        return dtypes is None or scenario.precision in dtypes
    named = scenario.default if models is None else scenario.model in models
    if dtypes is not None:
        return named and name_of(scenario.dtype) in dtypes
    return named and (scenario.default or scenario.dtype == torch.float32)


def with_contenders(scenario: Scenario, words: list[str] | None) -> Scenario | None:
    """With those whose names are a word, or hold one that is nobody's name; None if none is ours."""
    if words is None or not scenario.contenders:
        return scenario
    names = {c.name.lower() for c in scenario.contenders}
    wanted = [word.lower() for word in words]

    def is_wanted(name: str) -> bool:
        return name in wanted or any(w in name for w in wanted if w not in names)

    few = [c for c in scenario.contenders if is_wanted(c.name.lower())]
    return replace(scenario, contenders=few) if any(c.ours for c in few) else None


def pick(suite: str, options: argparse.Namespace) -> list[Scenario]:
    found = scenarios.scenarios_of(suite, options.device)
    if suite == "gloss" and options.nodes is not None:
        known = {(s.nodes, s.precision): s for s in found}
        wanted = product(sorted(options.nodes), options.dtypes or ("fp32",))
        found = [known.get(one) or scenarios.graph_of(options.device, *one) for one in wanted]
    found = [with_contenders(s, options.contenders) for s in found if asked_for(s, options)]
    found = [scenario for scenario in found if scenario is not None]
    if options.quick:
        found = [scenario.miniature() for scenario in found]
    return list({scenario.name: scenario for scenario in found}.values())


def measurer(suite: str) -> Callable[..., dict[str, Any]]:
    if suite not in MEASURERS:
        return import_module("bench.steps").measure_steps
    measure = getattr(import_module(MEASURERS[suite]), f"measure_{suite}")
    return partial(measure, last={}) if suite == "gloss" else measure


def is_whole(options: argparse.Namespace, defaults: argparse.Namespace) -> bool:
    """Whether nothing but device, threads and place was asked for."""
    narrowing = ("models", "dtypes", "contenders", "nodes", "repeats", "quick")
    return all(getattr(options, key) == getattr(defaults, key) for key in narrowing)


def run(options: argparse.Namespace, defaults: argparse.Namespace) -> int:
    """Measure the suites; returns the exit status. What is done is kept whatever comes then."""
    if options.threads:
        torch.set_num_threads(options.threads)
    work = {suite: pick(suite, options) for suite in options.suites}
    if empty := [suite for suite, found in work.items() if not found]:
        print(f"nothing of {', '.join(empty)} is left by these filters; see `python -m bench list`")
        return 2
    given = {key: value for key, value in vars(options).items() if key != "out"}
    given = {key: value for key, value in given.items() if value != getattr(defaults, key)}
    total = sum(scenario.seconds for found in work.values() for scenario in found)
    begin, done, kept = time.monotonic(), 0.0, {}
    try:
        for suite, found in work.items():
            report, measure = new_report(suite, options.device, given), measurer(suite)
            for scenario in found:
                # By how the scenarios before have kept to their time.
                pace = (time.monotonic() - begin) / done if done else 1.5
                left = f"about {pace * (total - done) / 60:.0f} min left"
                print(f"{suite}: {scenario.name} ({left})", flush=True)
                report["scenarios"].append(one(scenario, measure, options, begin))
                print(summary(suite, report["scenarios"][-1]), flush=True)
                done += scenario.seconds
                complete = len(report["scenarios"]) == len(found) and is_whole(options, defaults)
                kept[suite] = keep(report, options, complete)
            for goal in report["goals"]:
                print(f"{goal['verdict']}: {goal['goal']}; measured: {goal['measured']}")
    except KeyboardInterrupt:
        print("stopped")
        return INTERRUPTED
    finally:
        for suite, path in kept.items():
            print(f"{suite} is kept in {path}", flush=True)
    return 0


def keep(report: dict[str, Any], options: argparse.Namespace, complete: bool) -> Path:
    reasons = [s.get("skipped") for s in report["scenarios"]]
    reasons += [why for s in report["scenarios"] for why in s.get("missing", {}).values()]
    whole = complete and TIME_IS_UP not in reasons
    report["kind"] = "full run" if whole else "partial run"
    report["goals"] = judge(report)
    report["seconds"] = sum(scenario["took_seconds"] for scenario in report["scenarios"])
    path = (options.out or results_folder(options.device, whole)) / f"{report['suite']}.json"
    save(report, path)
    return path


def one(
    scenario: Scenario, measure: Callable[..., dict], options: argparse.Namespace, run_began: float
) -> dict[str, Any]:
    begin, deadline = time.monotonic(), run_began + options.seconds
    found = {"name": scenario.name}
    if begin > deadline:
        found["skipped"] = TIME_IS_UP
    else:
        try:
            found |= measure(scenario, options.device, options.repeats, deadline)
        except Exception as error:  # the other scenarios go on
            found["skipped"] = first_line(error)
    if found.get("rows") == {}:
        found.setdefault("skipped", "nobody could be measured")
    return {**found, "took_seconds": time.monotonic() - begin}


def summary(suite: str, scenario: dict[str, Any]) -> str:
    name = f"{suite}: {scenario['name']}"
    if "skipped" in scenario:
        return f"{name}: skipped, {scenario['skipped']}"
    rows = scenario.get("rows", {})
    best = [f"{n} {1e3 * r['seconds']:.3g} ms" for n, r in rows.items() if r.get("ours")][:4]
    missing = scenario.get("missing")
    rest = f"; not measured: {', '.join(missing)}" if missing else ""
    return f"{name}: {'; '.join(best) or 'done'}{rest}"
