"""Label propagation on similarity graphs, without storing them."""

from friction_kernels.graph.propagation import label_propagation
from friction_kernels.graph.sigma import gaussian_sigma

__all__ = ["gaussian_sigma", "label_propagation"]
