"""Scores of a few rows at a time, in float32 at least."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Mask = Literal["causal", "diagonal"] | Tensor | None
COLUMNS = 8192  # of 16-bit keys that are converted at once


def spans(count: int, most: int) -> Iterator[slice]:
    for start in range(0, count, most):
        yield slice(start, min(start + most, count))


def columns_of(w: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Rows of w in the dtype of the arithmetic: all at once if they are in it already."""
    for columns in spans(len(w), len(w) if w.dtype == dtype else COLUMNS):
        yield columns, w[columns].to(dtype)


def scores_of(
    x: Tensor, w: Tensor, scale: Tensor | float, bias: Tensor | None, out: Tensor
) -> Tensor:
    """scale * x w^T + bias."""
    left = x.to(out.dtype) * scale
    for columns, right in columns_of(w, out.dtype):
        torch.mm(left, right.T, out=out[:, columns])
    return out if bias is None else out.add_(bias)


def mask_(z: Tensor, mask: Mask, rows: slice, value: float = -torch.inf) -> Tensor:
    """Set the scores of these rows that take no part to `value`."""
    if mask is None:
        return z
    if isinstance(mask, Tensor):
        return z.masked_fill_(~(mask if mask.dim() == 1 else mask[rows]), value)
    if mask == "causal":  # row i sees columns up to i
        later = torch.ones_like(z, dtype=torch.bool).triu_(rows.start + 1)
        return z.masked_fill_(later, value)
    if rows.start < z.shape[1]:
        z.diagonal(rows.start).fill_(value)
    return z
