"""What training at scale may cost, as data. Reported, never asserted."""

from dataclasses import dataclass
from typing import Any

from bench.gpu_contenders import ADAMW_FUSED
from bench.gpu_goals import Goal as GoalOfTime
from bench.scale_contenders import (
    ALL_8BIT,
    CLIPPED,
    CLIPPED_BEFORE,
    CLIPPED_UNSCALED,
    GRAD_8BIT,
    PLAIN,
    SPLIT,
)

MODEL = "vit_b_16"


@dataclass(frozen=True)
class Goal(GoalOfTime):
    """of: "time" over another's; "added time" over another's; or bytes a parameter, "added traffic" or
    "memory" (parameter and state)."""

    def measured(self, models: dict[str, Any]) -> float | None:
        if self.of == "time":
            return super().measured(models)
        rows = models.get(self.model, {}).get("rows", {})
        row = rows.get(self.contender, {})
        if self.of == "memory":
            return row.get("memory", {}).get("in all")
        if self.of == "added traffic":
            return row.get("added_bytes")
        mine, theirs = (
            rows.get(n, {}).get("added_seconds") for n in (self.contender, self.against)
        )
        # A machine that is busy may find that more work took less time; that says nothing.
        return mine / theirs if mine is not None and theirs and theirs > 0 else None

    def show(self, value: float) -> str:
        return super().show(value) if self.against else f"{value:.2f} bytes a parameter"

    def __str__(self) -> str:
        if self.against:
            return super().__str__()
        return f"{self.model}: {self.of} of {self.contender} ≤ {self.show(self.at_most)}"


GOALS = {
    "cpu": [
        Goal(MODEL, ALL_8BIT.name, PLAIN.name, at_most=1.0),
        Goal(MODEL, CLIPPED.name, CLIPPED_BEFORE.name, at_most=0.6, of="added time"),
        Goal(MODEL, SPLIT.name, at_most=7.2, of="memory"),
    ],
    "cuda": [
        Goal(MODEL, ALL_8BIT.name, ADAMW_FUSED, at_most=0.75),
        Goal(MODEL, GRAD_8BIT.name, ADAMW_FUSED, at_most=1.10),
        Goal(MODEL, CLIPPED_UNSCALED.name, at_most=4.2, of="added traffic"),
        Goal(MODEL, SPLIT.name, at_most=7.2, of="memory"),
    ],
}


def judge(report: dict[str, Any]) -> list[dict[str, str]]:
    models = {report["model"]: report}
    return [goal.verdict(models) for goal in GOALS[report["device"]]]
