"""The GPU report as text: what is printed last and kept as optimizers.md."""

from typing import Any

from bench.gpu_contenders import (
    ADAMP,
    ADAMW_FOR_LOOP,
    ADAMW_FUSED,
    COMPILED,
    COPY,
    SGD_FUSED,
)
from bench.gpu_goals import GOALS
from bench.markdown import table

# Columns of ratios: the other's time over this one's, so that more is faster.
AGAINST = {
    "eager equations": None,  # each rule's own
    "for-loop": ADAMW_FOR_LOOP,
    "foreach": "torch AdamW foreach",
    "fused": ADAMW_FUSED,
    "compiled": COMPILED,
    "SGD fused": SGD_FUSED,
    "adamp": ADAMP,
    "flashoptim": "flashoptim.FlashAdamW",
    "optimi": "optimi.AdamW (triton)",
}

SUMMED_UP = ("RSGDM", SGD_FUSED, COPY, "SigSignAdamW", "SigSignAdamP", ADAMW_FUSED)

NOTES = """\
µs: medians over interleaved rounds, CUDA events around some steps in a row, behind a millisecond in \
which the card spins, so that the host is ahead; quartiles in brackets. Host µs: until step() returns, \
nothing queued. GB/s: bytes that an ideal step must move over its time (float32: SigSign* and TanhSign* \
36 a parameter, RSGDM 20, SigSignAdamP 56: 20 read for its sums, then 36); of copy: against a copy of \
2 GiB in the same rounds. x X: X's time over this one's. Launches: what the library counts; kernels: \
what the profiler saw on the card. Contenders share parameters, gradients and moments. Gradients are \
random, so that AdamP projects few tensors."""


def judge(models: dict[str, Any]) -> list[dict[str, str]]:
    return [goal.verdict(models) for goal in GOALS]


def microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.{1 if seconds < 1e-4 else 0}f}"


def total(counts: dict[str, int] | None) -> str:
    return "" if counts is None else f"{sum(counts.values()):,}"


def ratio_cells(row: dict[str, Any], shown: dict[str, str | None]) -> list[str]:
    cells = []
    for other in shown.values():
        value = row.get("times_faster_than_eager")
        if other is not None:
            value = row.get("ratios", {}).get(other)
            value = 1 / value if value else None
        cells.append(f"{value:.2f}" if value else "")
    return cells


def model_section(name: str, model: dict[str, Any]) -> str:
    rows = model["rows"]
    shown = {short: other for short, other in AGAINST.items() if other is None or other in rows}
    header = ["step", "launches", "kernels", "µs", "[quartiles]", "host µs", "GB/s", "of copy"]
    header += [f"x {short}" for short in shown]
    lines = []
    for contender, row in rows.items():
        quartiles = " ".join(map(microseconds, row["quartiles"]))
        share = row.get("share_of_copy")
        cells = [contender, total(row.get("launches")), total(row.get("kernels_profiled"))]
        cells += [microseconds(row["seconds"]), f"[{quartiles}]"]
        cells += [microseconds(row["host_seconds"]), f"{row['gb_s']:,.0f}"]
        cells += ["" if share is None else f"{share:.1%}"]
        lines.append(cells + ratio_cells(row, shown))
    title = f"## {name}: {model['tensors']:,} tensors, {model['parameters']:,} parameters"
    text = f"{title}, {model['dtype']}\n\n{table(header, lines)}\n"
    for contender, why in model["missing"].items():
        text += f"\nNot measured: {contender} ({why})\n"
    return text


def copy_bandwidth(models: dict[str, Any]) -> str:
    found = {n: m["rows"][COPY]["gb_s"] for n, m in models.items() if COPY in m["rows"]}
    return ", ".join(f"{value:,.0f} GB/s ({name})" for name, value in found.items()) or "none"


def goal_lines(report: dict[str, Any]) -> list[str]:
    return [f"- {g['verdict']}: {g['goal']}: {g['measured']}" for g in report["goals"]]


def summary(report: dict[str, Any]) -> str:
    """What a terminal has room for: the parts, the goals, and the steps whose ratio is a goal."""
    lines = [
        f"{'ok' if p['ok'] else 'FAILED'}: {p['part']}: {p['summary']}" for p in report["parts"]
    ]
    lines += ["", *goal_lines(report), "", f"{report['machine']['device']}, {report['kind']}", ""]
    header = ["step", "launches", "µs", "host µs", "GB/s", "of copy", "x eager"]
    rows = []
    for name, model in report["models"].items():
        for contender, row in model["rows"].items():
            if contender in SUMMED_UP:
                share, eager = row.get("share_of_copy"), row.get("times_faster_than_eager")
                cells = [f"{name}: {contender}", total(row.get("launches"))]
                cells += [microseconds(row["seconds"]), microseconds(row["host_seconds"])]
                cells += [f"{row['gb_s']:,.0f}", "" if share is None else f"{share:.1%}"]
                rows.append([*cells, f"{eager:.2f}" if eager else ""])
    return "\n".join([*lines, table(header, rows)]) + "\n"


def as_markdown(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [f"# Optimizers on {machine['device']} ({report['kind']})", ""]
    if report["kind"] != "full run":
        lines += ["**No full run on a card: these numbers prove nothing about speed.**", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    lines += [f"- measured copy bandwidth, read plus written: {copy_bandwidth(report['models'])}"]
    lines += [f"- took {report['seconds']:.0f} s", "", "## Parts", ""]
    for part in report["parts"]:
        verdict = "ok" if part["ok"] else "FAILED"
        lines.append(f"- {verdict}: {part['part']}, {part['seconds']:.0f} s: {part['summary']}")
    lines += ["", NOTES, ""]
    lines += [model_section(name, model) for name, model in report["models"].items()]
    if report["goals"]:
        lines += ["## Goals", "", *goal_lines(report)]
    return "\n".join(lines).rstrip() + "\n"
