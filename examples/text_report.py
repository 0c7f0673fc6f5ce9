"""What `finetune_text.py` measures and shows: a table, curves, and a projection of the embeddings."""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.metrics import f1_score, silhouette_score
from torch import Tensor

FIRST_STEPS = 3  # they allocate, and load libraries
MOST_MEASURED = 1000  # documents of a silhouette, which takes all their pairs
MOST_DRAWN = 2000
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#000000", "#D55E00", "#56B4E9")


@dataclass
class Scores:
    """What the test documents say after some steps."""

    step: int
    accuracy: float
    macro_f1: float
    silhouette: float
    unrecognised: frozenset[int]  # classes of which no test document was recognised


@dataclass
class Run:
    """One training with one loss and one optimizer; losses and times are one per step."""

    loss: str
    optimizer: str
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    embeddings: Tensor | None = None  # of the test documents, after the last step

    @property
    def label(self) -> str:
        return f"{self.loss}, {self.optimizer}"


Runs = list[Run]


def score(step: int, embeddings: Tensor, predicted: Tensor, labels: Tensor) -> Scores:
    right = predicted == labels
    return Scores(
        step,
        right.float().mean().item(),
        float(f1_score(labels.numpy(), predicted.numpy(), average="macro", zero_division=0)),
        silhouette(embeddings, labels),
        frozenset(labels.unique().tolist()) - frozenset(labels[right].tolist()),
    )


def silhouette(embeddings: Tensor, labels: Tensor) -> float:
    """Of cosine distances; NaN where there are no two classes to tell apart, or no numbers."""
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:MOST_MEASURED]
    embeddings, labels = embeddings[chosen], labels[chosen]
    if not 2 <= len(labels.unique()) < len(labels) or not embeddings.isfinite().all():
        return math.nan
    return float(silhouette_score(embeddings.numpy(), labels.numpy(), metric="cosine"))


def by_label(runs: Runs) -> dict[str, Runs]:
    """The runs of all seeds."""
    groups: dict[str, Runs] = {}
    for run in runs:
        groups.setdefault(run.label, []).append(run)
    return groups


def milliseconds_per_step(runs: Runs) -> float:
    later = [run.step_seconds[FIRST_STEPS:] or run.step_seconds for run in runs]
    return 1000 * statistics.median(itertools.chain.from_iterable(later))


def over_seeds(runs: Runs, value: Callable[[Scores], float], form: str) -> str:
    values = [value(run.scores[-1]) for run in runs]
    if not all(math.isfinite(run.losses[-1]) for run in runs):
        return "diverged"
    spread = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{spread}"


def print_table(runs: Runs) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("Loss", "Optimizer"):
        table.add_column(heading, no_wrap=True)
    for heading in ("Macro-F1 %", "Accuracy %", "Silhouette", "Time per step"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in by_label(runs).values():
        table.add_row(
            group[0].loss,
            group[0].optimizer,
            over_seeds(group, lambda scores: 100 * scores.macro_f1, ".1f"),
            over_seeds(group, lambda scores: 100 * scores.accuracy, ".1f"),
            over_seeds(group, lambda scores: scores.silhouette, ".3f"),
            f"{milliseconds_per_step(group):.1f} ms",
        )
    # A pipe has no width, and a table cut to 80 columns would lose figures.
    console = Console()
    Console(width=max(console.width, 100)).print(table)
    print("Test documents, after the last step: mean ± standard deviation over the seeds.")
    print(
        "Silhouette: of cosine distances. Time per step: median of forward, loss, backward, step."
    )


def print_unrecognised(runs: Runs, classes: list[str]) -> None:
    """Say where a training has not come to know some classes: macro-F1 counts each as zero."""
    for label, group in by_label(runs).items():
        missed = sorted(frozenset.union(*(run.scores[-1].unrecognised for run in group)))
        if missed:
            names = ", ".join(classes[index] for index in missed[:8])
            more = f" and {len(missed) - 8} more" if len(missed) > 8 else ""
            when = " with some seed" if len(group) > 1 else ""
            print(
                f"{label}: no test document of {names}{more} was recognised{when}. Rare classes are learned "
                "late: give more --steps."
            )


def draw_curves(runs: Runs, png: Path) -> None:
    figure, (of_loss, of_f1) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for color, (label, group) in zip(itertools.cycle(COLORS), by_label(runs).items()):
        losses = np.array([smooth(run.losses) for run in group])
        draw_over_seeds(of_loss, np.arange(1, losses.shape[1] + 1), losses, color, label, "")
        steps = [scores.step for scores in group[0].scores]
        f1 = np.array([[scores.macro_f1 for scores in run.scores] for run in group])
        draw_over_seeds(of_f1, steps, f1, color, label, "o")
    of_loss.set(title="training loss (each loss has its own scale)", ylabel="running mean")
    of_f1.set(title="test documents", ylabel="macro-F1")
    for axes in (of_loss, of_f1):
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = of_loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def smooth(values: list[float]) -> np.ndarray:
    """The mean of each value and those shortly before it."""
    window = max(1, len(values) // 20)
    sums = np.cumsum([0.0, *values])
    last = np.arange(1, len(values) + 1)
    first = np.maximum(0, last - window)
    return (sums[last] - sums[first]) / (last - first)


def draw_over_seeds(axes, steps, curves: np.ndarray, color: str, label: str, marker: str) -> None:
    """Draw the mean of the seeds' curves in a band from their least to their greatest."""
    style = {"color": color, "label": label, "marker": marker, "markersize": 4}
    axes.plot(steps, curves.mean(axis=0), linewidth=2, **style)
    band = {"color": color, "alpha": 0.12, "linewidth": 0}
    axes.fill_between(steps, curves.min(axis=0), curves.max(axis=0), **band)


def draw_projections(runs: Runs, labels: Tensor, classes: list[str], png: Path) -> None:
    """The first two principal components of each first seed's test embeddings, of length one."""
    firsts = [group[0] for group in by_label(runs).values()]
    columns = min(3, len(firsts))
    rows = math.ceil(len(firsts) / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(4.4 * columns, 4.2 * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:MOST_DRAWN]
    labels, colors = labels[chosen], plt.get_cmap("tab20" if len(classes) > 10 else "tab10")
    for axes in grid.flat[len(firsts) :]:
        axes.axis("off")
    for run, axes in zip(firsts, grid.flat, strict=False):
        points = principal_components(run.embeddings[chosen])
        for index, name in enumerate(classes):
            own = points[labels == index]
            axes.scatter(*own.T, s=6, alpha=0.6, color=colors(index % colors.N), label=name)
        title = f"{run.label}\nsilhouette {run.scores[-1].silhouette:.2f}"
        axes.set_title(title, fontsize=10)
        axes.set(xticks=[], yticks=[])
    handles, names = grid[0, 0].get_legend_handles_labels()
    if len(classes) <= 20:
        figure.legend(handles, names, loc="outside lower center", ncols=10, frameon=False)
    figure.savefig(png, dpi=130)
    plt.close(figure)


def principal_components(embeddings: Tensor) -> np.ndarray:
    z = torch.nn.functional.normalize(embeddings.double().nan_to_num(0.0, 0.0, 0.0), dim=1)
    z = z - z.mean(dim=0)
    _, _, directions = torch.linalg.svd(z, full_matrices=False)
    return (z @ directions[:2].T).numpy()
