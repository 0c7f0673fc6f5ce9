"""What the page and the pictures ask of the study's trainings."""

from typing import Any

from bench.end_to_end_results import is_number
from bench.end_to_end_statistics import interval, paired
from bench.end_to_end_tasks import TASKS
from friction_kernels.optim.friction_adam import FRICTION_INPUTS

RATE_FACTORS = (0.5, 1.0, 2.0)  # of the trainings without friction
Training = dict[str, Any]


class Study:
    """The trainings of one task, of one friction ("tanh" unless said otherwise)."""

    def __init__(self, report: dict[str, Any], task: str, friction: str = "tanh") -> None:
        self.rate = report["rate"]
        self.trainings = [
            t for t in report["trainings"] if t["task"] == task and t["friction"] == friction
        ]

    def of(self, form: str, beta3: float, rate: float | None = None) -> list[Training]:
        """Of each seed; beta3 = 0 is without friction, whatever the form."""
        found = [
            t
            for t in self.trainings
            if t["beta3"] == beta3
            and (beta3 == 0 or t["friction_input"] == form)
            and t["rate"] == (rate or self.rate)
        ]
        return sorted(found, key=lambda training: training["seed"])

    def values(self, form: str) -> list[float]:
        """beta3 in rising order, without 0."""
        found = {t["beta3"] for t in self.trainings if t["beta3"] and t["friction_input"] == form}
        return sorted(found)

    def rates(self) -> list[float]:
        """Those of the trainings without friction."""
        return sorted({t["rate"] for t in self.trainings if t["beta3"] == 0})

    def looks(self, form: str, beta3: float) -> list[dict[str, Any]]:
        """Of the one training that recorded any."""
        return next((t["looks"] for t in self.of(form, beta3) if t["looks"]), [])

    def diverged(self, form: str, beta3: float) -> int:
        return sum(not is_number(t["training_loss"]) for t in self.of(form, beta3))

    def by_seed(
        self, form: str, beta3: float, measure: str, rate: float | None = None
    ) -> dict[int, float]:
        """Without the trainings that diverged."""
        runs = self.of(form, beta3, rate)
        return {t["seed"]: t[measure] for t in runs if is_number(t[measure])}

    def loss(
        self, form: str, beta3: float, measure: str, rate: float | None = None
    ) -> tuple[float, float] | None:
        """Mean and half the interval over the seeds, or None."""
        found = self.by_seed(form, beta3, measure, rate)
        return interval(list(found.values())) if found else None

    def loss_less_none(self, form: str, beta3: float, measure: str) -> tuple[float, float] | None:
        """`loss` less that without friction, by the same seeds, or None."""
        ours, theirs = self.by_seed(form, beta3, measure), self.by_seed(form, 0.0, measure)
        return paired(ours, theirs) if ours.keys() & theirs.keys() else None


def tasks_of(report: dict[str, Any]) -> list[str]:
    return [name for name in TASKS if any(t["task"] == name for t in report["trainings"])]


def greatest_distance(report: dict[str, Any], task: str) -> tuple[int, float] | None:
    """How many sigmoid trainings have a tanh training that takes the same steps, and how far their
    final training losses lie apart at most."""
    sigmoid, tanh = Study(report, task, "sigmoid"), Study(report, task)
    apart = []
    for form in FRICTION_INPUTS:
        for beta3 in sigmoid.values(form):
            ours = sigmoid.by_seed(form, beta3, "training_loss")
            theirs = tanh.by_seed(form, beta3, "training_loss")
            apart += [abs(ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
    return (len(apart), max(apart)) if apart else None
