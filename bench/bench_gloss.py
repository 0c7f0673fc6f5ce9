"""Time and memory of GLoss, forward and backward, against the forms that store N x N numbers.

    python -m bench.bench_gloss                 on this processor; add --device cuda for a card
    python -m bench.bench_gloss --quick         small sizes and few rounds, to see that all works

A full run writes gloss.json, gloss.md and gloss.png to bench/results/<machine>/, any other to
build/bench_gloss. Contenders that would take too long or too much memory are left out and named.
On a card it also measures the cases of gloss_cases.py. `gloss_report` is the same as a function.
"""

import argparse
import json
import math
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.gloss_baselines import AUTHORS, GAMMA, OURS, SIGMA, Step, contenders_for, make_problem
from bench.gloss_cases import CASES, Case, measure_case
from bench.gloss_goals import judge
from bench.gloss_measure import (
    MOST_ROUNDS,
    Limits,
    Times,
    available_bytes,
    measure,
    peak_in_process,
    peak_on_card,
    slope,
)
from bench.gloss_text import as_markdown, case_text, draw, goal_lines, points
from bench.machine import machine_of, slug

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "cpu": [64, 128, 256, 512, 1024, 2048, 4096, 8192, 20_000],
    "cuda": [128, 512, 2048, 8192, 32_768],  # few, because most contenders compile for each
}
QUICK_SIZES = [64, 128, 256]
SHAPES = {"cpu": (384, 8), "cuda": (768, 8)}  # d, C
LIMITS = {
    "cpu": Limits(step_seconds=40, size_seconds=20),
    "cuda": Limits(step_seconds=3, size_seconds=6),
}
QUICK_LIMITS = Limits(step_seconds=1, size_seconds=1, compiling=False)
QUICK_ROUNDS = 3
SHARE_OF_MEMORY = 0.7  # of what is available, that a contender may be expected to take
FEWEST_NODES_FOR_MEMORY = 512  # on a processor, whose libraries take more than smaller graphs


def rows_of(times: Times) -> dict[str, Any]:
    """A row per contender; its ratios are its time over each other's."""
    return {
        name: {
            "seconds": times.median(name),
            "quartiles": times.quartiles(name),
            "rounds": len(times.seconds[name]),
            "ratios": {other: times.ratio(name, other) for other in times.seconds if other != name},
        }
        for name in times.seconds
    }


def measure_memory(
    nodes: int, names: list[str], dim: int, classes: int, device: str
) -> dict[str, Any]:
    contenders = [c for c in contenders_for(device) if c.name in names]
    if device == "cpu":
        # Each in a process of its own, in which those that compile would have to do it again.
        contenders = [c for c in contenders if not c.compiles]
        threads = torch.get_num_threads()
        return {c.name: peak_in_process(c, nodes, dim, classes, threads) for c in contenders}
    problem = make_problem(nodes, dim, classes, device)
    found = {}
    for contender in contenders:
        step = Step(contender, problem)
        step()  # compiles
        found[contender.name] = peak_on_card(step)
    return found


