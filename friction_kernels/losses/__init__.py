"""Losses that look at a batch as a graph."""

from friction_kernels.losses.gloss import GLoss, GLossStats
from friction_kernels.losses.memory import GraphMemory

__all__ = ["GLoss", "GLossStats", "GraphMemory"]
