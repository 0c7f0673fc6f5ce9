"""The report's pictures, 700 pixels wide: one of each model's step times, curves against a size.

The same colour means the same everywhere: COLORS.
"""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator
from PIL import Image

from bench.contenders import ADAMP, ADAMW_FUSED, SGD_FUSED
from bench.gloss_contenders import AUTHORS, OURS
from bench.records import Report, curve, full_graphs, measured, milliseconds, slope

# Of Okabe and Ito, told apart by all readers.
COLORS = {
    "this library": "#D55E00",
    "PyTorch": "#0072B2",
    "other libraries": "#7F7F7F",
    "equations, eager or compiled": "#009E73",
}
EAGER = ("eager", "torch.compile", AUTHORS)
WIDTH, DPI = 7, 100
# Who is shown, in this order: peers first, so that ours stand under those who compute the same.
STEPS = (
    "torch AdamW for-loop",
    "torch AdamW foreach",
    "bitsandbytes.AdamW",
    "optimi.AdamW",
    ADAMW_FUSED,
    "AdamW",
    "SigSignAdamW eager equations",
    "SigSignAdamW torch.compile of the equations, per tensor",
    "pytorch_optimizer.DiffGrad",
    "SigSignAdamW",
    "SigSignAdamW normalized",
    ADAMP,
    "pytorch_optimizer.AdamP",
    "SigSignAdamP",
    "AdamP",
    "torch SGD nesterov for-loop",
    SGD_FUSED,
    "SGD nesterov",
    "RSGDM",
)
STROKES, MARKERS = ("-", "--", ":"), "osD"


class Lines(NamedTuple):
    """Curves of one quantity against one size, on logarithmic axes."""

    shown: dict[str, str]  # contenders, and what the legend calls them
    x: str
    y: str
    scale: float
    xlabel: str
    ylabel: str
    title: str


GRAPHS = {
    OURS: "GLoss",
    AUTHORS: "dense float64, as the authors do it",
    "dense fp32, eager": "dense float32, eager",
    "dense fp32, torch.compile": "dense float32, torch.compile",
    "PyKeOps": "PyKeOps",
}
GRAPH_TIME = Lines(
    GRAPHS, "nodes", "seconds", 1e3, "N, nodes of the graph", "ms", "Forward and backward"
)
GRAPH_MEMORY = Lines(
    GRAPHS, "nodes", "peak_bytes", 2**-20, "N, nodes of the graph", "MiB", "Extra memory"
)
HOST = Lines(
    {name: name for name in ("torch AdamW foreach", ADAMW_FUSED, "SigSignAdamW", "RSGDM")},
    "tensors",
    "seconds",
    1e3,
    "tensors of 16 elements",
    "ms",
    "A step over many tiny tensors",
)


def color(name: str) -> str:
    if any(word in name for word in EAGER):
        return COLORS["equations, eager or compiled"]
    if name.startswith("torch "):
        return COLORS["PyTorch"]
    ours = name in ("AdamW", "AdamP", "SGD nesterov", OURS) or name.startswith(("SigSign", "RSGDM"))
    return COLORS["this library" if ours else "other libraries"]


def save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)  # a third as large
    return path


def plain(axis: Any) -> None:
    """Ticks at 1, 2, 5, 10, written as numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_locator(LogLocator(subs="all"))
    axis.set_minor_formatter(FuncFormatter(lambda *_: ""))


def step(scenario: dict[str, Any], path: Path) -> Path:
    rows = [(name, scenario["rows"][name]) for name in STEPS if name in scenario["rows"]]
    figure, ax = plt.subplots(figsize=(WIDTH, 1.6 + 0.27 * len(rows)), layout="constrained")
    for y, (name, row) in enumerate(rows):
        value, (low, high) = 1e3 * row["seconds"], (1e3 * q for q in row["quartiles"])
        ax.plot([low, high], [y, y], color=color(name), linewidth=2)
        ax.plot(value, y, "o", color=color(name))
        ax.annotate(
            milliseconds(row["seconds"]),
            (max(value, high), y),
            (7, 0),
            textcoords="offset points",
            va="center",
        )
    ax.set(xscale="log", xlabel="ms, logarithmic; points are medians, lines quartiles")
    ax.set_title(f"One step, {scenario['name']}")
    ax.set_xlim(right=1.6 * ax.get_xlim()[1])
    plain(ax.xaxis)
    ax.set_yticks(range(len(rows)), [name.replace(" of the equations", "") for name, _ in rows])
    ax.invert_yaxis()
    ax.grid(alpha=0.25, axis="x")
    ax.spines[["top", "right"]].set_visible(False)
    seen = {color(name) for name, _ in rows}
    marks = [
        Line2D([], [], color=c, marker="o", linestyle="", label=of)
        for of, c in COLORS.items()
        if c in seen
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return save(figure, path)


def curves(scenarios: list[dict[str, Any]], lines: Lines, path: Path) -> Path | None:
    """A line for each contender, with the exponent of its growth."""
    figure, ax = plt.subplots(figsize=(WIDTH, 5), layout="constrained")
    used: dict[str, int] = {}
    for name, label in lines.shown.items():
        points = curve(scenarios, name, lines.x, lines.y)
        if (exponent := slope(points)) is None:
            continue
        xs, ys = zip(*points, strict=True)
        look = used.setdefault(color(name), 0)
        used[color(name)] += 1
        ax.plot(
            xs,
            [lines.scale * y for y in ys],
            color=color(name),
            linestyle=STROKES[look],
            marker=MARKERS[look],
            label=f"{label}: slope {exponent:.2f}",
        )
    if not used:
        plt.close(figure)
        return None
    ax.set(xscale="log", yscale="log", xlabel=lines.xlabel, ylabel=lines.ylabel, title=lines.title)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    ax.grid(alpha=0.25, which="both")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def draw(reports: dict[str, Report], folder: Path) -> dict[str, Path]:
    """Every picture that these results have data for, by its title."""
    found: dict[str, Path | None] = {}
    if "optimizers" in reports:
        for scenario in measured(reports["optimizers"]):
            path = folder / f"step-{scenario['name'].replace(' ', '-')}.png"
            found[f"One step, {scenario['name']}"] = step(scenario, path)
    if "gloss" in reports:
        graphs = full_graphs(reports["gloss"])
        found["G-Loss, time against N"] = curves(graphs, GRAPH_TIME, folder / "gloss-time.png")
        found["G-Loss, memory against N"] = curves(
            graphs, GRAPH_MEMORY, folder / "gloss-memory.png"
        )
    if "host" in reports:
        of_host = "host_seconds" if reports["host"]["machine"]["kind"] == "cuda" else "seconds"
        by_size = sorted(measured(reports["host"]), key=lambda s: s["tensors"])
        found["Many tiny tensors"] = curves(by_size, HOST._replace(y=of_host), folder / "host.png")
    return {title: path for title, path in found.items() if path is not None}
