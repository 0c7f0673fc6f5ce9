"""The optimizers."""

from torch.optim import Optimizer

from friction_kernels.optim.clipping import clip_grad_norm_
from friction_kernels.optim.friction_adam import (
    SigSignAdamP,
    SigSignAdamW,
    SigSignGrad,
    TanhSignAdamP,
    TanhSignAdamW,
    TanhSignGrad,
)
from friction_kernels.optim.release import GradientRelease, release_gradients
from friction_kernels.optim.rsgdm import RSGDM
from friction_kernels.optim.statistics import FrictionStats, friction_stats

# Tests, benchmarks and examples loop over this table.
OPTIMIZERS: dict[str, type[Optimizer]] = {
    cls.__name__: cls
    for cls in (
        SigSignGrad,
        TanhSignGrad,
        SigSignAdamW,
        TanhSignAdamW,
        SigSignAdamP,
        TanhSignAdamP,
        RSGDM,
    )
}

__all__ = [
    "OPTIMIZERS",
    "FrictionStats",
    "GradientRelease",
    "clip_grad_norm_",
    "friction_stats",
    "release_gradients",
    *OPTIMIZERS,
]
