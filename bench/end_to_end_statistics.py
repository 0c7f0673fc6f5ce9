"""What trainings of several seeds say together."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.stats import t

LEVEL = 0.95


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The mean, and half the width of its confidence interval by Student's t; nan of a single value.

    Supposes that the values vary normally about their mean.
    """
    if len(values) < 2:
        return fmean(values), math.nan
    quantile = t.ppf(0.5 + level / 2, df=len(values) - 1)
    return fmean(values), float(quantile * stdev(values) / math.sqrt(len(values)))


def paired(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float]:
    """`interval` of the differences within a seed, which starts both alike; values are by seed."""
    return interval([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])
