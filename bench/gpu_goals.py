"""The speeds this project promises itself on an H100 or H200, as data. Reported, never asserted."""

from dataclasses import dataclass
from typing import Any

from bench.gpu_contenders import ADAMP, ADAMW_FOR_LOOP, ADAMW_FUSED, EAGER_ADAMW, SGD_FUSED

LARGE = ("vit_b_16", "llama_1b", "llama_7b_layers")
MODELS = ("resnet50", *LARGE)


@dataclass(frozen=True)
class Goal:
    """A bound on a contender's share of the copy bandwidth, or on its time over another's."""

    model: str
    contender: str
    against: str | None = None
    at_most: float | None = None
    at_least: float | None = None
    of: str = "time"  # or "host time"

    def measured(self, models: dict[str, Any]) -> float | None:
        rows = models.get(self.model, {}).get("rows", {})
        row = rows.get(self.contender, {})
        if self.against is None:
            return row.get("share_of_copy")
        if self.of == "time":
            return row.get("ratios", {}).get(self.against)
        other = rows.get(self.against)
        return row["host_seconds"] / other["host_seconds"] if row and other else None

    def show(self, value: float) -> str:
        return f"{value:.1%} of copy" if self.against is None else f"{value:.3g}x"

    def verdict(self, models: dict[str, Any]) -> dict[str, str]:
        value = self.measured(models)
        if value is None:
            model = models.get(self.model, {})
            missing = model.get("missing", {})
            why = [f"{n}: {missing[n]}" for n in (self.contender, self.against) if n in missing]
            measured = "; ".join(why) or f"{self.model} was not measured in full"
            return {"goal": str(self), "measured": measured, "verdict": "not measured"}
        met = (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )
        verdict = "met" if met else "missed"
        return {"goal": str(self), "measured": self.show(value), "verdict": verdict}

    def __str__(self) -> str:
        subject = self.contender
        if self.against is not None:
            subject = f"{self.of} of {self.contender} / {self.against}"
        sign, bound = ("≤", self.at_most) if self.at_most is not None else ("≥", self.at_least)
        return f"{self.model}: {subject} {sign} {self.show(bound)}"


GOALS = [
    *(
        Goal(model, name, at_least=0.92)
        for model in LARGE
        for name in ("SigSignAdamW", "TanhSignAdamW", "RSGDM")
    ),
    *(Goal(model, "RSGDM", SGD_FUSED, at_most=1.00) for model in MODELS),
    # "The eager for-loop" is the equations', and torch's of a lesser rule is shown beside it.
    Goal("resnet50", EAGER_ADAMW, "SigSignAdamW", at_least=10),
    Goal("resnet50", ADAMW_FOR_LOOP, "SigSignAdamW", at_least=10),
    *(Goal(model, "SigSignAdamP", "SigSignAdamW", at_most=1.6) for model in MODELS),
    *(Goal(model, ADAMP, "SigSignAdamP", at_least=20) for model in ("resnet50", "vit_b_16")),
    Goal("tiny", "SigSignAdamW", ADAMW_FUSED, at_most=1 / 6, of="host time"),
]
