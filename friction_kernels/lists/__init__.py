"""Linear algebra of lists of tensors, treating each list as one long vector. Needs no optimizer."""

from friction_kernels.lists.combination import combine
from friction_kernels.lists.products import gram, norm

__all__ = ["combine", "gram", "norm"]
