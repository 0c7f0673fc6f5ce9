"""What contrastive losses have in common: their embeddings, and the temperature of their scores."""

from __future__ import annotations

from torch import Tensor

from friction_kernels.graph import checks
from friction_kernels.graph.unit_rows import unit_rows


def check_matrix(name: str, given: Tensor, like: Tensor | None = None) -> None:
    """Raise unless `given` is a floating-point matrix, as wide as `like` and on its device."""
    if not isinstance(given, Tensor) or not given.is_floating_point():
        got = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {got}")
    if given.dim() != 2 or given.shape[1] == 0:
        raise ValueError(f"{name} must have shape (N, d), got {tuple(given.shape)}")
    if like is None:
        return
    if given.shape[1] != like.shape[1]:
        raise ValueError(f"{name} have {given.shape[1]} columns and queries {like.shape[1]}")
    if given.device != like.device:
        raise ValueError(f"{name} are on {given.device} and queries on {like.device}")


def unit_length(name: str, embeddings: Tensor) -> Tensor:
    """Return rows of unit length, in float32 at least. On the CPU, rows without a direction are named."""
    rows, usable = unit_rows(embeddings)
    if rows.device.type == "cpu" and not usable.all():
        raise ValueError(
            f"{name} have NaN, infinite or zero length in {checks.rows_at_fault(~usable)}; leave these "
            "rows out"
        )
    return rows


def check_temperature(temperature: float | Tensor) -> None:
    if not isinstance(temperature, Tensor):
        checks.check_positive("temperature", temperature)
        return
    if temperature.numel() != 1 or not temperature.is_floating_point():
        raise ValueError(
            f"temperature as a tensor must be one floating-point number, got {temperature.dtype} of shape "
            f"{tuple(temperature.shape)}"
        )
    checks.check_positive("temperature", number_of(temperature))


def number_of(temperature: float | Tensor) -> float:
    return temperature.item() if isinstance(temperature, Tensor) else temperature
