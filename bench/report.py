"""Results as one markdown page with pictures: ``python -m bench report``."""

import re
from pathlib import Path
from typing import Any

from bench.markdown import table
from bench.reading import (
    Report,
    contenders_in,
    curve,
    full_graphs,
    milliseconds,
    size_bytes,
    slope,
)
from bench.records import load

ORDER = ("optimizers", "scale", "gloss", "host", "plan", "loop", "quantisers")
NOTES = """\
ms: medians over interleaved rounds (A B A B), quartiles in brackets. "/ baseline": time over the named \
baseline's, the median of this ratio over the rounds. GB/s: bytes that an ideal step must move over its \
time; "of copy": that over a large copy's, measured in the same rounds. Peak: bytes beyond what there was \
before, with parameters and gradients where it is given for a parameter. Launches: kernels of this library \
(on a processor: parallel regions); operators: what torch dispatches, of the others. bench/README.md has \
all fields."""


def text(value: Any, form: str = "{:.3g}") -> str:
    return "" if value is None else form.format(value)


def calls(row: dict[str, Any]) -> str:
    if "launches" in row:
        return f"{sum(row['launches'].values())} launches" if row["launches"] else ""
    return f"{row['operators']:,} operators" if "operators" in row else ""


def timing(name: str, row: dict[str, Any]) -> list[str]:
    low, high = map(milliseconds, row["quartiles"])
    return [name, milliseconds(row["seconds"]), f"[{low} {high}]", str(row["rounds"])]


def against(row: dict[str, Any]) -> list[str]:
    return [text(row.get("ratio"), "{:.3f}"), row.get("baseline") or ""]


