"""Gather the rows of all ranks in rank order; without torch.distributed, rows are returned unchanged."""

from __future__ import annotations

from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

# By whose numbers ranks tell each other what they send.
DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@overload
def gather_rows(rows: Tensor, /) -> tuple[Tensor]: ...


@overload
def gather_rows(
    rows: Tensor, labels: Tensor, ids: Tensor | None, /
) -> tuple[Tensor, Tensor, Tensor | None]: ...


@overload
def gather_rows(
    rows: Tensor, labels: Tensor, labelled: Tensor | None, ids: Tensor | None, /
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]: ...


def gather_rows(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Gather each tensor's rows from all ranks, in rank order; numbers of rows may differ and may be zero.

    tensors: (n, ...), with the same n on one rank; a tensor that is None must be None on every rank.
    Gradients flow to a rank's rows from that rank's loss only, so every rank must compute the same loss.
    """
    if not is_distributed():
        return tensors
    present = [t for t in tensors if t is not None]
    sizes = _sizes(present[0], tensors)
    return tuple(
        None if t is None else _GatherRows.apply(t, sizes)  # type: ignore[no-untyped-call]
        for t in tensors
    )


def same_on_all_ranks(tensor: Tensor) -> Tensor:
    """Return rank 0's tensor; the shape must be the same on every rank."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def _sizes(first: Tensor, tensors: tuple[Tensor | None, ...]) -> list[int]:
    """The number of rows on each rank. Raises on every rank if anything else differs between ranks."""
    layout = [0 if t is None else 1000 * t.dim() + DTYPES.index(t.dtype) for t in tensors]
    header = torch.tensor([len(first), *first.shape[1:], *layout], device=first.device)
    headers = [torch.empty_like(header) for _ in range(dist.get_world_size())]
    dist.all_gather(headers, header)
    rows = [h.tolist() for h in headers]
    if any(r[1:] != rows[0][1:] for r in rows):
        raise ValueError(
            "the ranks' rows cannot be gathered: widths, types, or the presence of `labelled` or `ids` "
            f"differ (rank {dist.get_rank()} has shape {tuple(first.shape)}, type {first.dtype}); "
            "pass the same kind of batch on every rank"
        )
    return [r[0] for r in rows]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        start = sum(sizes[: dist.get_rank()])
        ctx.mine = slice(start, start + len(rows))
        sent = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
        padded = sent.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = sent
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded)
        return torch.cat([r[:n] for r, n in zip(received, sizes, strict=True)]).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad[ctx.mine], None
