"""What a step needs to know about all gradients before any update: clipping, loss scaling, infinities.

The norm is one number for all parameters, whichever backend serves them. If all of them are native and on a
GPU, the host does not wait for the device: the kernels read the same numbers there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from friction_kernels.optim import checks
from friction_kernels.optim.states import reals


class LossScale(NamedTuple):
    """The attributes set by torch.amp.GradScaler: float32 scalars, or None if not set."""

    grad_scale: Tensor | None  # the factor that the gradients contain
    found_inf: Tensor | None  # nonzero if the step must be skipped

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> LossScale:
        """From an optimizer's attributes, which GradScaler sets before a step and deletes after it."""
        return cls(*(_scalar(name, attributes.get(name)) for name in cls._fields))

    @property
    def is_set(self) -> bool:
        return self.grad_scale is not None or self.found_inf is not None


def _scalar(name: str, value: Any) -> Tensor | None:
    if value is None:
        return None
    if not isinstance(value, Tensor):
        return torch.tensor(checks.as_number(name, value), dtype=torch.float32, device="cpu")
    if value.numel() != 1:
        raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
    if checks.lacks_memory(value):
        raise ValueError(f"{name} is a tensor that {checks.NO_MEMORY}")
    return value.float().reshape(())


class Needs(NamedTuple):
    """What a step must know about all gradients, given the groups' options and a GradScaler."""

    clips: bool
    skips_nonfinite: bool
    is_scaled: bool

    @classmethod
    def of(cls, groups: Iterable[Mapping[str, Any]], loss_scale: LossScale) -> Needs:
        bounds = [group["max_grad_norm"] for group in groups if group["max_grad_norm"] is not None]
        for bound in bounds:
            checks.check_bound("max_grad_norm", bound)
        return cls(
            clips=bool(bounds),
            skips_nonfinite=any(group["skip_nonfinite"] for group in groups),
            is_scaled=loss_scale.is_set,
        )

    @property
    def anything(self) -> bool:
        return any(self)

    @property
    def may_skip(self) -> bool:
        return self.skips_nonfinite or self.is_scaled

    def counted(self, groups: Sequence[Mapping[str, Any]]) -> list[bool]:
        """Which groups the norm covers; if no group clips, it only serves to detect nonfinite gradients."""
        if self.clips:
            return [group["max_grad_norm"] is not None for group in groups]
        return [self.skips_nonfinite] * len(groups)


def square_sum(grad: Tensor) -> Tensor:
    """The sum of squares, in float64."""
    norm: Tensor = torch.linalg.vector_norm(reals(grad), dtype=torch.float64)
    return norm.square()


class GradientScaling(NamedTuple):
    """How the gradients of one step are scaled, and whether the step is skipped."""

    squared: Tensor | None  # float64: the sum of squares of all counted gradients, before scaling
    loss_scale: LossScale
    skips_nonfinite: bool

    def norm(self) -> Tensor:
        """The unscaled norm of the counted gradients: a float32 scalar. Requires `squared`."""
        assert self.squared is not None
        norm = self.squared.sqrt()
        if self.loss_scale.grad_scale is not None:
            norm = norm / self.loss_scale.grad_scale.to(norm.device)
        return norm.float().reshape(())

    def skips(self) -> bool:
        """Whether the step must be skipped. Waits for the device."""
        found_inf = self.loss_scale.found_inf
        if found_inf is not None and found_inf.item() != 0:
            return True
        if not self.skips_nonfinite:
            return False
        assert self.squared is not None
        return not math.isfinite(self.squared.item())

    def factor(self, max_norm: float | None) -> float:
        """The factor by which to multiply a group's gradients. Waits for the device."""
        grad_scale = self.loss_scale.grad_scale
        scale = 1.0 if grad_scale is None else grad_scale.item()
        if not 0 < scale < math.inf:
            raise ValueError(
                f"grad_scale must be above 0 and finite, got {scale:g}; give the scale that the "
                "gradients were multiplied by"
            )
        if max_norm is None or max_norm == math.inf:
            return 1 / scale
        assert self.squared is not None
        ratio = float(max_norm) / (math.sqrt(self.squared.item()) / scale + 1e-6)
        return (1.0 if ratio > 1 else ratio) / scale  # NaN if the norm is NaN, as in torch

    def on(self, device: int) -> tuple[int, Tensor | None, Tensor | None, Tensor | None, bool]:
        """The arguments of a native plan for a CUDA device."""
        place = torch.device("cuda", device)
        squared, grad_scale, found_inf = (
            None if number is None else number.to(place, non_blocking=True)
            for number in (self.squared, *self.loss_scale)
        )
        return device, squared, grad_scale, found_inf, self.skips_nonfinite
