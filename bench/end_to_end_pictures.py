"""Pictures of the end-to-end results: step times, and curves of the trainings."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from bench.end_to_end_optimizers import ADAMW, RSGDM, SGD_NESTEROV
from bench.end_to_end_results import is_number
from bench.end_to_end_statistics import LEVEL
from bench.end_to_end_summary import of

# Okabe and Ito's colours, which the colour-blind can tell apart. The same mathematics has the same colour.
COLORS = {
    ADAMW: "#000000",
    "SigSignAdamW product": "#56B4E9",
    "SigSignAdamW normalized": "#0072B2",
    "TanhSignAdamW product": "#E69F00",
    "TanhSignAdamW normalized": "#D55E00",
    SGD_NESTEROV: "#009E73",
    RSGDM: "#CC79A7",
}


def draw_steps(step_times: dict[str, Any], png: Path) -> None:
    figure, axes_of_models = plt.subplots(
        1, len(step_times), figsize=(4.2 * len(step_times) + 1.5, 3.4), layout="constrained",
        sharey=True, squeeze=False,
    )  # fmt: skip
    for (name, timed), axes in zip(step_times.items(), axes_of_models[0], strict=True):
        names = list(timed["rows"])
        passes = [1e3 * timed["rows"][each]["passes"]["median"] for each in names]
        steps = [1e3 * timed["rows"][each]["optimizer"]["median"] for each in names]
        axes.barh(names, passes, color="#BBBBBB", label="forward and backward")
        axes.barh(names, steps, left=passes, color="#D55E00", label="optimizer")
        axes.set(title=f"{name}, {timed['parameters'] / 1e6:.1f} M parameters", xlabel="ms a step")
        axes.spines[["top", "right"]].set_visible(False)
    axes_of_models[0][0].invert_yaxis()
    handles, labels = axes_of_models[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(png, dpi=80)
    plt.close(figure)


def draw_trainings(report: dict[str, Any], png: Path) -> None:
    """Above the training losses, below how the test losses differ from AdamW's, with intervals."""
    tasks = list(report["summary"])
    figure, rows = plt.subplots(
        2, len(tasks), figsize=(4.6 * len(tasks), 7), layout="constrained", squeeze=False
    )
    for task, above, below in zip(tasks, *rows, strict=True):
        draw_curves(report, task, above)
        draw_differences(report["summary"][task], below)
    for axes in rows[1][1:]:
        axes.set_yticklabels([])  # the names are on the left
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(png, dpi=80)
    plt.close(figure)


def draw_curves(report: dict[str, Any], task: str, axes: plt.Axes) -> None:
    for name, color in COLORS.items():
        runs = [
            run for run in of(report["trainings"], task, name) if is_number(run["training_loss"])
        ]
        if not runs:
            continue
        curves = np.array([run["curve"] for run in runs])
        steps = runs[0]["steps"] * np.arange(1, curves.shape[1] + 1) / curves.shape[1]
        over_nesterov = {"linestyle": (0, (4, 4)), "zorder": 3} if name == RSGDM else {}
        axes.plot(
            steps, curves.mean(axis=0), color=color, label=name, linewidth=1.6, **over_nesterov
        )
    axes.set(title=task, xlabel="step", ylabel="training loss, mean over seeds", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def draw_differences(rows: dict[str, dict[str, Any]], axes: plt.Axes) -> None:
    names = [name for name in COLORS if name != ADAMW]
    for at, name in enumerate(names):
        pair = rows.get(name, {}).get("test_loss_less_adamw")
        if pair:
            mean, half = pair
            width = half if is_number(half) else 0
            axes.errorbar(mean, at, xerr=width, fmt="o", color=COLORS[name], capsize=3)
    axes.set_yticks(range(len(names)), names)
    axes.axvline(0, color=COLORS[ADAMW], linewidth=1)
    axes.set(xlabel=f"test loss less AdamW's ({LEVEL:.0%} interval)")
    axes.invert_yaxis()
    axes.grid(alpha=0.25, axis="x")
    axes.spines[["top", "right"]].set_visible(False)
