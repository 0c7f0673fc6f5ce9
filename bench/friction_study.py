"""Which beta3? How the friction S is distributed over trainings, and what beta3 does to their losses.

    python -m bench run friction          about 15 minutes on two cores
    python -m bench run friction --quick  few steps of everything, to see that all works

The examples' ViT, ResNet and GPT are trained with tanh friction, published and normalized, at values of
beta3 over several decades, and without friction at three rates. tanh friction at beta3 and a rate is
sigmoid friction at 2 beta3 and twice the rate; the first seed is trained with both. S is noted in the
first seed's trainings, at every element. Ctrl-C keeps what is done.
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

from bench.end_to_end_optimizers import with_friction
from bench.end_to_end_results import finished, plain, write
from bench.end_to_end_tasks import TASKS, at_least
from bench.end_to_end_training import train
from bench.friction_pictures import draw_all
from bench.friction_recording import Recorder, midway
from bench.friction_tables import RATE_FACTORS
from bench.friction_text import as_markdown
from bench.records import new_report
from friction_kernels import SigSignAdamW, TanhSignAdamW
from friction_kernels.equations import NEUTRAL_FRICTION

RATE = 3e-3  # of AdamW; sigmoid friction has twice as much
# Values for tanh friction; sigmoid friction has twice as much.
BETA3 = {
    "product": (1.0, 1e2, 1e4, 1e6, 1e8, 1e10),
    "normalized": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
}
KINDS = {"tanh": TanhSignAdamW, "sigmoid": SigSignAdamW}
LOOKS = 12
QUICK = {"steps": 12, "seeds": 2}


@dataclass(frozen=True)
class Job:
    """beta3 as the tanh friction that takes the same steps has it; 0 is without friction."""

    task: str
    friction: str
    friction_input: str
    beta3: float
    rate: float
    seed: int
    steps: int


def jobs(steps: int, seeds: int) -> Iterator[Job]:
    forms = [(form, beta3) for form, values in BETA3.items() for beta3 in values]
    # Seeds are outermost: whoever stops early has all values on fewer seeds.
    for seed, task in itertools.product(range(seeds), TASKS):
        for factor in RATE_FACTORS:
            yield Job(task, "tanh", "product", 0.0, factor * RATE, seed, steps)
        for friction, (form, beta3) in itertools.product(KINDS, forms):
            if friction == "tanh" or seed == 0:
                yield Job(task, friction, form, beta3, RATE, seed, steps)


def looks_of(steps: int) -> list[int]:
    """Steps evenly over the training; not the first, before which there is no gradient."""
    return sorted({max(2, round(i * steps / LOOKS)) for i in range(1, LOOKS + 1)})


def recorder_of(job: Job) -> Recorder:
    """Of one seed; most of the training without friction, little of what tanh friction does as well."""
    looks = looks_of(job.steps)
    half = [midway(looks)]
    if job.seed != 0 or job.rate != RATE:
        looks = []
    elif job.friction != "tanh":
        looks = half
    return Recorder(looks, kinds=looks if job.beta3 == 0 else half, inputs=job.beta3 == 0)


def training(job: Job) -> dict[str, Any]:
    begin = time.perf_counter()
    kind = KINDS[job.friction]
    beta3 = job.beta3 / NEUTRAL_FRICTION[kind.rule.friction]
    entrant = with_friction(kind, friction_input=job.friction_input, beta3=beta3)
    recorder = recorder_of(job)
    trained = train(job.task, partial(entrant.build, rate=job.rate), job.seed, job.steps, recorder)
    found = {**asdict(job), **asdict(trained), "seconds": time.perf_counter() - begin}
    del found["curve"]
    return {**found, "looks": recorder.looks}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--steps", type=at_least(12), default=300, help="of each training (default 300)")
    add("--seeds", type=at_least(1), default=3, help="how many to train with (default 3)")
    add("--workers", type=at_least(1), default=os.cpu_count(), help="trainings at a time")
    add("--quick", action="store_true", help="few steps of everything")


def run(arguments: argparse.Namespace, out: Path) -> None:
    """Measures, and writes friction.json, .md and which-beta3-*.png."""
    begin = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "friction.json"
    settings = {name: getattr(arguments, name) for name in ("steps", "seeds", "quick")}
    settings |= QUICK if arguments.quick else {}
    report = new_report("friction", "cpu", settings) | {"rate": RATE, "trainings": []}
    planned = jobs(settings["steps"], settings["seeds"])
    try:
        for result in finished(training, planned, arguments.workers, "trainings"):
            report["trainings"].append(result)
            write(path, report)
        report["kind"] = "quick run" if arguments.quick else "full run"
    except KeyboardInterrupt:
        print("stopped: what was finished is kept", file=sys.stderr)
    report["seconds"] = time.monotonic() - begin
    write(path, report)
    report = plain(report)  # the page tells what is in the file
    pictures = draw_all(report, out)
    (out / "friction.md").write_text(as_markdown(report, pictures))
    print(f"Results: {path}, friction.md")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/friction"), help="folder of results")
    arguments = parser.parse_args()
    run(arguments, arguments.out)


if __name__ == "__main__":
    main()
