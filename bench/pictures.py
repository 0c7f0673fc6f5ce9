"""The report's pictures: step times, curves against N and against the number of tensors."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from PIL import Image

from bench.contenders import ADAMW_FUSED, COPY, IN_PLACE
from bench.records import Report, contenders_in, curve, full_graphs, measured, milliseconds, slope

OURS, THEIRS, EDGE = "#D55E00", "#8C9BA8", "#333333"
# The Okabe-Ito colours, told apart by all readers; more lines than these differ in their strokes.
COLORS = ("#D55E00", "#CC79A7", "#E69F00", "#000000", "#0072B2", "#009E73", "#56B4E9", "#999999")
STROKES, MARKERS = ("-", "--", ":"), "osD"
SCENARIOS = 4


def style(index: int) -> dict[str, Any]:
    stroke = index // len(COLORS) % len(STROKES)
    look = {"color": COLORS[index % len(COLORS)], "linestyle": STROKES[stroke]}
    return {**look, "marker": MARKERS[stroke], "markersize": 4}


def save(figure, path: Path) -> Path:
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a third as large
    return path


def steps(report: Report, path: Path) -> Path | None:
    scenarios = measured(report)[:SCENARIOS]
    if not scenarios:
        return None
    tallest = max(len(s["rows"]) for s in scenarios)
    size = 5.2 * len(scenarios), 1 + 0.28 * tallest
    figure, axes = plt.subplots(
        1, len(scenarios), figsize=size, layout="constrained", squeeze=False
    )
    for ax, scenario in zip(axes[0], scenarios, strict=True):
        steps_of(ax, scenario)
    title = "A step, quartiles; orange: this library; dotted: torch's fused AdamW"
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def steps_of(ax, scenario: dict[str, Any]) -> None:
    rows = [(name, row) for name, row in scenario["rows"].items() if name not in (COPY, IN_PLACE)]
    rows.sort(key=lambda item: -item[1]["seconds"])
    for y, (_, row) in enumerate(rows):
        value, quartiles = 1e3 * row["seconds"], [1e3 * q for q in row["quartiles"]]
        ax.plot(value, y, "o", color=OURS if row.get("ours") else THEIRS)
        ax.plot(quartiles, [y, y], color=EDGE, linewidth=1.5, zorder=1)
        label = f"  {milliseconds(row['seconds'])}"
        ax.text(max(value, quartiles[1]), y, label, va="center", fontsize=7)
    if base := scenario["rows"].get(ADAMW_FUSED):
        ax.axvline(1e3 * base["seconds"], color=EDGE, linestyle=":", linewidth=1)
    ax.set(xlabel="ms", title=scenario["name"], xscale="log")
    ax.set_xlim(right=3 * ax.get_xlim()[1])
    ax.grid(alpha=0.25, axis="x")
    ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(y=0.03)


def curves(ax, scenarios: list[dict[str, Any]], x: str, y: str, scale: float) -> None:
    """A line for each contender, with the exponent of its growth."""
    for i, name in enumerate(contenders_in(scenarios)):
        points = curve(scenarios, name, x, y)
        if points:
            xs, ys = zip(*points, strict=True)
            exponent = slope(points)
            label = name if exponent is None else f"{name}: slope {exponent:.2f}"
            ax.plot(xs, [scale * y for y in ys], label=label, **style(i))
    ax.set(xscale="log", yscale="log")
    ax.grid(alpha=0.25, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    if ax.has_data():
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.12)}
        ax.legend(frameon=False, fontsize=7, ncols=2, **below)


def graphs(report: Report, path: Path) -> Path | None:
    scenarios = full_graphs(report)
    if not scenarios:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    panels = (("seconds", "time", "ms", 1e3), ("peak_bytes", "extra memory", "MiB", 2**-20))
    for ax, (key, title, unit, scale) in zip(axes, panels, strict=True):
        curves(ax, scenarios, "nodes", key, scale)
        ax.set(xlabel="N, nodes of the graph", ylabel=unit, title=f"{title} of a step")
    return save(figure, path)


def host(report: Report, path: Path) -> Path | None:
    scenarios = sorted(measured(report), key=lambda s: s["tensors"])
    if not scenarios:
        return None
    key = "host_seconds" if report["machine"]["kind"] == "cuda" else "seconds"
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    curves(ax, scenarios, "tensors", key, 1e6)
    ax.set(xlabel="tensors of 16 elements", ylabel="host µs a step", title="Host time of a step")
    return save(figure, path)


def draw(reports: dict[str, Report], folder: Path) -> dict[str, Path]:
    """Every picture that these results have data for, by its title."""
    found = {
        title: make(reports[suite], folder / f"{suite}.png")
        for suite, title, make in (
            ("optimizers", "Time of a step", steps),
            ("gloss", "G-Loss against N", graphs),
            ("host", "Host time against the number of tensors", host),
        )
        if suite in reports
    }
    return {title: path for title, path in found.items() if path is not None}
