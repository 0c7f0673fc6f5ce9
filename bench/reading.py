"""Numbers out of results, as a page and pictures need them."""

import math
from typing import Any

Report = dict[str, Any]
Points = list[tuple[float, float]]


def milliseconds(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size_bytes(value: float) -> str:
    return f"{value / 2**30:.2f} GiB" if value >= 0.1 * 2**30 else f"{value / 2**20:.0f} MiB"


def measured(report: Report) -> list[dict[str, Any]]:
    """Scenarios with rows."""
    return [s for s in report["scenarios"] if s.get("rows")]


def full_graphs(report: Report) -> list[dict[str, Any]]:
    """G-Loss's scenarios of the commonest shape and precision, by N; single passes are none."""
    found = [s for s in measured(report) if not s["name"].startswith("passes")]
    shapes = [(s["dim"], s["classes"], s["precision"]) for s in found]
    usual = max(shapes, key=shapes.count, default=None)
    chosen = [s for s, shape in zip(found, shapes, strict=True) if shape == usual]
    return sorted(chosen, key=lambda s: s["nodes"])


def curve(scenarios: list[dict[str, Any]], contender: str, x: str, y: str) -> Points:
    """(scenario's x, row's y) where the contender has it and it is above zero."""
    rows = ((s[x], s["rows"].get(contender, {}).get(y)) for s in scenarios)
    return [(at, value) for at, value in rows if value]


def contenders_in(scenarios: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for s in scenarios for name in s["rows"]))


def slope(points: Points) -> float | None:
    """The exponent p of y = c x^p fitted by least squares to the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points if y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    above = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return above / sum((x - mean_x) ** 2 for x, _ in logs)


def roofline_points(reports: dict[str, Report]) -> list[dict[str, Any]]:
    """Of every kernel of ours whose operations and bytes are known: one scenario a suite, and G-Loss's all.

    intensity in operations a byte, rate in operations a second.
    """
    points = []
    for suite, report in reports.items():
        scenarios = measured(report)
        if suite in ("optimizers", "scale"):
            scenarios = [s for s in scenarios if s["parameters"] > 10**6][:1]
        elif suite != "gloss":
            continue
        for scenario in scenarios:
            for name, row in scenario["rows"].items():
                if row.get("ours") and row.get("flops") and row.get("bytes"):
                    points.append(
                        {
                            "suite": suite,
                            "name": name,
                            "where": scenario["name"],
                            "intensity": row["flops"] / row["bytes"],
                            "rate": row["flops"] / row["seconds"],
                        }
                    )
    return points
