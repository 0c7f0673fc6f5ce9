"""AdamP's projection of a parameter whose rows, or parts of rows, lie on several processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from friction_kernels.shards import all_reduce, sharding_groups


def is_spread(param: Tensor) -> bool:
    """Whether the decision to project a parameter takes more than one process."""
    return param.dim() > 1 and bool(sharding_groups(param))


def projection_of(whole: Tensor) -> Callable[..., tuple[Tensor, bool]]:
    """`equations.project` for the local parts of a DTensor: the same test and the same projection.

    Every process that holds a part must call it. Sums are taken in float64, first of each row over the
    processes that share it, then over the rows of all.
    """
    along_rows = sharding_groups(whole, range(1, whole.dim()))
    across_rows = sharding_groups(whole, [0])
    row_length = whole.numel() // max(whole.shape[0], 1)

    def project(
        param: Tensor, grad: Tensor, u: Tensor, *, delta: float, eps: float
    ) -> tuple[Tensor, bool]:
        p, g, u_rows = (t.flatten(start_dim=1).double() for t in (param, grad, u))
        sums = torch.stack([(a * b).sum(dim=1) for a, b in ((p, g), (p, p), (g, g), (p, u_rows))])
        all_reduce(sums, along_rows)
        passes = _nearly_orthogonal(sums, row_length, delta, eps).all().double()
        if not all_reduce(passes, across_rows, "MIN").bool():
            sums = all_reduce(sums.sum(dim=1, keepdim=True), across_rows)
            if not _nearly_orthogonal(sums, whole.numel(), delta, eps).all():
                return u, False
        coefficient = sums[3] / (sums[1].sqrt() + eps) ** 2  # p^ (p^ . u), p^ = p / (|p| + eps)
        return (u_rows - coefficient[:, None] * p).to(u.dtype).reshape(u.shape), True

    return project


def _nearly_orthogonal(sums: Tensor, length: int, delta: float, eps: float) -> Tensor:
    p_norm, g_norm = sums[1].sqrt().clamp_min(eps), sums[2].sqrt().clamp_min(eps)
    return (sums[0] / (p_norm * g_norm)).abs() < delta / max(length, 1) ** 0.5
