"""Losses that treat a batch as a graph."""

from friction_kernels.losses.gloss import GLoss
from friction_kernels.losses.memory import GraphMemory
from friction_kernels.losses.statistics import GLossStats

__all__ = ["GLoss", "GLossStats", "GraphMemory"]
