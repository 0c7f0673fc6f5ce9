"""The friction study's tables, as a page that reads as text, too."""

from statistics import median
from typing import Any

from bench.end_to_end_statistics import LEVEL
from bench.end_to_end_text import difference, with_interval
from bench.friction_recording import ALL, INPUT_QUANTILES, KINDS, QUANTILES, VECTORS, midway
from bench.friction_tables import RATE_FACTORS, Study, greatest_distance, tasks_of
from bench.markdown import table
from friction_kernels.optim.friction_adam import FRICTION_INPUTS

NOTES = """\
tanh friction at rate {rate:g}; sigmoid friction has S half as large and takes the same steps at 2 beta3 and
twice the rate. S: over all elements of all layers, at {looks} steps of the first seed's training: of its
deviation the median, least and greatest over these steps; quantiles midway. Longer: the step's norm over its
norm without friction, the median. Losses: mean ± half of the {level:.0%} confidence interval by Student's t
(seeds: {seeds}); training loss of the last tenth of {steps} steps, and that less the training loss without
friction at the same seeds (* where the interval does not hold zero)."""

OVERVIEW = """\
tanh friction. Deviation of S over all elements: the median over steps of a training, least and greatest."""

INPUTS = """\
x at {looks} steps of a training without friction, over the elements where it is not zero: median of |x| at an
early look, midway and at the last, the range that holds 90 % midway, and the share of positive x midway."""

PICTURES = {
    "input": "what S is made from",
    "product": "S, published form",
    "normalized": "S, normalized form",
    "loss": "losses",
}


def input_table(study: Study) -> str:
    looks = study.looks("", 0.0)
    early, half, last = looks[0], midway(looks), looks[-1]
    middle = INPUT_QUANTILES.index(0.5)
    rows = []
    for form in FRICTION_INPUTS:
        for kind in (ALL, *KINDS, VECTORS):
            if any(form not in look.get(kind, {}) for look in (early, half, last)):
                continue
            low, *_, high = half[kind][form]["quantiles"]
            medians = (look[kind][form]["quantiles"][middle] for look in (early, half, last))
            share = half[kind][form]["positive"]
            rows.append(
                [
                    f"{form}, {kind}",
                    *(f"{each:.1e}" for each in medians),
                    f"{low:.0e} - {high:.0e}",
                    f"{share:.0%}",
                ]
            )
    columns = (early["step"], half["step"], last["step"])
    return table(["x", *(f"step {at}" for at in columns), "90 % within", "positive"], rows)


def deviation(study: Study, form: str, beta3: float) -> str:
    """Of S: the median, least and greatest over the looks."""
    found = [look[ALL]["std"] for look in study.looks(form, beta3)]
    return f"{median(found):.2g} ({min(found):.2g} - {max(found):.2g})" if found else ""


def beta3_table(study: Study, form: str) -> str:
    rows = []
    for beta3 in (0.0, *study.values(form)):
        looks = [look[ALL] for look in study.looks(form, beta3)]
        cells = ["", "", "", ""]
        if looks:
            half = dict(zip(QUANTILES, midway(looks)["quantiles"], strict=True))
            cells = [
                deviation(study, form, beta3),
                f"{half[0.05]:.2f} - {half[0.95]:.2f}",
                f"{half[0.25]:.2f} - {half[0.75]:.2f}",
                f"{median(look['step_length'] for look in looks):.2f}",
            ]
        less = study.loss_less_none(form, beta3, "training_loss") if beta3 else None
        cells += [
            with_interval(study.loss(form, beta3, "training_loss")),
            difference(less),
            with_interval(study.loss(form, beta3, "test_loss")),
        ]
        diverged = study.diverged(form, beta3)
        label = f"{beta3:g}" if beta3 else "0 (AdamW)"
        rows.append([f"{label}, {diverged} diverged" if diverged else label, *cells])
    header = ["beta3", "deviation of S", "90 % of S", "half of S", "longer", "training loss"]
    return table([*header, "less AdamW's", "test loss"], rows)


def kinds_table(study: Study, form: str) -> str:
    """The deviation of S by kind of layer, midway."""
    looks = {beta3: study.looks(form, beta3) for beta3 in study.values(form)}
    halves = {beta3: midway(found) for beta3, found in looks.items() if found}
    kinds = [kind for kind in (*KINDS, VECTORS) if any(kind in look for look in halves.values())]
    rows = [
        [f"{beta3:g}", *(f"{look[kind]['std']:.2g}" for kind in kinds)]
        for beta3, look in halves.items()
    ]
    return table(["beta3", *kinds], rows)


def rates_table(study: Study) -> str:
    rows = [
        [f"{rate:g}"]
        + [
            with_interval(study.loss("", 0.0, measure, rate))
            for measure in ("training_loss", "test_loss")
        ]
        for rate in study.rates()
    ]
    return table(["rate without friction", "training loss", "test loss"], rows)


def overview(report: dict[str, Any]) -> list[str]:
    """Two tables of all tasks: the deviation of S, and the training loss."""
    studies = {task: Study(report, task) for task in tasks_of(report)}
    values = {
        form: sorted({b for study in studies.values() for b in study.values(form)})
        for form in FRICTION_INPUTS
    }
    forms = [(form, beta3) for form, found in values.items() for beta3 in found]
    deviations = [
        [f"{form}, {b:g}", *(deviation(study, form, b) for study in studies.values())]
        for form, b in forms
    ]
    losses = [
        [f"none, {factor:g} x rate"]
        + [
            with_interval(study.loss("", 0.0, "training_loss", factor * study.rate))
            for study in studies.values()
        ]
        for factor in RATE_FACTORS
    ] + [
        [f"{form}, {b:g}"]
        + [with_interval(study.loss(form, b, "training_loss")) for study in studies.values()]
        for form, b in forms
    ]
    header = ["friction_input, beta3", *studies]
    return [table(header, deviations), table(header, losses)]


def as_markdown(report: dict[str, Any], pictures: dict[str, str]) -> str:
    """pictures: the names of those drawn beside the page, by what they show."""
    parts = [f"# Which beta3? ({report['kind']})"]
    parts.append("\n".join(f"- {key}: {value}" for key, value in report["machine"].items()))
    for what, picture in pictures.items():
        parts.append(f"![{PICTURES[what]}]({picture})")
    if report["trainings"]:
        deviations, losses = overview(report)
        parts += ["## All together", OVERVIEW, deviations, "Training loss:", losses]
    for task in tasks_of(report):
        study = Study(report, task)
        looks = study.looks("", 0.0)
        if not looks:
            continue
        parts += [f"## {task}", "### What S is made from", INPUTS.format(looks=len(looks))]
        parts.append(input_table(study))
        seeds, steps = len(study.of("", 0.0)), study.trainings[0]["steps"]
        notes = NOTES.format(
            rate=study.rate, looks=len(looks), level=LEVEL, seeds=seeds, steps=steps
        )
        parts += ["### S and losses", notes, rates_table(study)]
        for form in FRICTION_INPUTS:
            if study.values(form):
                parts += [f"friction_input={form!r}", beta3_table(study, form)]
                parts += ["Deviation of S midway, by kind of layer:", kinds_table(study, form)]
        apart = greatest_distance(report, task)
        if apart:
            parts.append(
                f"{apart[0]} trainings with sigmoid friction at 2 beta3 and twice the rate: their training "
                f"losses are {apart[1]:.1g} at most from those of tanh friction."
            )
    return "\n\n".join(parts) + "\n"
