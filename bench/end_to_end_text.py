"""The end-to-end results as a page that reads as text, too."""

from collections.abc import Sequence
from typing import Any

from bench.end_to_end_optimizers import ADAMW, DECAY, MOMENTUM, TRAINED
from bench.end_to_end_results import is_number
from bench.end_to_end_statistics import LEVEL
from bench.end_to_end_summary import against_adamw
from bench.markdown import table

STEPS = """\
ms: medians over interleaved turns, quartiles in brackets. / torch: time over that of torch's fused optimizer
of the same kind (AdamW, or SGD with Nesterov momentum), the median of this ratio over the turns. Share: of
the optimizer in the whole step. Batches are small; larger ones lengthen the passes, and no optimizer."""

TRAININGS = """\
Mean ± half of the {level:.0%} confidence interval by Student's t over seeds. Training loss: of the last tenth
of the steps. The last column: test loss less AdamW's at the same seeds, with its interval; * where it does
not hold zero, which chance alone brings about in one interval of twenty.

Every optimizer had {tries} tries for its rate, on one seed that does not count, and trains with the one of
the least training loss there. Rates are AdamW's and SGD's, and mean the same step to all where friction
does nothing: sigmoid friction has twice the rate and half the decay (AdamW's is {decay:g}; the SGD kind has
none), RSGDM 1 / (1 - momentum) = {factor:g} times SGD's rate. ↓ and ↑: the lowest and the highest of the
rates tried; a better one may lie beyond. beta3 is 1. Rates warm up over a tenth of the steps and fall as a
cosine."""

RSGDM_TEXT = """\
RSGDM is Nesterov momentum in other clothes: RSGDM(lr, momentum) is SGD(lr * (1 - momentum), momentum,
nesterov=True), and only rounding, which training amplifies, sets them apart. The greatest distance of their
training losses: over the seeds, at the same rate, in float32; and of one seed's in float64."""


def with_interval(pair: Sequence[float] | None, form: str = ".3f") -> str:
    """A mean and half of its interval, which is unknown of a single value."""
    if not pair:
        return "-"
    mean, half = pair
    return f"{mean:{form}} ± {format(half, form.lstrip('+')) if is_number(half) else '?'}"


def percent(pair: Sequence[float] | None) -> str:
    scaled = [100 * each if is_number(each) else each for each in pair or ()]
    return with_interval(scaled, ".1f")


def difference(pair: Sequence[float] | None) -> str:
    if not pair:
        return ""
    mean, half = pair
    sure = is_number(half) and abs(mean) > half
    return with_interval(pair, "+.3f") + (" *" if sure else "")


def rate(optimizer: str, value: float) -> str:
    rates = TRAINED[optimizer].rates
    edge = {min(rates): " ↓", max(rates): " ↑"}.get(value, "")
    return f"{value:g}{edge}"


def steps_table(timed: dict[str, Any]) -> str:
    rows = []
    for name, row in timed["rows"].items():
        low, high = (f"{1e3 * each:.0f}" for each in row["step"]["quartiles"])
        rows.append(
            [
                name,
                f"{1e3 * row['step']['median']:.1f}",
                f"[{low} {high}]",
                f"{row['step_ratio']:.3f}",
                f"{1e3 * row['optimizer']['median']:.2f}",
                f"{row['optimizer_ratio']:.2f}",
                f"{row['share']:.1%}",
            ]
        )
    header = [
        "optimizer",
        "step, ms",
        "[quartiles]",
        "/ torch",
        "optimizer, ms",
        "/ torch",
        "share",
    ]
    return table(header, rows)


def trainings_table(rows: dict[str, dict[str, Any]]) -> str:
    cells = []
    for name, row in rows.items():
        diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
        cells.append(
            [
                name,
                rate(name, row["rate"]),
                f"{row['seeds']}{diverged}",
                with_interval(row.get("training_loss")),
                with_interval(row.get("test_loss")),
                percent(row.get("accuracy")),
                difference(row.get("test_loss_less_adamw")),
            ]
        )
    header = ["optimizer", "rate", "seeds", "training loss", "test loss", "test accuracy, %"]
    return table([*header, f"less {ADAMW}'s"], cells)


def verdict(rows: dict[str, dict[str, Any]]) -> str:
    found = against_adamw(rows)
    lists = (f"{which}: {', '.join(names) or 'none'}" for which, names in found.items())
    return f"Test loss against {ADAMW}'s: {'; '.join(lists)}."


def rsgdm_lines(report: dict[str, Any]) -> list[str]:
    lines = []
    for dtype, by_task in report["rsgdm_apart"].items():
        for task, (start, most) in by_task.items():
            lines.append(f"- {task}, {dtype}: {start:.1g} at the start, {most:.1g} at most")
    return lines


def as_markdown(report: dict[str, Any]) -> str:
    parts = [f"# End to end ({report['kind']})"]
    parts.append("\n".join(f"- {key}: {value}" for key, value in report["machine"].items()))
    if report["step_times"]:
        parts += ["## Time of a training step", STEPS, "![step times](end_to_end_steps.png)"]
    for name, timed in report["step_times"].items():
        parts.append(
            f"### {name}: {timed['parameters']:,} parameters in {timed['tensors']} tensors, "
            f"{timed['batch']}"
        )
        parts.append(steps_table(timed))
    if report["summary"]:
        steps = report["trainings"][0]["steps"]
        tries = len(TRAINED[ADAMW].rates)
        factor = 1 / (1 - MOMENTUM)
        parts.append(f"## After {steps} steps")
        parts.append(TRAININGS.format(level=LEVEL, tries=tries, decay=DECAY, factor=factor))
        parts.append("![curves](end_to_end.png)")
    for task, rows in report["summary"].items():
        parts += [f"### {task}", trainings_table(rows), verdict(rows)]
    apart = rsgdm_lines(report)
    if apart:
        parts += ["### RSGDM and Nesterov momentum", RSGDM_TEXT]
        parts.append("\n".join(apart))
    return "\n\n".join(parts) + "\n"
