"""Whole training steps, and trainings to their end, with ours and torch's optimizers.

    python -m bench run end-to-end          about 20 minutes on two cores
    python -m bench run end-to-end --quick  few steps of everything, to see that all works

First the time of a step of a large ResNet, ViT and GPT. Then small ones are trained on digits and on
Python's own sources, in as many steps for every optimizer: each first searches its rate, on one seed and
with as many tries as the others, and then trains with the best on other seeds. At each seed all start from
the same weights and see the same batches. Ctrl-C keeps what is done.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bench.end_to_end_optimizers import RSGDM, SGD_NESTEROV, TRAINED
from bench.end_to_end_pictures import draw_steps, draw_trainings
from bench.end_to_end_results import finished, plain, write
from bench.end_to_end_steps import step_times
from bench.end_to_end_summary import chosen_rate, distances, summary
from bench.end_to_end_tasks import MINIATURE, TASKS, TIMED, at_least
from bench.end_to_end_text import as_markdown
from bench.end_to_end_training import train
from bench.records import new_report

SEARCH_SEED = 1000  # no training that counts has it
QUICK = {"steps": 10, "seeds": 2, "turns": 2}


@dataclass(frozen=True)
class Job:
    task: str
    optimizer: str
    rate: float
    seed: int
    steps: int
    dtype: str = "float32"


def training(job: Job) -> dict[str, Any]:
    begin = time.perf_counter()
    build = partial(TRAINED[job.optimizer].build, rate=job.rate)
    trained = train(job.task, build, job.seed, job.steps, dtype=getattr(torch, job.dtype))
    return {**asdict(job), **asdict(trained), "seconds": time.perf_counter() - begin}


def searches(steps: int) -> Iterator[Job]:
    for task, (name, entrant) in itertools.product(TASKS, TRAINED.items()):
        for rate in entrant.rates:
            yield Job(task, name, rate, SEARCH_SEED, steps)


def trainings(search: list[dict], steps: int, seeds: int) -> Iterator[Job]:
    # Seeds are outermost: whoever stops early has all optimizers on fewer seeds.
    for seed, task, name in itertools.product(range(seeds), TASKS, TRAINED):
        yield Job(task, name, chosen_rate(search, task, name), seed, steps)


def twins(search: list[dict], steps: int) -> Iterator[Job]:
    """RSGDM and Nesterov momentum at the same rate, where rounding has less to amplify."""
    for task in TASKS:
        rate = chosen_rate(search, task, SGD_NESTEROV)
        for name in (RSGDM, SGD_NESTEROV):
            yield Job(task, name, rate, 0, steps, "float64")


def measure(report: dict[str, Any], workers: int, path: Path) -> None:
    """Fills the report, and writes it after everything that was added."""
    settings = report["arguments"]
    steps, turns, quick = settings["steps"], settings["turns"], settings["quick"]
    timed = {"miniature": MINIATURE} if quick else TIMED
    with tqdm(total=len(timed) * (turns + 1), desc="1/4 step times", unit="turn") as progress:
        for name, model in timed.items():
            report["step_times"][name] = step_times(model, turns, progress.update)
            write(path, report)
    for result in finished(training, searches(steps), workers, "2/4 search for rates"):
        report["search"].append(result)
        write(path, report)
    jobs = trainings(report["search"], steps, settings["seeds"])
    for result in finished(training, jobs, workers, "3/4 trainings"):
        report["trainings"].append(result)
        report["summary"] = summary(report["trainings"])
        report["rsgdm_apart"]["float32"] = distances(report["trainings"])
        write(path, report)
    jobs = twins(report["search"], steps)
    for result in finished(training, jobs, workers, "4/4 RSGDM in float64"):
        report["float64"].append(result)
        report["rsgdm_apart"]["float64"] = distances(report["float64"])
        write(path, report)
    report["kind"] = "quick run" if quick else "full run"


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """As run, with those of a quick run."""
    names = ("steps", "seeds", "turns", "quick")
    found = {name: getattr(arguments, name) for name in names}
    return found | QUICK if arguments.quick else found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--steps", type=at_least(10), default=300, help="of each training (default 300)")
    add("--seeds", type=at_least(1), default=5, help="how many to train with (default 5)")
    add("--turns", type=at_least(1), default=10, help="of each optimizer's timing (default 10)")
    add("--workers", type=at_least(1), default=os.cpu_count(), help="trainings at a time")
    add("--quick", action="store_true", help="few steps of everything")


def run(arguments: argparse.Namespace, out: Path) -> None:
    """Measures, and writes end_to_end.json, .md and pictures into `out`."""
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "end_to_end.json"
    report = new_report("end-to-end", "cpu", settings_of(arguments))
    report |= {
        "step_times": {},
        "search": [],
        "trainings": [],
        "summary": {},
        "float64": [],
        "rsgdm_apart": {},
    }
    try:
        measure(report, arguments.workers, path)
    except KeyboardInterrupt:
        print("stopped: what was finished is kept", file=sys.stderr)
    report["seconds"] = time.monotonic() - begin
    write(path, report)
    report = plain(report)  # the page tells what is in the file
    (out / "end_to_end.md").write_text(as_markdown(report))
    if report["step_times"]:
        draw_steps(report["step_times"], out / "end_to_end_steps.png")
    if report["trainings"]:
        draw_trainings(report, out / "end_to_end.png")
    print(f"Results: {path}, end_to_end.md")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--threads", type=int, help="of the step times, by default torch's number")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/end_to_end"), help="folder of results"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    run(arguments, arguments.out)


if __name__ == "__main__":
    main()
