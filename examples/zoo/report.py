"""What trainings of the zoo came to: tables, curves, and a file of results."""

import itertools
import json
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from examples.zoo.training import Run
from examples.zoo.workload import Workload

Runs = list[Run]


def grouped(runs: Runs, key: Callable[[Run], str]) -> dict[str, Runs]:
    groups: dict[str, Runs] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


def optimizer_of(run: Run) -> str:
    return run.optimizer


def score(runs: Runs) -> str:
    if any(run.diverged for run in runs):
        return "diverged"
    return over_seeds([run.score for run in runs])


def over_seeds(scores: list[float]) -> str:
    """Mean ± standard deviation."""
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread}"


def print_model(workload: Workload, baselines: dict[str, float], runs: Runs) -> None:
    direction = "higher" if workload.higher_is_better else "lower"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Optimizer", no_wrap=True)
    details = next((list(run.details) for run in runs if not run.diverged), [])
    for heading in ("Rate", workload.metric, *details, "Step", "of it update", "States"):
        table.add_column(heading, justify="right", no_wrap=True)
    for label, group in grouped(runs, optimizer_of).items():
        table.add_row(
            label,
            f"{group[0].lr:g}",
            score(group),
            *(over_seeds([run.details.get(name, math.nan) for run in group]) for name in details),
            f"{statistics.median(run.step_ms for run in group):.1f} ms",
            f"{statistics.median(run.update_ms for run in group):.2f} ms",
            f"{group[0].state_bytes / 2**20:.1f} MiB",
        )
    table.add_section()
    for name, value in baselines.items():
        table.add_row(name, "", f"{value:.3f}")
    print(f"{workload.title}: {runs[0].parameters:,} parameters")
    wide_console().print(table)
    print(f"{workload.metric}, held-out data: {direction} is better; mean ± deviation over seeds.")


def print_all(
    workloads: list[Workload], baselines: dict[str, dict[str, float]], runs: Runs
) -> None:
    """Optimizers by models; the best of the baselines below."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Optimizer", no_wrap=True)
    for workload in workloads:
        arrow = "↑" if workload.higher_is_better else "↓"
        table.add_column(f"{workload.name}\n{workload.metric} {arrow}", justify="right")
    for label, group in grouped(runs, optimizer_of).items():
        of_model = grouped(group, lambda run: run.workload)
        table.add_row(
            label, *(score(of_model[w.name]) if w.name in of_model else "" for w in workloads)
        )
    table.add_section()
    table.add_row("best baseline", *(f"{best(w, baselines[w.name]):.3f}" for w in workloads))
    wide_console().print(table)


def best(workload: Workload, baselines: dict[str, float]) -> float:
    return (max if workload.higher_is_better else min)(baselines.values())


def wide_console() -> Console:
    """A pipe has no width, and a table cut to 80 columns would lose figures."""
    return Console(width=max(Console().width, 150))


def save(baselines: dict[str, dict[str, float]], runs: Runs, file: Path) -> None:
    rows = [
        {
            "model": run.workload,
            "optimizer": run.optimizer,
            "lr": run.lr,
            "seed": run.seed,
            "score": None if run.diverged else run.score,
            "details": run.details,
            "step_ms": run.step_ms,
            "update_ms": run.update_ms,
            "parameters": run.parameters,
            "state_bytes": run.state_bytes,
        }
        for run in runs
    ]
    part = file.with_suffix(".part")
    part.write_text(json.dumps({"baselines": baselines, "runs": rows}, indent=1) + "\n")
    os.replace(part, file)


def draw_curves(workload: Workload, runs: Runs, png: Path) -> None:
    """The training losses, smoothed, in a band over the seeds."""
    from examples.text_report import COLORS, draw_over_seeds, np, plt, smooth

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for color, (label, group) in zip(itertools.cycle(COLORS), grouped(runs, optimizer_of).items()):
        group = [run for run in group if not run.diverged]
        if group:
            losses = np.array([smooth(run.losses) for run in group])
            draw_over_seeds(axes, np.arange(1, losses.shape[1] + 1), losses, color, label, "")
    axes.set(title=workload.title, xlabel="step", ylabel="training loss, running mean")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False)
    figure.savefig(png, dpi=130)
    plt.close(figure)
