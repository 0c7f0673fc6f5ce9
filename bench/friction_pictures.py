"""Pictures of S and of what beta3 does: which-beta3-*.png."""

from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from bench.end_to_end_results import is_number
from bench.friction_recording import ALL, INPUT_QUANTILES, KINDS, QUANTILES, VECTORS
from bench.friction_tables import RATE_FACTORS, Study, tasks_of
from friction_kernels.optim.friction_adam import FRICTION_INPUTS

FORMULAS = {"product": "$g_{t-1} g_t$", "normalized": r"$g_{t-1} g_t / (\hat{v}_t + \epsilon)$"}
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
COLOR_OF = dict(zip((*KINDS, VECTORS), COLORS, strict=True))
FORM_COLORS = {"product": "#E69F00", "normalized": "#0072B2"}
RATE_STYLES = dict(zip(RATE_FACTORS, ((0, (1, 2)), "-", (0, (5, 2))), strict=True))
DPI = 75


def draw_all(report: dict[str, Any], folder: Path) -> dict[str, str]:
    """Those that there is data for: their names, by what they show."""
    studies = {task: Study(report, task) for task in tasks_of(report)}
    seen = {task: study for task, study in studies.items() if study.looks("", 0.0)}
    pictures: dict[str, str] = {}

    def save(what: str, figure: plt.Figure) -> None:
        pictures[what] = f"which-beta3-{what}.png"
        figure.savefig(folder / pictures[what], dpi=DPI)
        plt.close(figure)

    if seen:
        save("input", draw_inputs(seen))
    for form in FRICTION_INPUTS:
        drawn = {task: study for task, study in seen.items() if study.values(form)}
        if drawn:
            save(form, draw_friction(drawn, form))
    tried = {task: s for task, s in seen.items() if any(map(s.values, FRICTION_INPUTS))}
    if tried:
        save("loss", draw_losses(tried))
    return pictures


def grid(rows: int, columns: int, width: float, height: float, **shared):
    size = (width * columns + 0.8, height * rows + 0.8)
    return plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **shared)


def draw_inputs(studies: dict[str, Study]) -> plt.Figure:
    """|x| over the steps of a training without friction: band of all elements, medians of kinds."""
    figure, rows = grid(len(FRICTION_INPUTS), len(studies), 3.9, 3, sharex="col", sharey="row")
    for form, row in zip(FRICTION_INPUTS, rows, strict=True):
        for (task, study), axes in zip(studies.items(), row, strict=True):
            looks = [look for look in study.looks(form, 0.0) if form in look[ALL]]
            steps = [look["step"] for look in looks]
            of_all = np.array([look[ALL][form]["quantiles"] for look in looks]).T
            axes.fill_between(
                steps, of_all[0], of_all[-1], color="#888888", alpha=0.25, linewidth=0
            )
            middle = INPUT_QUANTILES.index(0.5)
            for kind, color in COLOR_OF.items():
                medians = [look[kind][form]["quantiles"][middle] for look in looks if kind in look]
                if medians:
                    axes.plot(steps, medians, color=color, label=kind)
            axes.set_yscale("log")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.set_title(task if form == FRICTION_INPUTS[0] else "")
        row[0].set_ylabel(f"|{FORMULAS[form]}|, {form}")
    for axes in rows[-1]:
        axes.set_xlabel("step")
    handles = {}
    for axes in rows[0]:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False
    )
    return figure


def draw_friction(studies: dict[str, Study], form: str) -> plt.Figure:
    """How S is distributed (shades), with its quartiles (lines), over the steps, by beta3."""
    values = next(iter(studies.values())).values(form)
    figure, rows = grid(len(studies), len(values), 1.7, 2, sharex=True, sharey=True)
    for (task, study), row in zip(studies.items(), rows, strict=True):
        for beta3, axes in zip(values, row, strict=True):
            looks = study.looks(form, beta3)
            axes.set_title(rf"$\beta_3$ = {beta3:g}", fontsize=10)
            if not looks:
                continue
            shares = np.array([look["histogram"] for look in looks]).T
            steps = [look["step"] for look in looks]
            edges = np.linspace(0, 2, len(shares) + 1)
            axes.pcolormesh(
                [0, *steps], edges, np.maximum(shares, 1e-4), cmap="Blues", norm=LogNorm(1e-4, 1)
            )
            for quantile in (0.25, 0.5, 0.75):
                at = QUANTILES.index(quantile)
                line = [look[ALL]["quantiles"][at] for look in looks]
                axes.plot(steps, line, color="#D55E00", linewidth=1.6 if quantile == 0.5 else 0.7)
        row[0].set_ylabel(f"{task}\nS", fontsize=10)
    for axes in rows[-1]:
        axes.set_xlabel("step")
    figure.suptitle(f"tanh friction, {form}: S over all elements (shades), quartiles (lines)")
    return figure


def draw_losses(studies: dict[str, Study]) -> plt.Figure:
    """By beta3: the final training loss, the deviation of S, and how much longer the steps are."""
    figure, rows = grid(3, len(studies), 3.9, 2.5, sharex=True)
    for (task, study), (losses, deviations, lengths) in zip(studies.items(), rows.T, strict=True):
        draw_final_losses(study, losses)
        draw_over_looks(study, "std", deviations)
        draw_over_looks(study, "step_length", lengths)
        losses.set_title(task)
        lengths.axhline(1, color="#000000", linewidth=1)
        lengths.set_xlabel(r"$\beta_3$ of tanh friction")
    labels = ("final training loss", "deviation of S", "step's norm / without friction")
    for row, label in zip(rows, labels, strict=True):
        row[0].set_ylabel(label)
        for axes in row:
            axes.set_xscale("log")
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    handles, names = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False)
    return figure


def draw_final_losses(study: Study, axes: plt.Axes) -> None:
    shown = []  # means: intervals of few seeds may reach far beyond
    for factor, style in RATE_STYLES.items():
        pair = study.loss("", 0.0, "training_loss", factor * study.rate)
        if pair:
            label = f"no friction, {factor:g} x rate"
            axes.axhline(pair[0], color="#000000", linewidth=1, linestyle=style, label=label)
            shown.append(pair[0])
    for form, color in FORM_COLORS.items():
        found = {b: study.loss(form, b, "training_loss") for b in study.values(form)}
        found = {b: pair for b, pair in found.items() if pair}
        if not found:
            continue
        means = [mean for mean, _ in found.values()]
        halves = [half if is_number(half) else 0 for _, half in found.values()]
        axes.errorbar(list(found), means, halves, color=color, marker="o", label=form, capsize=2)
        shown += means
    if shown:
        margin = 0.1 * (max(shown) - min(shown)) or 1
        axes.set_ylim(min(shown) - margin, max(shown) + margin)


def draw_over_looks(study: Study, key: str, axes: plt.Axes) -> None:
    """The median over the looks, and the range."""
    for form, color in FORM_COLORS.items():
        found = {b: [look[ALL][key] for look in study.looks(form, b)] for b in study.values(form)}
        found = {b: seen for b, seen in found.items() if seen}
        if not found:
            continue
        axes.plot(list(found), [median(seen) for seen in found.values()], color=color, marker="o")
        low, high = ([pick(seen) for seen in found.values()] for pick in (min, max))
        axes.fill_between(list(found), low, high, color=color, alpha=0.2, linewidth=0)
