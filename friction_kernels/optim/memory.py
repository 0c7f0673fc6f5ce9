"""Memory used by parameters and their states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from friction_kernels.shards import local


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of an optimizer's parameters and states; str() is a table.

    Gradients are not counted. Of DTensors, only this process's part is.

    Attributes:
        parameters: number of elements of all parameters, including frozen ones.
        sizes: bytes of the parameters ("parameter") and of each state by its name.
        trainable_parameters: number of elements of the parameters that require gradients.
        trainable_sizes: `sizes` of these alone.
    """

    parameters: int
    sizes: dict[str, int]
    trainable_parameters: int
    trainable_sizes: dict[str, int]

    @classmethod
    def of(cls, groups: Iterable[Mapping[str, Any]], states: Mapping[Tensor, Any]) -> MemoryReport:
        """Measure what an optimizer's parameters and states use now.

        Args:
            groups: its param_groups.
            states: its state, a dict by parameter, of any shape.
        """
        params = [param for group in groups for param in group["params"]]
        trainable = [param for param in params if param.requires_grad]
        return cls(*_count(params, states), *_count(trainable, states))

    @property
    def total(self) -> int:
        """Bytes of parameters and states."""
        return sum(self.sizes.values())

    @property
    def per_parameter(self) -> dict[str, float]:
        """`sizes` per element."""
        return {name: size / max(self.parameters, 1) for name, size in self.sizes.items()}

    @property
    def bytes_per_parameter(self) -> float:
        """`total` per element."""
        return self.total / max(self.parameters, 1)

    @property
    def bytes_per_trainable_parameter(self) -> float:
        """Bytes of the trainable parameters and their states, per trainable element."""
        return sum(self.trainable_sizes.values()) / max(self.trainable_parameters, 1)

    def __str__(self) -> str:
        rows = [*self.sizes.items(), ("in all", self.total)]
        columns = {"bytes a parameter": (dict(rows), self.parameters)}
        count = f"{self.parameters:,} parameters"
        if self.trainable_parameters != self.parameters:
            own = {**self.trainable_sizes, "in all": sum(self.trainable_sizes.values())}
            columns["bytes a trainable parameter"] = own, self.trainable_parameters
            count += f", {self.trainable_parameters:,} of them trainable"
        width = max(len(name) for name, _ in rows)
        lines = ["  ".join([" " * width, f"{'bytes':>16}", *columns])]
        for name, size in rows:
            line = f"{name:{width}}  {size:>16,}"
            for title, (sizes, elements) in columns.items():
                line += f"  {sizes.get(name, 0) / max(elements, 1):>{len(title)}.3f}"
            lines.append(line)
        return "\n".join([*lines, f"{count}; gradients not counted"])


def _count(params: list[Tensor], states: Mapping[Tensor, Any]) -> tuple[int, dict[str, int]]:
    """The number of elements of the parameters, and the bytes of the parameters and their states."""
    params = [param for param in params if not is_lazy(param)]  # lazy ones have no elements yet
    sizes = {"parameter": sum(_bytes(local(param)) for param in params)}
    for param in params:
        for key, value in states.get(param, {}).items():
            if isinstance(value, Tensor):
                sizes[key] = sizes.get(key, 0) + _bytes(value)
    return sum(local(param).numel() for param in params), sizes


def _bytes(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.numel() * tensor.element_size()
