"""The speeds and sizes that GLoss promises itself, as data. Reported, never asserted."""

from dataclasses import dataclass
from typing import Any

from bench.gloss_baselines import AUTHORS, OURS

GIB = 2**30
Report = dict[str, Any]


@dataclass(frozen=True)
class Goal:
    """A bound on something in a report.

    of: "speed-up" over the authors' form at `nodes`, "process" (peak bytes) at `nodes`, or a key of the
    case named `case`: "seconds", "extra_bytes", "launches". Without a bound it is to run at all.
    """

    device: str
    of: str
    nodes: int = 0
    case: str = ""
    at_least: float | None = None
    at_most: float | None = None

    def measured(self, report: Report) -> float | None:
        if self.case:
            return report.get("cases", {}).get(self.case, {}).get(self.of)
        if self.of == "speed-up":
            rows = report.get("sizes", {}).get(str(self.nodes), {}).get("rows", {})
            return rows.get(AUTHORS, {}).get("ratios", {}).get(OURS)
        row = report.get("memory", {}).get(str(self.nodes), {}).get(OURS, {})
        return row.get("process_bytes")

    def why_missing(self, report: Report) -> str:
        if self.case:
            return report.get("cases", {}).get(self.case, {}).get("missing", "not run")
        size = report.get("sizes", {}).get(str(self.nodes), {})
        missing = size.get("missing", {})
        memory = report.get("memory", {}).get(str(self.nodes), {}).get(OURS, {})
        told = [f"{name}: {missing[name]}" for name in (OURS, AUTHORS) if name in missing]
        return "; ".join(told) or memory.get("missing", f"N = {self.nodes:,} was not measured")

    def show(self, value: float) -> str:
        if self.of == "speed-up":
            return f"{value:.3g} times"
        if self.of == "seconds":
            return f"{1e3 * value:,.3g} ms"
        if self.of == "launches":
            return f"{value:g}"
        return f"{value / GIB:.3g} GiB"

    def verdict(self, report: Report) -> dict[str, str]:
        value = self.measured(report)
        if value is None:
            why = self.why_missing(report)
            return {"goal": str(self), "measured": why, "verdict": "not measured"}
        met = (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )
        verdict = "met" if met else "missed"
        return {"goal": str(self), "measured": self.show(value), "verdict": verdict}

    def __str__(self) -> str:
        where = self.case or f"N = {self.nodes:,}"
        if self.at_least is None and self.at_most is None:
            return f"{where}: runs"
        what = {
            "speed-up": "as fast as the authors' float64 form",
            "process": "the whole process",
            "seconds": "forward and backward",
            "extra_bytes": "beyond inputs and gradient",
            "launches": "launches",
        }[self.of]
        sign, bound = ("≥", self.at_least) if self.at_least is not None else ("≤", self.at_most)
        if self.of == "launches":
            return f"{where}: {what} {sign} {self.show(bound)}"
        if self.of == "speed-up":
            return f"{where}: {sign} {self.show(bound)} {what}"
        return f"{where}: {what} {sign} {self.show(bound)}"


BATCH = "N = 128, d = 768, C = 8"
LARGE = "N = 65,536, d = 768, C = 52, bf16"
HUGE = "N = 1,000,000, d = 384, C = 8, bf16"

GOALS = [
    Goal("cpu", "speed-up", 128, at_least=1),
    Goal("cpu", "speed-up", 512, at_least=4),
    Goal("cpu", "speed-up", 2048, at_least=15),
    Goal("cpu", "process", 20_000, at_most=1.5 * GIB),
    Goal("cuda", "launches", case=BATCH, at_most=1),
    Goal("cuda", "speed-up", 128, at_least=50),
    Goal("cuda", "seconds", case=LARGE, at_most=0.060),
    Goal("cuda", "extra_bytes", case=LARGE, at_most=0.5e9),
    Goal("cuda", "seconds", case=HUGE),
]


def judge(report: Report) -> list[dict[str, str]]:
    return [goal.verdict(report) for goal in GOALS if goal.device == report["device"]]
