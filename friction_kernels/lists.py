"""Linear algebra of lists of tensors, treating each list as one long vector. Needs no optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from friction_kernels import backends
from friction_kernels.shards import (
    all_reduce,
    local,
    name_of,
    processes_of,
    summed_over,
    why_no_sum,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_kept: list[Tensor] = []  # memory that captured CUDA graphs read at every replay


@torch.no_grad()
def norm(
    tensors: Tensor | Iterable[Tensor], *, process_group: ProcessGroup | str | None = None
) -> Tensor:
    """The 2-norm of a list of tensors, viewed as a single vector.

    Equals torch.nn.utils.get_total_norm(tensors), but takes one launch per device, whatever the number of
    tensors, their dtypes and strides:

        torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).norm()

    2,048 elements at a time are summed in their dtype, in float32 at least, or in float64 where that
    overflows; these sums are added in float64. So float32 numbers below 1e-19 lose digits, and below 1e-23
    they count as 0. The order does not depend on the number of threads, so the same tensors give the same
    bits. The host does not wait for a GPU.

    Args:
        tensors: a tensor or several, of any shape, floating or complex dtype, strides and device, such as
            [p.grad for p in model.parameters() if p.grad is not None]. DTensors and parameters of
            FullyShardedDataParallel are summed over their processes, all of which must call this function.
        process_group: the processes over which other tensors are sharded, if torch does not record it
            (default None).

    Returns:
        a scalar in float32, or in float64 if any tensor is float64, on the first tensor's device; 0 on the
        CPU for an empty list.

    Raises:
        TypeError: an item is not a tensor of floating or complex dtype, is sparse or float8.
        ValueError: a tensor has elements and no memory.
        RuntimeError: the processes that hold the other shards of a tensor cannot be found.
    """
    given = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    name = name_of(process_group)
    others = processes_of(name)
    spread: dict[tuple[ProcessGroup, ...], list[Tensor]] = {others: []} if others else {}
    for index, tensor in enumerate(given):
        _check(index, tensor)
        problem = why_no_sum(tensor, name)
        if problem is not None:
            raise RuntimeError(f"the norm of tensor {index} is not known: {problem}")
        spread.setdefault(summed_over(tensor, others), []).append(local(tensor).detach())
    device = given[0].device if given else torch.device("cpu")
    total = torch.zeros((), dtype=torch.float64, device=device)
    for processes, parts in spread.items():
        total = total + all_reduce(_squared_norm(parts, device), processes)
    wide = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in given)
    return total.sqrt() if wide else total.sqrt().float()


def _check(index: int, tensor: object) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensor {index} is {tensor!r}, and no tensor; leave it out")
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype.itemsize == 1:
        raise TypeError(
            f"tensor {index} is {tensor.dtype}; a norm is of floating tensors of 16 bits or more, or of "
            "complex ones"
        )
    if local(tensor).layout != torch.strided:
        raise TypeError(f"tensor {index} is sparse ({tensor.layout}); make it dense")


def _squared_norm(parts: list[Tensor], device: torch.device) -> Tensor:
    """Return the sum of squares in float64 on the given device."""
    native = [part for part in parts if backends.native_fallback_reason(part) is None]
    served = {id(part) for part in native}
    sums = [
        torch.linalg.vector_norm(part, dtype=torch.promote_types(part.dtype, torch.float64))
        .square()
        .to(device)
        for part in parts
        if id(part) not in served
    ]
    if native:
        targets = {
            part.device.index if part.is_cuda else -1: torch.empty(
                1, dtype=torch.float64, device=part.device
            )
            for part in native
        }
        backends.native.squared_norm(
            backends.tensor_reader(),
            native,
            list(targets.items()),
            torch.get_num_threads(),
            backends.device_bytes,
            _kept,
        )
        sums += [target.reshape(()).to(device) for target in targets.values()]
    return torch.stack(sums).sum() if sums else torch.zeros((), dtype=torch.float64, device=device)