def gloss_report(
    device: str,
    quick: bool,
    out_dir: Path,
    sizes: list[int] | None = None,
    shape: tuple[int, int] | None = None,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Measure, write gloss.json, gloss.md and gloss.png into `out_dir`, print, and return the report.

    device: "cpu" or "cuda"; sizes: of N; shape: (d, C), by default (384, 8), on a card (768, 8);
    seconds: after which nothing more is begun. Written anew after each size and case, so that what was
    measured is kept whatever the next one does.
    """
    begin = time.monotonic()
    dim, classes = shape or SHAPES[device]
    sizes = sorted(sizes or (QUICK_SIZES if quick else SIZES[device]))
    whole = not quick and sizes == SIZES[device] and (dim, classes) == SHAPES[device]
    report: dict[str, Any] = {
        "kind": "partial run",
        "device": device,
        "machine": machine_of(device),
        "shape": {"dim": dim, "classes": classes, "sigma": SIGMA, "gamma": GAMMA},
        "sizes": {},
        "memory": {},
        "slopes": {},
        "cases": {},
        "left_out": [],
    }
    last: dict[str, tuple[int, float]] = {}
    work = [(f"N = {nodes:,}", partial(add_size, report, nodes, quick, last)) for nodes in sizes]
    if device == "cuda":  # its goals are about the smallest size and the cases
        work[1:1] = [(case.name, partial(add_case, report, case, quick)) for case in CASES]
    for number, (name, measure_it) in enumerate(work, start=1):
        if time.monotonic() - begin <= seconds:
            measure_it()
        else:
            report["left_out"].append(name)
            print(f"{name}: left out, the time is used up", flush=True)
        if whole and number == len(work) and not report["left_out"]:
            report["kind"] = "full run"
        report["goals"] = judge(report)
        report["seconds"] = time.monotonic() - begin
        write(report, Path(out_dir))
    print("\n".join(goal_lines(report)))
    print(f"Results: {out_dir / 'gloss.json'}, gloss.md, gloss.png")
    return report


def add_size(
    report: dict[str, Any], nodes: int, quick: bool, last: dict[str, tuple[int, float]]
) -> None:
    """Times and memory at one size, and the slopes so far. last: see `measure`."""
    device, dim, classes = report["device"], report["shape"]["dim"], report["shape"]["classes"]
    limits = replace(QUICK_LIMITS if quick else LIMITS[device])
    limits.bytes = SHARE_OF_MEMORY * available_bytes(device)
    problem = make_problem(nodes, dim, classes, device)
    rounds = QUICK_ROUNDS if quick else MOST_ROUNDS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.compile's and KeOps's advice
        times = measure(contenders_for(device), problem, device, limits, last, rounds)
    del problem
    report["sizes"][str(nodes)] = {"rows": rows_of(times), "missing": times.missing}
    show_size(nodes, times)
    if device == "cuda" or nodes >= FEWEST_NODES_FOR_MEMORY:
        memory = measure_memory(nodes, list(times.seconds), dim, classes, device)
        report["memory"][str(nodes)] = memory
    for contender in contenders_for(device):
        if found := points(report, contender.name, "seconds"):
            of_memory = slope(points(report, contender.name, "extra_bytes"))
            report["slopes"][contender.name] = {"time": slope(found), "memory": of_memory}


def add_case(report: dict[str, Any], case: Case, quick: bool) -> None:
    found = measure_case(case, report["device"], quick)
    name = case.name if found["nodes"] == case.nodes else f"{case.name}, at N = {found['nodes']:,}"
    report["cases"][name] = found
    print(f"{name}: {case_text(found)}", flush=True)


def show_size(nodes: int, times: Times) -> None:
    cells = [f"{name} {1e3 * times.median(name):.2f} ms" for name in times.seconds]
    print(f"N = {nodes:,}: {'; '.join(cells)}", flush=True)
    if OURS in times.seconds and AUTHORS in times.seconds:
        print(f"  {times.ratio(AUTHORS, OURS):.2f} times as fast as the authors' form", flush=True)


def write(report: dict[str, Any], out_dir: Path) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "gloss.json").write_text(json.dumps(report, indent=1) + "\n")
    (out_dir / "gloss.md").write_text(as_markdown(report))
    draw(report, out_dir / "gloss.png")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--quick", action="store_true", help="small sizes and few rounds")
    add("--sizes", type=int, nargs="+", metavar="N", help="nodes of the graphs, at least 2 each")
    add("--dim", type=int, help="columns of the embeddings, by default 384, on a card 768")
    add("--classes", type=int, help="by default 8")
    add("--threads", type=int, help="by default torch's number")
    add("--seconds", type=float, default=math.inf, help="after which nothing more is begun")
    add("--out", type=Path, help="folder of the results")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")
    if options.sizes and min(options.sizes) < 2:
        parser.error("a graph has at least two nodes")
    if options.threads:
        torch.set_num_threads(options.threads)
    dim, classes = SHAPES[options.device]
    shape = (options.dim or dim, options.classes or classes)
    # Without SIZES's end a run says nothing about the goals there, so it does not replace results.
    full = not options.quick and not options.sizes and shape == SHAPES[options.device]
    folder = ROOT / "bench/results" / slug(options.device) if full else ROOT / "build/bench_gloss"
    folder = options.out or folder
    gloss_report(options.device, options.quick, folder, options.sizes, shape, options.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
