"""What `train_images.py` shows of its runs: a table, a comparison of losses, and curves."""

import itertools
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from rich import box
from rich.console import Console
from rich.table import Table

# The first steps allocate the optimizer's state and warm the caches.
FIRST_STEPS = 5
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9")
MODEL_NAMES = {"vit": "ViT", "resnet": "ResNet"}


@dataclass
class Run:
    """One training of one model by one optimizer; losses and accuracies are one per epoch."""

    model: str
    optimizer: str
    backend: str
    # Runs of equal mathematics would be equal in exact arithmetic.
    mathematics: tuple
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"{self.optimizer} {self.backend}"


Runs = list[Run]


def by_model(runs: Runs) -> dict[str, dict[str, Runs]]:
    """The runs of all seeds, for each model and each label."""
    groups: dict[str, dict[str, Runs]] = {}
    for run in runs:
        groups.setdefault(run.model, {}).setdefault(run.label, []).append(run)
    return groups


def milliseconds_per_step(runs: Runs) -> float:
    later_steps = [run.step_seconds[FIRST_STEPS:] or run.step_seconds for run in runs]
    return 1000 * statistics.median(itertools.chain.from_iterable(later_steps))


def diverged(runs: Runs) -> bool:
    return not all(math.isfinite(run.losses[-1]) for run in runs)


def final_accuracy(runs: Runs) -> str:
    if diverged(runs):
        return "diverged"
    percents = [100 * run.accuracies[-1] for run in runs]
    spread = f" ± {statistics.stdev(percents):.1f}" if len(percents) > 1 else ""
    return f"{statistics.mean(percents):.1f}{spread} %"


def print_table(runs: Runs) -> None:
    baseline = next((run.label for run in runs if run.backend == "reference"), None)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("Model", "Optimizer", "Backend"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Test accuracy", "Time per step", "Speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for model, runs_of_label in by_model(runs).items():
        for group in runs_of_label.values():
            milliseconds = milliseconds_per_step(group)
            speed_up = ""
            if baseline in runs_of_label:
                speed_up = f"{milliseconds_per_step(runs_of_label[baseline]) / milliseconds:.2f} x"
            table.add_row(
                MODEL_NAMES[model],
                group[0].optimizer,
                group[0].backend,
                final_accuracy(group),
                f"{milliseconds:.3f} ms",
                speed_up,
            )
        table.add_section()
    Console().print(table)
    print("Test accuracy: after the last epoch, mean ± standard deviation over the seeds.")
    print("Time per step: median of optimizer.step() within the training.")
    if baseline:
        print(f"Speed-up: over {baseline}.")


def print_differences(runs: Runs) -> None:
    """Say how far apart runs have come that only differ in their rounding."""
    for model, runs_of_label in by_model(runs).items():
        for (one, ones), (other, others) in itertools.combinations(runs_of_label.items(), 2):
            if ones[0].mathematics != others[0].mathematics or diverged(ones + others):
                continue
            ratio = milliseconds_per_step(others) / milliseconds_per_step(ones)
            print(
                f"{MODEL_NAMES[model]}: {one} and {other} are the same mathematics. "
                "Rounding, which training amplifies, sets their training losses apart by "
                f"{loss_difference(ones, others, 0):.1e} at most in the first epoch and by "
                f"{loss_difference(ones, others, -1):.1e} in the last. "
                f"{one} steps {ratio:.2f} times as fast."
            )


def loss_difference(ones: Runs, others: Runs, epoch: int) -> float:
    pairs = zip(ones, others, strict=False)  # of the seeds that both were trained with
    return max(abs(one.losses[epoch] - other.losses[epoch]) for one, other in pairs)


def draw_curves(runs: Runs, png: Path) -> None:
    groups = by_model(runs)
    figure, rows = plt.subplots(
        len(groups), 2, figsize=(11, 3.8 * len(groups) + 0.8), squeeze=False, layout="constrained"
    )
    for (model, runs_of_label), row in zip(groups.items(), rows, strict=True):
        draw_model(model, runs_of_label, *row)
    handles, labels = rows[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def draw_model(
    model: str, runs_of_label: dict[str, Runs], loss_axes: Axes, accuracy_axes: Axes
) -> None:
    drawn = set()
    for color, (label, group) in zip(itertools.cycle(COLORS), runs_of_label.items()):
        # A curve that lies on an earlier one is thin and dashed, so that both can be seen.
        covers = group[0].mathematics in drawn
        style = {"linestyle": "--", "linewidth": 1.5} if covers else {"linewidth": 3, "alpha": 0.6}
        style |= {"color": color, "label": label}
        drawn.add(group[0].mathematics)
        draw_over_seeds(loss_axes, [run.losses for run in group], style)
        draw_over_seeds(accuracy_axes, [run.accuracies for run in group], style)
    loss_axes.set(title=f"{MODEL_NAMES[model]}: training loss", ylabel="cross-entropy")
    # There is no logarithmic axis of nothing.
    if not all(diverged(group) for group in runs_of_label.values()):
        loss_axes.set_yscale("log")
        loss_axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        loss_axes.yaxis.set_major_formatter("{x:g}")
        loss_axes.yaxis.set_minor_formatter(NullFormatter())
    accuracy_axes.set(
        title=f"{MODEL_NAMES[model]}: test accuracy", ylabel="correct", ylim=(None, 1)
    )
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)


def draw_over_seeds(axes: Axes, curves: list[list[float]], style: dict) -> None:
    """Draw the mean of the seeds' curves in a band from their least to their greatest."""
    epochs = range(1, len(curves[0]) + 1)
    values = np.array(curves)
    axes.plot(epochs, values.mean(axis=0), marker="o", markersize=4, **style)
    band = {"color": style["color"], "alpha": 0.12, "linewidth": 0}
    axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), **band)
