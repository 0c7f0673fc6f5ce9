"""What a step must know of all gradients before it updates anything: clipping, loss scaling, infinities.

The norm is one number for all parameters, whoever serves them. Where all of them are native and on a GPU
nothing here waits for the device: the kernels read the same numbers there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from friction_kernels.optim import checks
from friction_kernels.optim.states import reals

if TYPE_CHECKING:
    from friction_kernels.optim.base import PlannedOptimizer


class Demand(NamedTuple):
    """What the groups and a GradScaler ask of a step."""

    clips: bool
    skips_nonfinite: bool
    scaled: bool  # grad_scale or found_inf were set, as torch.amp.GradScaler does

    @classmethod
    def of(cls, opt: PlannedOptimizer, groups: Iterable[Mapping[str, Any]]) -> Demand:
        bounds = [group["max_grad_norm"] for group in groups if group["max_grad_norm"] is not None]
        for bound in bounds:
            checks.check_bound("max_grad_norm", bound)
        return cls(
            clips=bool(bounds),
            skips_nonfinite=any(group["skip_nonfinite"] for group in groups),
            scaled=_attribute(opt, "grad_scale") is not None
            or _attribute(opt, "found_inf") is not None,
        )

    @property
    def guarded(self) -> bool:
        return self.clips or self.skips_nonfinite or self.scaled

    @property
    def may_skip(self) -> bool:
        return self.skips_nonfinite or self.scaled

    def counted(self, groups: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which groups' gradients the norm is of; only their being finite matters where none clips."""
        if self.clips:
            return [group["max_grad_norm"] is not None for group in groups]
        return [self.skips_nonfinite] * len(groups)


def _attribute(opt: PlannedOptimizer, name: str) -> Tensor | None:
    """A number that GradScaler sets, and deletes after the step."""
    value = opt.__dict__.get(name)
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.tensor(checks.as_number(name, value), dtype=torch.float32, device="cpu")
    if value.numel() != 1:
        raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
    return value.float().reshape(())


def square_sum(grad: Tensor) -> Tensor:
    """The sum of squares in float64."""
    norm: Tensor = torch.linalg.vector_norm(reals(grad), dtype=torch.float64)
    return norm.square()


class Guard(NamedTuple):
    """The numbers of one step."""

    squared: Tensor | None  # float64: the sum of squares of all gradients that count, as they came
    grad_scale: Tensor | None  # float32: what they were multiplied by
    found_inf: Tensor | None  # float32: not zero where the step must not be
    skips_nonfinite: bool

    @classmethod
    def of(
        cls, opt: PlannedOptimizer, demand: Demand, squared: Tensor | None, rest: Tensor | None
    ) -> Guard:
        """rest: the sum of squares of the gradients that do not count but must be finite, too."""
        found_inf = _attribute(opt, "found_inf")
        if rest is not None:
            infinite = (~rest.isfinite()).float()
            found_inf = infinite if found_inf is None else found_inf.to(rest.device) + infinite
        return cls(squared, _attribute(opt, "grad_scale"), found_inf, demand.skips_nonfinite)

    def norm(self) -> Tensor:
        """Of the gradients that count, unscaled: a float32 scalar where their squares were summed."""
        assert self.squared is not None
        norm = self.squared.sqrt()
        if self.grad_scale is not None:
            norm = norm / self.grad_scale.to(norm.device)
        return norm.float().reshape(())

    def skips(self) -> bool:
        """Whether the step must not be. Waits for the device."""
        if self.found_inf is not None and self.found_inf.item() != 0:
            return True
        if not self.skips_nonfinite:
            return False
        assert self.squared is not None
        return not math.isfinite(self.squared.item())

    def factor(self, max_norm: float | None) -> float:
        """What a group's gradients are multiplied by. Waits for the device."""
        scale = 1.0 if self.grad_scale is None else self.grad_scale.item()
        if not 0 < scale < math.inf:
            raise ValueError(
                f"grad_scale must be above 0 and finite, got {scale:g}; give the scale that the "
                "gradients were multiplied by"
            )
        if max_norm is None or max_norm == math.inf:
            return 1 / scale
        assert self.squared is not None
        ratio = float(max_norm) / (math.sqrt(self.squared.item()) / scale + 1e-6)
        return (1.0 if ratio > 1 else ratio) / scale  # NaN where the norm is, as torch clips

    def on(self, device: int) -> tuple[int, Tensor | None, Tensor | None, Tensor | None, bool]:
        """For a native plan, on a CUDA device."""
        place = torch.device("cuda", device)
        numbers = (self.squared, self.grad_scale, self.found_inf)
        squared, grad_scale, found_inf = (
            None if n is None else n.to(place, non_blocking=True) for n in numbers
        )
        return device, squared, grad_scale, found_inf, self.skips_nonfinite
