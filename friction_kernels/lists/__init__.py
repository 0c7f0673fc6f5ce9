"""Linear algebra of lists of tensors, treating each list as one long vector. Needs no optimizer."""

from friction_kernels.lists.combination import combine
from friction_kernels.lists.importance import allocate_ranks, layer_importance
from friction_kernels.lists.meta import adapt, interpolate
from friction_kernels.lists.products import gram, norm

__all__ = [
    "adapt",
    "allocate_ranks",
    "combine",
    "gram",
    "interpolate",
    "layer_importance",
    "norm",
]
