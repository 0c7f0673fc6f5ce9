"""Normalise rows to unit length, whatever their original length."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def unit_rows(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Return (rows of unit length in at least float32, bool (N,): whether a row has a direction).

    embeddings: (N, d). Rows are scaled before squaring, so that no finite row is too long, and none is too
    short unless its largest element is subnormal.
    """
    e = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    z, largest = _UnitRows.apply(e)  # type: ignore[no-untyped-call]
    usable = (largest >= torch.finfo(e.dtype).tiny) & (largest < math.inf)
    return z, usable[:, 0]


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, e: Tensor) -> tuple[Tensor, Tensor]:
        largest = torch.linalg.vector_norm(e, ord=math.inf, dim=1, keepdim=True)
        z = e / largest
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        z /= length
        ctx.save_for_backward(z, length, largest)
        ctx.mark_non_differentiable(largest)
        return z, largest

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        z, length, largest = ctx.saved_tensors
        across: Tensor = grad - z * (z * grad).sum(dim=1, keepdim=True)
        return across.div_(length).div_(largest)  # one by one, because their product may overflow
