"""The speeds this project promises itself, as data. They are reported, never asserted."""

from dataclasses import dataclass

from bench.baselines import ADAMP, ADAMW_FUSED, EAGER_ADAMW, SGD_FUSED
from bench.rounds import Times


@dataclass(frozen=True)
class Goal:
    """A bound on a contender's time, in seconds or as a multiple of another's time."""

    model: str
    contender: str
    against: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    def measured(self, times: Times) -> float:
        if self.against is None:
            return times.median(self.contender)
        return times.ratio(self.contender, self.against)

    def met(self, times: Times) -> bool:
        value = self.measured(times)
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    def show(self, value: float) -> str:
        return f"{value * 1e6:.0f} µs" if self.against is None else f"{value:.2f}x"

    def __str__(self) -> str:
        subject = self.contender if self.against is None else f"{self.contender} / {self.against}"
        bounds = [f"≤ {self.show(self.at_most)}"] if self.at_most is not None else []
        bounds += [f"≥ {self.show(self.at_least)}"] if self.at_least is not None else []
        return f"{self.model}: {subject} {' and '.join(bounds)}"


GOALS = [
    Goal("vit_b_16", EAGER_ADAMW, "SigSignAdamW", at_least=7),
    # 36 bytes a parameter against 28 is 1.286.
    Goal("vit_b_16", "SigSignAdamW", ADAMW_FUSED, at_most=1.30),
    Goal("vit_b_16", "RSGDM", SGD_FUSED, at_most=1.02),
    Goal("vit_b_16", "SigSignAdamP", "SigSignAdamW", at_most=1.8),
    Goal("vit_b_16", ADAMP, "SigSignAdamP", at_least=5),
    Goal("tiny", "SigSignAdamW", at_most=500e-6),
    Goal("tiny", ADAMW_FUSED, "SigSignAdamW", at_least=6),
]
