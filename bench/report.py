"""Results as one markdown page with pictures: ``python -m bench report``."""

from pathlib import Path
from typing import Any

from bench.records import Report, contenders_in, curve, full_graphs, load, milliseconds, slope

ORDER = (
    "optimizers",
    "scale",
    "gloss",
    "lists",
    "losses",
    "host",
    "plan",
    "zoo",
    "loop",
    "end_to_end",
    "quantisers",
)
NOTES = """\
ms: medians over interleaved rounds (A B A B), quartiles in brackets. "/ baseline" and "/ plain torch": the \
median of the times' ratio over the rounds. GB/s: bytes that an ideal step must move over its time; "of \
limit": that over the faster of a large copy and a large update in place in the same rounds, "of copy": over \
the copy alone. Kept, peak: bytes a parameter, with parameters and \
gradients. Adds: what clipping adds to the same step. Calls: launches of this library (on a processor: \
parallel regions), of others the operators that torch dispatches. bench/README.md has all fields."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as their cells, for readers of the source too; numbers to the right. Columns that
    nobody has something in are left out."""
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    lines = [[row[i].replace("|", "/") for i in kept] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(cells: list[str]) -> str:
        rest = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
        return "| " + " | ".join([cells[0].ljust(widths[0]), *rest]) + " |"

    return "\n".join(map(line, [lines[0], rule, *lines[1:]]))


def text(value: Any, form: str = "{:.3g}") -> str:
    return "" if value is None else form.format(value)


def size_bytes(value: float | None) -> str:
    if not value:
        return ""
    return f"{value / 2**30:.2f} GiB" if value >= 0.1 * 2**30 else f"{value / 2**20:.0f} MiB"


# Parts of the page.


def timing(name: str, row: dict[str, Any]) -> list[str]:
    low, high = map(milliseconds, row["quartiles"])
    ratio = row["ratios"].get(row.get("baseline"))
    cells = [name, milliseconds(row["seconds"]), f"[{low} {high}]"]
    return [*cells, text(ratio, "{:.3f}"), row["baseline"] if ratio else ""]


def calls(row: dict[str, Any]) -> str:
    if row.get("launches"):
        return f"{sum(row['launches'].values())} launches"
    return f"{row['operators']:,} operators" if "operators" in row else ""


TIMING = ["one step", "ms", "[quartiles]", "/ baseline", "baseline"]


def steps_table(scenario: dict[str, Any]) -> str:
    header = [
        *TIMING,
        "/ plain torch",
        "GB/s",
        "of limit",
        "of copy",
        "host µs",
        "kept",
        "peak",
        "adds ms",
        "calls",
    ]
    rows = []
    for name, row in scenario["rows"].items():
        peak, host = row.get("peak_bytes"), row.get("host_seconds")
        cells = [*timing(name, row), text(row["ratios"].get(row.get("plain")), "{:.3f}")]
        limit = row.get("share_of_limit")
        of_copy = row.get("share_of_copy") if limit is None else None
        cells += [text(row.get("gb_s")), text(limit, "{:.0%}"), text(of_copy, "{:.0%}")]
        cells += [text(1e6 * host, "{:,.0f}") if host else ""]
        cells += [text(row.get("memory", {}).get("in all"), "{:.2f}")]
        cells += [text(peak / scenario["parameters"], "{:.2f}") if peak else ""]
        cells += [milliseconds(row["added_seconds"]) if "added_seconds" in row else "", calls(row)]
        rows.append(cells)
    size = f"{scenario['tensors']:,} tensors, {scenario['parameters']:,} parameters\n\n"
    return size + table(header, rows)


def memory_table(scenario: dict[str, Any]) -> str:
    """Bytes of parameters and of each list of states."""
    found = {name: row["memory"] for name, row in scenario["rows"].items() if "memory" in row}
    keys = dict.fromkeys(key for sizes in found.values() for key in sizes if key != "in all")
    keys = [key for key in keys if any(sizes.get(key, 0) >= 0.01 for sizes in found.values())]
    rows = [
        [name, *(text(sizes.get(key), "{:.2f}") for key in (*keys, "in all"))]
        for name, sizes in found.items()
    ]
    return "\n\n" + table(["bytes a parameter", *keys, "in all"], rows)


def graphs_table(scenario: dict[str, Any]) -> str:
    rows = [
        [
            *timing(name, row),
            size_bytes(row.get("peak_bytes")),
            size_bytes(row.get("process_bytes")),
            calls(row),
            text(row.get("iterations") or None, "{}"),
        ]
        for name, row in scenario["rows"].items()
    ]
    return table([*TIMING, "extra memory", "whole process", "calls", "iterations"], rows)


def slopes(report: Report) -> str:
    scenarios, rows = full_graphs(report), []
    for name in contenders_in(scenarios):
        fits = [slope(curve(scenarios, name, "nodes", key)) for key in ("seconds", "peak_bytes")]
        rows.append([name, *(text(fit, "{:.2f}") for fit in fits)])
    return table(["exponent of N, fitted", "time", "extra memory"], rows) if rows else ""


def missing(scenario: dict[str, Any]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in scenario.get("missing", {}).items():
        by_reason.setdefault(reason, []).append(name)
    lines = [f"- not measured: {', '.join(names)} ({why})" for why, names in by_reason.items()]
    return "\n\n" + "\n".join(lines) if lines else ""


def scenario_section(suite: str, scenario: dict[str, Any]) -> str:
    title = f"### {scenario['name']}\n\n"
    if "skipped" in scenario:
        return f"{title}Skipped: {scenario['skipped']}.{missing(scenario)}"
    if "tables" in scenario:
        return title + "\n\n".join(table(t["header"], t["rows"]) for t in scenario["tables"])
    body = (graphs_table if suite in ("gloss", "lists", "losses") else steps_table)(scenario)
    if suite == "scale":
        body += memory_table(scenario)
    return title + body + missing(scenario)


def suite_section(report: Report) -> str:
    suite = report["suite"]
    head = f"## {suite}\n\n{report['kind']}, {report['date']}, {report['seconds']:.0f} s"
    parts = [f"{head}, copy {report['machine']['copy_gb_s']:.3g} GB/s", report.get("note")]
    parts += [slopes(report)] if suite == "gloss" else []
    parts += [scenario_section(suite, scenario) for scenario in report["scenarios"]]
    return "\n\n".join(part for part in parts if part)


def goals_table(reports: dict[str, Report]) -> str:
    rows = [
        [f"{suite}: {goal['goal']}", goal["measured"], goal["verdict"]]
        for suite, report in reports.items()
        for goal in report["goals"]
    ]
    return f"## Goals\n\n{table(['goal', 'measured', ' '], rows)}" if rows else ""


def page_of(reports: dict[str, Report], pictures: dict[str, str]) -> str:
    machine = next(iter(reports.values()))["machine"]
    about = "\n".join(f"- {key}: {text(value, '{}')}" for key, value in machine.items())
    parts = [f"# Benchmarks on {machine['device']}", about, NOTES, goals_table(reports)]
    parts += [f"![{title}]({path})" for title, path in pictures.items()]
    parts += [suite_section(report) for report in reports.values()]
    return "\n\n".join(part for part in parts if part) + "\n"


def read(folder: Path) -> dict[str, Report]:
    """The suites' results in a folder, in the page's order."""
    paths = {name: folder / f"{name}.json" for name in ORDER}
    return {name: load(path) for name, path in paths.items() if path.exists()}


def write_report(folder: Path, out: Path) -> str:
    """Write report.md and pictures into `out`; returns what was written, for a terminal."""
    reports = read(folder)
    if not reports:
        raise SystemExit(f"{folder} holds no results; measure with `python -m bench run`")
    out.mkdir(parents=True, exist_ok=True)
    try:
        from bench.pictures import draw
    except ImportError as error:
        drawn, said = {}, [f"no pictures: {error}"]
    else:
        drawn = draw(reports, out)
        said = [f"wrote {path}" for path in drawn.values()]
    page = page_of(reports, {title: path.name for title, path in drawn.items()})
    (out / "report.md").write_text(page)
    return "\n".join([*said, f"wrote {out / 'report.md'}"])
