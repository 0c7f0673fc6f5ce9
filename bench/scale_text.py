"""The report of `bench.bench_scale` as text: what is printed, and kept as scale.md."""

from typing import Any

from bench.gpu_contenders import ADAMW_FUSED
from bench.markdown import table
from bench.scale_contenders import PLAIN

NOTES = """\
ms: medians over interleaved rounds, quartiles in brackets. / X: time over X's, the median of this ratio \
over the rounds. GB/s: bytes that an ideal step must move over its time: what is kept is read and written \
once, gradients are read once, twice where the step clips, and moved four times where clip_grad_norm_ goes \
before. Bytes are of parameters and states, for a parameter; peak: of those, gradients and all that was \
there at once on the way through the first steps. 8bit: `state_dtype="8bit"`; prev_grad 8bit: that alone; \
bf16: parameters, where not of the state."""


def cell(value: float | None, form: str = "{:.2f}") -> str:
    return "" if value is None else form.format(value)


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.0f}" if abs(seconds) >= 1 else f"{1e3 * seconds:.3g}"


def times(rows: dict[str, Any]) -> str:
    header = ["step", "ms", "[quartiles]", "GB/s", "of copy", "/ AdamW fused", "/ SigSignAdamW"]
    header += ["bytes", "peak", "launches"]
    lines = []
    for name, row in rows.items():
        low, high = map(milliseconds, row["quartiles"])
        cells = [name, milliseconds(row["seconds"]), f"[{low} {high}]", f"{row['gb_s']:,.0f}"]
        cells += [cell(row.get("share_of_copy"), "{:.0%}")]
        cells += [cell(row["ratios"].get(other), "{:.3f}") for other in (ADAMW_FUSED, PLAIN.name)]
        cells += [cell(row.get("memory", {}).get("in all")), cell(row.get("peak_bytes"))]
        lines.append([*cells, cell(sum(row.get("launches", {}).values()) or None, "{}")])
    return table(header, lines)


def added(rows: dict[str, Any]) -> str:
    header = ["what clipping adds", "to", "ms", "bytes of traffic a parameter"]
    lines = [
        [name, row["alone"], milliseconds(row["added_seconds"]), cell(row.get("added_bytes"))]
        for name, row in rows.items()
        if "added_seconds" in row
    ]
    return table(header, lines)


def memory(rows: dict[str, Any]) -> str:
    """What memory_report() says; of peers the same is counted."""
    found = {name: row["memory"] for name, row in rows.items() if "memory" in row}
    lists = list(dict.fromkeys(key for sizes in found.values() for key in sizes))
    lists = [key for key in lists if any(sizes.get(key, 0) >= 0.01 for sizes in found.values())]
    lists.append(lists.pop(lists.index("in all")))
    lines = [[name, *(cell(sizes.get(key)) for key in lists)] for name, sizes in found.items()]
    return table(["bytes a parameter", *lists], lines)


def goal_lines(report: dict[str, Any]) -> list[str]:
    return [f"- {g['verdict']}: {g['goal']}: {g['measured']}" for g in report["goals"]]


def as_markdown(report: dict[str, Any]) -> str:
    lines = [f"# Training at scale, {report['model']} ({report['kind']})", ""]
    lines += [f"- {key}: {value}" for key, value in report["machine"].items()]
    lines += [f"- {report['tensors']:,} tensors, {report['parameters']:,} parameters"]
    lines += [f"- took {report['seconds']:.0f} s", "", NOTES]
    rows = report["rows"]
    if rows:
        lines += ["", times(rows), "", added(rows), "", memory(rows)]
    lines += [f"\nNot measured: {name} ({why})" for name, why in report["missing"].items()]
    lines += ["", "## Goals", "", *goal_lines(report)]
    return "\n".join(lines) + "\n"
