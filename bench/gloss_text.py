"""A report of bench_gloss as text and as a plot."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench.gloss_baselines import AUTHORS, CONTENDERS
from bench.markdown import table

GIB = 2**30
COLORS = dict(
    zip(
        (contender.name for contender in CONTENDERS),
        ("#D55E00", "#CC79A7", "#E69F00", "#000000", "#0072B2", "#009E73", "#56B4E9", "#999999"),
        strict=True,
    )
)
NOTES = """\
Forward and backward of the official form with respect to the embeddings. "Times as fast": the authors' time \
over the contender's, the median over interleaved rounds. Extra memory: the peak of a step beyond what the \
process (on a card: the allocator, and the gradient) had before. Slopes: exponents of N, fitted by least \
squares to the logarithms of all points. The authors' form: their operations in their order and types \
(similarities in float32, the rest in float64, D^(-1/2) as a diagonal matrix, guards against NaN); "lean" \
leaves out what the mathematics does not need."""


def seconds(value: float) -> str:
    return f"{1e3 * value:,.{3 if value < 1e-3 else 2 if value < 1e-2 else 1}f} ms"


def size_bytes(value: float) -> str:
    return f"{value / GIB:.2f} GiB" if value >= 0.1 * GIB else f"{value / 2**20:.0f} MiB"


def size_section(nodes: str, size: dict[str, Any], memory: dict[str, Any]) -> str:
    header = ["one step", "median", "[quartiles]", "rounds", "times as fast", "extra memory"]
    lines = []
    for name, row in size["rows"].items():
        ratio = size["rows"].get(AUTHORS, {}).get("ratios", {}).get(name)
        peak = memory.get(name, {}).get("extra_bytes")
        cells = [name, seconds(row["seconds"])]
        cells += ["[" + " to ".join(map(seconds, row["quartiles"])) + "]", str(row["rounds"])]
        cells += ["" if ratio is None else f"{ratio:.2f}", size_bytes(peak) if peak else ""]
        lines.append(cells)
    text = f"## N = {int(nodes):,}\n\n{table(header, lines)}\n" if lines else f"## N = {nodes}\n"
    for name, why in size["missing"].items():
        text += f"\nNot measured: {name} ({why})\n"
    return text


def goal_lines(report: dict[str, Any]) -> list[str]:
    return [f"{g['verdict']}: {g['goal']}; measured: {g['measured']}" for g in report["goals"]]


def case_text(case: dict[str, Any]) -> str:
    if "missing" in case:
        return case["missing"]
    text = seconds(case["seconds"])
    if "extra_bytes" in case:
        text += f", {size_bytes(case['extra_bytes'])} beyond inputs and gradient"
        text += f", {case['launches']} launches, {case['iterations']} iterations"
    return text


def as_markdown(report: dict[str, Any]) -> str:
    shape = report["shape"]
    machine = ", ".join(f"{key}: {value}" for key, value in report["machine"].items())
    parts = [
        f"# G-Loss, d = {shape['dim']}, C = {shape['classes']}, sigma = {shape['sigma']}, "
        f"gamma = {shape['gamma']}\n",
        f"{report['kind']}, {report['seconds']:.0f} s. {machine}\n",
        "\n".join(f"- {line}" for line in goal_lines(report)) + "\n",
    ]
    slopes = [
        [name, *("" if value is None else f"{value:.2f}" for value in found.values())]
        for name, found in report["slopes"].items()
    ]
    if slopes:
        parts.append(table(["slope of", "time", "extra memory"], slopes) + "\n")
    memory = report["memory"]
    parts += [size_section(n, size, memory.get(n, {})) for n, size in report["sizes"].items()]
    if report["cases"]:
        cases = [f"- {name}: {case_text(case)}\n" for name, case in report["cases"].items()]
        parts.append("## Cases\n\n" + "".join(cases))
    if report["left_out"]:
        parts.append(f"Left out, the time was used up: {'; '.join(report['left_out'])}\n")
    return "\n".join([*parts, NOTES]) + "\n"


def points(report: dict[str, Any], name: str, what: str) -> list[tuple[float, float]]:
    """(N, seconds or extra bytes) of a contender."""
    if what == "seconds":
        rows = {int(n): size["rows"].get(name, {}) for n, size in report["sizes"].items()}
        return [(n, row["seconds"]) for n, row in rows.items() if row]
    rows = {int(n): found.get(name, {}) for n, found in report["memory"].items()}
    return [(n, row["extra_bytes"]) for n, row in rows.items() if row.get("extra_bytes")]


def draw(report: dict[str, Any], png: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained")
    panels = [("seconds", "time", "ms", 1e3), ("extra_bytes", "extra memory", "MiB", 2**-20)]
    for ax, (what, title, unit, scale) in zip(axes, panels, strict=True):
        for name, slopes in report["slopes"].items():
            found = points(report, name, what)
            if not found:
                continue
            slope = slopes["time" if what == "seconds" else "memory"]
            label = name if slope is None else f"{name}: slope {slope:.2f}"
            xs, ys = zip(*found, strict=True)
            scaled = [y * scale for y in ys]
            ax.plot(xs, scaled, marker="o", markersize=4, color=COLORS[name], label=label)
        ax.set(xscale="log", yscale="log", xlabel="N, nodes of the graph")
        ax.set(ylabel=unit, title=f"{title} of forward and backward")
        ax.grid(alpha=0.25, which="both")
        ax.spines[["top", "right"]].set_visible(False)
        if ax.has_data():
            ax.legend(frameon=False, fontsize=8)
    figure.savefig(png, dpi=130)
    plt.close(figure)
