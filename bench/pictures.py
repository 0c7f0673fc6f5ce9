"""The report's pictures: a roofline, bars of step times, curves against N and against tensor counts."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench.contenders import ADAMW_FUSED, COPY
from bench.gloss_contenders import CONTENDERS
from bench.reading import (
    Report,
    contenders_in,
    curve,
    full_graphs,
    measured,
    milliseconds,
    roofline_points,
    slope,
)

OURS, THEIRS, ROOF = "#D55E00", "#8C9BA8", "#333333"
# The Okabe-Ito colours, told apart by all readers; more lines than these differ in their strokes.
COLORS = ("#D55E00", "#CC79A7", "#E69F00", "#000000", "#0072B2", "#009E73", "#56B4E9", "#999999")
STROKES = ("-", "--", ":")
MARKERS = "osD^vP*X<>"
BAR_SCENARIOS = 4
CUT = 4  # times the slowest of ours or torch's fused AdamW


def style(index: int) -> dict[str, Any]:
    colors = len(COLORS)
    stroke = index // colors
    return {
        "color": COLORS[index % colors],
        "linestyle": STROKES[stroke % len(STROKES)],
        "marker": MARKERS[stroke % len(MARKERS)],
        "markersize": 4,
    }


def save(figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def plain_axes(ax, log: bool = True) -> None:
    if log:
        ax.set(xscale="log", yscale="log")
    ax.grid(alpha=0.25, which="both" if log else "major")
    ax.spines[["top", "right"]].set_visible(False)


def roofline(reports: dict[str, Report], path: Path) -> Path | None:
    points = roofline_points(reports)
    if not points:
        return None
    machine = next(iter(reports.values()))["machine"]
    bandwidth = 1e9 * machine["copy_gb_s"]
    rates = {name: 1e9 * rate for name, rate in machine["matrix_gflop_s"].items()}
    figure, ax = plt.subplots(figsize=(11, 6), layout="constrained")
    low = min(p["intensity"] for p in points) / 3
    high = max([p["intensity"] for p in points] + [r / bandwidth for r in rates.values()]) * 3
    ax.plot(
        [low, max(rates.values()) / bandwidth],
        [low * bandwidth, max(rates.values())],
        color=ROOF,
        label=f"copy, {machine['copy_gb_s']:.3g} GB/s",
    )
    for stroke, (name, rate) in zip(STROKES, rates.items(), strict=False):
        label = f"matrix product in {name}, {rate / 1e9:,.3g} GFLOP/s"
        ax.plot([rate / bandwidth, high], [rate, rate], color=ROOF, linestyle=stroke, label=label)
    steps = [p for p in points if p["suite"] != "gloss"]
    graphs = [p for p in points if p["suite"] == "gloss"]
    for i, point in enumerate(steps):
        marker = MARKERS[i // len(COLORS) % len(MARKERS)]
        label = f"{point['name']} ({point['where']})"
        spot(ax, point, COLORS[i % len(COLORS)], marker, label)
    names = list(dict.fromkeys(point["name"] for point in graphs))
    for i, name in enumerate(names):
        mine = [point for point in graphs if point["name"] == name]
        label = f"{name}: {'; '.join(p['where'].split(', d')[0].split('N')[-1][3:] for p in mine)}"
        for j, point in enumerate(mine):
            color = COLORS[i % len(COLORS)]
            spot(ax, point, color, "P", f"{label} nodes" if j == 0 else None)
    plain_axes(ax)
    ax.set(xlabel="intensity: operations a byte", ylabel="operations a second")
    ax.set(title=f"Roofline, {machine['device']}, {machine['torch threads']} threads")
    figure.legend(loc="outside right upper", frameon=False, fontsize=6.5)
    return save(figure, path)


def spot(ax, point: dict[str, Any], color: str, marker: str, label: str | None) -> None:
    at = [point["intensity"]], [point["rate"]]
    ax.plot(*at, marker=marker, color=color, linestyle="", markersize=6, alpha=0.85, label=label)


def bars(report: Report, path: Path) -> Path | None:
    scenarios = measured(report)[:BAR_SCENARIOS]
    if not scenarios:
        return None
    tallest = max(len(s["rows"]) for s in scenarios)
    figure, axes = plt.subplots(
        1,
        len(scenarios),
        figsize=(5.2 * len(scenarios), 1 + 0.28 * tallest),
        layout="constrained",
        squeeze=False,
    )
    for ax, scenario in zip(axes[0], scenarios, strict=True):
        bars_of(ax, scenario)
    figure.suptitle(
        "A step, quartiles; orange: this library; dotted: torch's fused AdamW", fontsize=10
    )
    return save(figure, path)


def bars_of(ax, scenario: dict[str, Any]) -> None:
    rows = [(name, row) for name, row in scenario["rows"].items() if name != COPY]
    rows.sort(key=lambda item: -item[1]["seconds"])
    base = scenario["rows"].get(ADAMW_FUSED)
    ours = [row["quartiles"][1] for _, row in rows if row.get("ours")]
    # Bars far beyond these are cut, or the short ones could not be told apart.
    fast = max([base["quartiles"][1]] * bool(base) + ours or [rows[0][1]["seconds"]])
    edge = 1e3 * min(CUT * fast, max(row["quartiles"][1] for _, row in rows))
    for y, (_, row) in enumerate(rows):
        value, (low, high) = 1e3 * row["seconds"], (1e3 * q for q in row["quartiles"])
        ax.barh(y, min(value, edge), color=OURS if row.get("ours") else THEIRS)
        cut, label = value > edge, f" {milliseconds(row['seconds'])}"
        if not cut:
            ax.plot([low, min(high, edge)], [y, y], color=ROOF, linewidth=1.5)
        at = edge if cut else min(max(value, high), edge)
        ax.text(at, y, f" ▸{label}" if cut else label, va="center", fontsize=7)
    if base is not None:
        ax.axvline(1e3 * base["seconds"], color=ROOF, linestyle=":", linewidth=1)
    ax.set(xlabel="ms", title=scenario["name"], xlim=(0, 1.25 * edge))
    ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(y=0.01)


def graphs(report: Report, path: Path) -> Path | None:
    scenarios = full_graphs(report)
    if not scenarios:
        return None
    order = [contender.name for contender in CONTENDERS]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.2), layout="constrained")
    panels = (("seconds", "time", "ms", 1e3), ("peak_bytes", "extra memory", "MiB", 2**-20))
    for ax, (key, title, unit, scale) in zip(axes, panels, strict=True):
        for name in contenders_in(scenarios):
            points = curve(scenarios, name, "nodes", key)
            if not points:
                continue
            exponent = slope(points)
            label = name if exponent is None else f"{name}: slope {exponent:.2f}"
            xs, ys = zip(*points, strict=True)
            look = style(order.index(name) if name in order else len(order))
            ax.plot(xs, [y * scale for y in ys], label=label, **look)
        plain_axes(ax)
        ax.set(xlabel="N, nodes of the graph", ylabel=unit, title=f"{title} of a step")
        if ax.has_data():
            ax.legend(
                frameon=False, fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12)
            )
    return save(figure, path)


def host(report: Report, path: Path) -> Path | None:
    scenarios = sorted(measured(report), key=lambda s: s["tensors"])
    if not scenarios:
        return None
    figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
    for i, name in enumerate(contenders_in(scenarios)):
        xs, ys = zip(*curve(scenarios, name, "tensors", "host_seconds"), strict=True)
        ax.plot(xs, [1e6 * y for y in ys], label=name, **style(i))
    plain_axes(ax)
    ax.set(xlabel="tensors of 16 elements", ylabel="host µs a step", title="Host time of a step")
    ax.legend(frameon=False, fontsize=8)
    return save(figure, path)


def draw(reports: dict[str, Report], folder: Path, prefix: str = "") -> dict[str, Path]:
    """Every picture that these results have data for, by its title."""
    found = {"Roofline": roofline(reports, folder / f"{prefix}roofline.png")}
    for suite, title, make in (
        ("optimizers", "Time of a step", bars),
        ("gloss", "G-Loss against N", graphs),
        ("host", "Host time against the number of tensors", host),
    ):
        if suite in reports:
            found[title] = make(reports[suite], folder / f"{prefix}{suite}.png")
    return {title: path for title, path in found.items() if path is not None}
