"""Multi-task training: the gradients of several tasks, weighed by their inner products."""

from friction_kernels.tasks import weightings
from friction_kernels.tasks.multi_task import MultiTask

__all__ = ["MultiTask", "weightings"]
