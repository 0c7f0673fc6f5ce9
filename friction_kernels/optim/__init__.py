"""The optimizers."""

from collections.abc import Callable

from friction_kernels.optim.adam import Adam, AdamP, AdamW
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.clipping import clip_grad_norm_
from friction_kernels.optim.diffgrad import DiffGrad, DiffGradW
from friction_kernels.optim.directions import DirectionStats, direction_stats
from friction_kernels.optim.friction_adam import (
    FrictionAdamW,
    SigSignAdamP,
    SigSignAdamW,
    SigSignGrad,
    TanhSignAdamP,
    TanhSignAdamW,
    TanhSignGrad,
)
from friction_kernels.optim.release import GradientRelease, release_gradients
from friction_kernels.optim.rsgdm import RSGDM
from friction_kernels.optim.sgd import SGD
from friction_kernels.optim.statistics import FrictionStats, friction_stats

# Tests, benchmarks and examples iterate over these classes, each of which has its own options.
# FrictionAdamW is one of four of them.
OPTIMIZERS: dict[str, Callable[..., PlannedOptimizer]] = {
    cls.__name__: cls
    for cls in (
        SigSignGrad,
        TanhSignGrad,
        SigSignAdamW,
        TanhSignAdamW,
        SigSignAdamP,
        TanhSignAdamP,
        DiffGrad,
        DiffGradW,
        RSGDM,
        Adam,
        AdamW,
        AdamP,
        SGD,
    )
}

__all__ = [
    "OPTIMIZERS",
    "RSGDM",
    "SGD",
    "Adam",
    "AdamP",
    "AdamW",
    "DiffGrad",
    "DiffGradW",
    "DirectionStats",
    "FrictionAdamW",
    "FrictionStats",
    "GradientRelease",
    "SigSignAdamP",
    "SigSignAdamW",
    "SigSignGrad",
    "TanhSignAdamP",
    "TanhSignAdamW",
    "TanhSignGrad",
    "clip_grad_norm_",
    "direction_stats",
    "friction_stats",
    "release_gradients",
]
