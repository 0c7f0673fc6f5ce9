"""How much memory parameters and their states take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from friction_kernels.shards import local

if TYPE_CHECKING:
    from friction_kernels.optim.base import PlannedOptimizer


@dataclass(frozen=True)
class MemoryReport:
    """Bytes of an optimizer's parameters and states; str() is a table.

    Gradients are not counted; of DTensors this process's parts are.

    Attributes:
        parameters: how many elements the parameters have.
        sizes: bytes of the parameters ("parameter") and of each state by its name.
    """

    parameters: int
    sizes: dict[str, int]

    @classmethod
    def of(cls, opt: PlannedOptimizer) -> MemoryReport:
        """What an optimizer's parameters and states take now."""
        params = [param for group in opt.param_groups for param in group["params"]]
        sizes = {"parameter": sum(_bytes(local(param)) for param in params)}
        for param in params:
            for key, value in opt.state.get(param, {}).items():
                if isinstance(value, Tensor):
                    sizes[key] = sizes.get(key, 0) + _bytes(value)
        return cls(sum(local(param).numel() for param in params), sizes)

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(self.sizes.values())

    @property
    def per_parameter(self) -> dict[str, float]:
        """`sizes` for one element."""
        return {name: size / max(self.parameters, 1) for name, size in self.sizes.items()}

    @property
    def bytes_per_parameter(self) -> float:
        """`total` for one element."""
        return self.total / max(self.parameters, 1)

    def __str__(self) -> str:
        rows = [*self.sizes.items(), ("in all", self.total)]
        width = max(len(name) for name, _ in rows)
        lines = [f"{'':{width}}  {'bytes':>16}  bytes a parameter"]
        for name, size in rows:
            lines.append(f"{name:{width}}  {size:>16,}  {size / max(self.parameters, 1):>17.3f}")
        lines.append(f"{self.parameters:,} parameters; gradients not counted")
        return "\n".join(lines)


def _bytes(tensor: Tensor) -> int:
    return 0 if tensor.is_meta else tensor.numel() * tensor.element_size()