def dropped_empty(header: list[str], rows: list[list[str]]) -> str:
    """The table without the columns that nobody has something in."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return table([header[i] for i in kept], [[row[i] for i in kept] for row in rows])


def steps_table(scenario: dict[str, Any]) -> str:
    header = ["one step", "ms", "[quartiles]", "rounds", "/ baseline", "baseline", "/ plain torch"]
    header += ["GB/s", "of copy", "host µs", "bytes kept", "peak", "calls", "differs"]
    rows = []
    for name, row in scenario["rows"].items():
        peak = row.get("peak_bytes")
        plain = row["ratios"].get(row.get("plain"))
        cells = [*timing(name, row), *against(row), text(plain, "{:.3f}")]
        cells += [text(row.get("gb_s")), text(row.get("share_of_copy"), "{:.0%}")]
        cells += [text(1e6 * row["host_seconds"], "{:,.0f}")]
        cells += [text(row.get("memory", {}).get("in all"), "{:.2f}")]
        cells += [text(peak / scenario["parameters"], "{:.2f}") if peak else "", calls(row)]
        cells += [f"{row['difference']:.1e} of {row['equals']}" if "difference" in row else ""]
        rows.append(cells)
    size = f"{scenario['tensors']:,} tensors, {scenario['parameters']:,} parameters\n\n"
    return size + dropped_empty(header, rows)


def added_table(scenario: dict[str, Any]) -> str:
    rows = [
        [name, row["alone"], milliseconds(row["added_seconds"])]
        for name, row in scenario["rows"].items()
        if "added_seconds" in row
    ]
    return "\n\n" + table(["what clipping adds", "to", "ms"], rows) if rows else ""


def memory_table(scenario: dict[str, Any]) -> str:
    """What memory_report() says; of peers the same is counted."""
    found = {name: row["memory"] for name, row in scenario["rows"].items() if "memory" in row}
    lists = list(dict.fromkeys(key for sizes in found.values() for key in sizes if key != "in all"))
    lists = [key for key in lists if any(sizes.get(key, 0) >= 0.01 for sizes in found.values())]
    rows = [
        [name, *(text(sizes.get(key), "{:.2f}") for key in (*lists, "in all"))]
        for name, sizes in found.items()
    ]
    return "\n\n" + table(["bytes a parameter", *lists, "in all"], rows)


def graphs_table(scenario: dict[str, Any]) -> str:
    header = ["one step", "ms", "[quartiles]", "rounds", "/ baseline", "baseline", "extra memory"]
    header += ["whole process", "GFLOP/s", "calls", "iterations"]
    rows = []
    for name, row in scenario["rows"].items():
        peak, process = row.get("peak_bytes"), row.get("process_bytes")
        cells = [*timing(name, row), *against(row), size_bytes(peak) if peak else ""]
        cells += [size_bytes(process) if process else ""]
        rate = row["flops"] / row["seconds"] / 1e9 if row.get("flops") else None
        cells += [text(rate), calls(row), text(row.get("iterations") or None, "{}")]
        rows.append(cells)
    return dropped_empty(header, rows)


def loop_table(scenario: dict[str, Any]) -> str:
    header = ["step", "in the loop, µs", "alone, µs", "in the loop / alone", "fwd + bwd, ms"]
    rows = [
        [
            name,
            f"{1e6 * row['seconds']:,.0f}",
            f"{1e6 * row['alone_seconds']:,.0f}",
            f"{row['loop_to_alone']:.2f}",
            milliseconds(row["backward_seconds"]),
        ]
        for name, row in scenario["rows"].items()
    ]
    return table(header, rows)


def slopes(report: Report) -> str:
    scenarios, rows = full_graphs(report), []
    for name in contenders_in(scenarios):
        fits = [slope(curve(scenarios, name, "nodes", key)) for key in ("seconds", "peak_bytes")]
        rows.append([name, *(text(fit, "{:.2f}") for fit in fits)])
    return table(["exponent of N, fitted", "time", "extra memory"], rows) + "\n\n" if rows else ""


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
    if suite == "gloss":
        body = graphs_table(scenario)
    elif suite == "loop":
        body = loop_table(scenario)
    else:
        body = steps_table(scenario)
    if suite == "scale":
        body += added_table(scenario) + memory_table(scenario)
    return title + body + missing(scenario)


def suite_section(report: Report) -> str:
    suite = report["suite"]
    parts = [f"## {suite}\n\n{report['kind']}, {report['date']}, {report['seconds']:.0f} s"]
    parts[0] += f", copy {report['machine']['copy_gb_s']:.3g} GB/s"
    if suite == "gloss":
        parts.append(slopes(report).rstrip())
    parts += [scenario_section(suite, scenario) for scenario in report["scenarios"]]
    return "\n\n".join(part for part in parts if part)


def goals_table(reports: dict[str, Report]) -> str:
    rows = [
        [f"{suite}: {goal['goal']}", goal["measured"], goal["verdict"]]
        for suite, report in reports.items()
        for goal in report["goals"]
    ]
    return f"## Goals\n\n{table(['goal', 'measured', ''], rows)}" if rows else ""


def machine_lines(machine: dict[str, Any]) -> str:
    found = {**machine, "copy_gb_s": f"{machine['copy_gb_s']:.3g}"}
    rates = machine["matrix_gflop_s"].items()
    found["matrix_gflop_s"] = ", ".join(f"{name} {rate:,.3g}" for name, rate in rates)
    return "\n".join(f"- {key}: {value}" for key, value in found.items())


def studies(folder: Path, reports: dict[str, Report]) -> list[str]:
    """Parts that suites with pages of their own have written, one heading lower."""
    found = []
    for path in sorted(folder.glob("*.md")):
        own = path.stem in reports or path.stem == "gpu_report"
        if path.with_suffix(".json").exists() and not own:
            found.append(re.sub(r"^#", "##", path.read_text().rstrip(), flags=re.MULTILINE))
    return found


def read(folder: Path) -> dict[str, Report]:
    """The suites' results in a folder, in the page's order; those of studies are not among them."""
    found = {}
    for name in ORDER:
        path = folder / f"{name}.json"
        if path.exists():
            found[name] = load(path)
    return found


def page_of(folder: Path, reports: dict[str, Report], pictures: dict[str, str]) -> str:
    parts = []
    if reports:
        machine = next(iter(reports.values()))["machine"]
        parts += [f"# Benchmarks on {machine['device']}", machine_lines(machine), NOTES]
    parts.append(goals_table(reports))
    parts += [f"![{title}]({path})" for title, path in pictures.items()]
    parts += [suite_section(report) for report in reports.values()]
    return "\n\n".join(part for part in [*parts, *studies(folder, reports)] if part)


def write_report(folders: list[Path], out: Path) -> str:
    """Write report.md and pictures into `out`; returns what was written, for a terminal."""
    pages, said = [], []
    for folder in folders:
        reports = read(folder)
        if not reports and not studies(folder, reports):
            raise SystemExit(f"{folder} holds no results; measure with `python -m bench run`")
        prefix = f"{folder.name}-" if len(folders) > 1 else ""
        try:
            from bench.pictures import draw
        except ImportError as error:
            drawn, why = {}, f"no pictures: {error}"
            said.append(why)
        else:
            drawn = draw(reports, out, prefix) if reports else {}
        pages.append(page_of(folder, reports, {t: path.name for t, path in drawn.items()}))
        said += [f"wrote {path}" for path in drawn.values()]
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.md").write_text("\n\n".join(pages) + "\n")
    return "\n".join([*said, f"wrote {out / 'report.md'}"])
