"""Which elements of a whole parameter a process holds, because stochastic rounding depends on their index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from friction_kernels.flattened import is_flattened, stretch_of
from friction_kernels.optim.element_order import ElementOrder
from friction_kernels.optim.rounding import Shard
from friction_kernels.shards import is_dtensor, local

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard_of(param: Tensor, rows_first: bool) -> Shard:
    """A parameter's local part as indices into the whole, in the whole's element order.

    Raises ValueError unless these indices form rows of equal length at equal distance.
    """
    part = local(param)
    count = part.numel()
    if count == 0:
        return Shard(0, 1, 1)
    if is_flattened(param):
        return Shard(_start_of(param), count, count)
    if not is_dtensor(param):
        return Shard(0, count, count)
    order = ElementOrder.of(param, rows_first).dims
    here = [dim for dim in ElementOrder.of(part, rows_first).dims if part.shape[dim] > 1]
    chunks = param.__create_chunk_list__()  # torch.distributed.checkpoint's protocol
    if len(chunks) != 1 or tuple(chunks[0].sizes) != tuple(part.shape):
        raise ValueError(f"rounding='stochastic' needs parts that are one block, {_spread(param)}")
    if here != [dim for dim in order if part.shape[dim] > 1]:
        raise ValueError(
            "rounding='stochastic' needs parts whose memory runs as the whole's does; make it contiguous() "
            "before it is spread"
        )
    stride, strides = 1, {}
    for dim in reversed(order):
        strides[dim] = stride
        stride *= param.shape[dim]
    offset = sum(chunks[0].offsets[dim] * strides[dim] for dim in order)
    cut = [dim for dim in order[1:] if part.shape[dim] != param.shape[dim]]
    if len(cut) > 1:
        raise ValueError(
            "rounding='stochastic' takes parameters cut along the first dimension and one other, "
            f"{_spread(param)}"
        )
    if not cut:
        return Shard(offset, count, count)
    (dim,) = cut
    return Shard(offset, part.shape[dim] * strides[dim], param.shape[dim] * strides[dim])


def _start_of(param: Tensor) -> int:
    stretch = stretch_of(param)
    if stretch is None:
        raise ValueError(
            "rounding='stochastic' goes by an element's place in the whole, and which part this is "
            "FullyShardedDataParallel does not say any more; keep what rounding loses with master='split'"
        )
    return stretch.start


def _spread(param: DTensor) -> str:
    return (
        f"and it is spread as {param.placements}; spread it along its first dimension, or keep what "
        "rounding loses with master='split'"
    )


def why_no_shard(param: Tensor, rows_first: bool) -> str | None:
    """Why `shard_of` raises, or None if it does not."""
    try:
        shard_of(param, rows_first)
    except ValueError as error:
        return str(error)
    return None
