"""Products of lists of tensors: the Gram matrix, and the norm."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from friction_kernels import backends
from friction_kernels.lists.operands import (
    Missing,
    NotNative,
    Operand,
    Position,
    check_device,
    check_missing,
    kept,
    listed,
    lists_of,
    may_be_plain,
    positions_of,
    readable,
)
from friction_kernels.shards import all_reduce, name_of, processes_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

By = Literal["tensor"] | Sequence[Hashable] | None


@torch.no_grad()
def gram(
    *lists: Iterable[Tensor | None] | Tensor,
    by: By = None,
    missing: Missing = "error",
    process_group: ProcessGroup | str | None = None,
) -> Tensor:
    """The inner products of lists of tensors, each viewed as a single vector.

    Equals, in one launch per device and without a copy of any tensor that kernels serve:

        flat = [torch.cat([x.flatten() for x in one]).double() for one in lists]
        torch.stack([torch.stack([torch.dot(a, b) for b in flat]) for a in flat])

    Products are summed as in `norm`: up to 2,048 elements at a time in their dtype, in float32 at least, or
    in float64 where that overflows, and these sums in float64. The same tensors give the same bits, whatever
    the number of threads. Complex numbers count as pairs, so products are real. Numbers that are not finite
    are not looked for: they make products inf or nan. Float32 numbers below 1e-19 lose digits, and below
    1e-23 their squares count as 0. The result is detached. The host does not wait for a GPU.

    Args:
        lists: 1 to 8 lists (K) of tensors, such as [p.grad for p in model.parameters()], that correspond:
            the same number, and at each position the same shape, on one device. Dtypes (floating or
            complex) and strides may differ. DTensors and parameters of FullyShardedDataParallel are summed
            over their processes, all of which must call this function.
        by: "tensor", or a label for each position: what is summed separately. Labels count in the order in
            which they first occur (default None, one sum of all).
        missing: what None in a list is: an "error" (the default) or "zero", a tensor of zeros.
        process_group: the processes over which other tensors are sharded, if torch does not record it
            (default None).

    Returns:
        a float64 tensor (K, K) on the first tensor's device, or (S, K, K) for S labels.

    Raises:
        TypeError: an item is not a tensor of floating or complex dtype, is sparse or float8.
        ValueError: the lists do not correspond, or there are more than 8; a tensor is missing.
        RuntimeError: the processes that hold the other shards of a tensor cannot be found.
    """
    operands = listed(lists)
    check_missing(operands, missing)
    products = products_of(operands, by, process_group)
    return products if by is not None else products[0]


@torch.no_grad()
def norm(
    tensors: Tensor | Iterable[Tensor],
    *,
    by: By = None,
    process_group: ProcessGroup | str | None = None,
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
        by: "tensor", or a label for each tensor: what has a norm of its own. Labels count in the order in
            which they first occur (default None, one norm of all).
        process_group: the processes over which other tensors are sharded, if torch does not record it
            (default None).

    Returns:
        a scalar in float32, or in float64 if any tensor is float64, on the first tensor's device; 0 on the
        CPU for an empty list. For S labels, (S,) of them.

    Raises:
        TypeError: an item is not a tensor of floating or complex dtype, is sparse or float8.
        ValueError: a tensor has elements and no memory.
        RuntimeError: the processes that hold the other shards of a tensor cannot be found.
    """
    given = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    for index, tensor in enumerate(given):
        if tensor is None:
            raise TypeError(f"tensor {index} is None, and no tensor; leave it out")
    products = products_of([given], by, process_group)
    squares = products[:, 0, 0] if by is not None else products[0, 0, 0]
    wide = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in given)
    return squares.sqrt() if wide else squares.sqrt().float()


def products_of(lists: list[Operand], by: By, process_group: ProcessGroup | str | None) -> Tensor:
    """The products (S, K, K) of each label."""
    segments = _segments_of(by, len(lists[0]))
    count = 1 if by is None else max(segments, default=-1) + 1
    return segmented_products(lists, segments, count, process_group)


@torch.no_grad()
def segmented_products(
    lists: list[Operand],
    segments: list[int],
    count: int,
    process_group: ProcessGroup | str | None,
    owners: Sequence[Tensor] | None = None,
) -> Tensor:
    """The products (count, K, K) of positions with the same segment, a number below count; [] means one.

    owners: the parameters whose gradients these are, as in positions_of.
    """
    tensors = (x for one in lists for x in one if isinstance(x, Tensor))
    device = next((x.device for x in tensors), torch.device("cpu"))
    if may_be_plain(lists if owners is None else [*lists, [*owners]], process_group):
        with suppress(NotNative):
            return _added(_native_products(lists, segments, count), device, (count, len(lists)))
    positions = positions_of(lists, process_group, owners=owners)
    return _products_in_parts(positions, segments, (count, len(lists)), device, process_group)


def _segments_of(by: By, tensors: int) -> list[int]:
    if by is None:
        return []
    if hasattr(by, "tolist"):  # an array or a tensor, whose items are no labels
        by = by.tolist()
    if by == "tensor":
        return list(range(tensors))
    if isinstance(by, str) or len(by) != tensors:
        raise ValueError(
            f"by must be None, 'tensor' or a label for each of {tensors} tensors, got {by!r}"
        )
    number: dict[Hashable, int] = {}
    return [number.setdefault(label, len(number)) for label in by]


def _native_products(lists: Sequence[Operand], segments: list[int], count: int) -> list[Tensor]:
    """The products on each device. Raises NotNative if a tensor is not read natively."""

    def results(device: int) -> Tensor:
        check_device(device)
        numbers = count * len(lists) ** 2
        return torch.empty(numbers, dtype=torch.float64, device=backends.device_of(device))

    if segments != sorted(segments):
        order = sorted(range(len(segments)), key=segments.__getitem__)
        segments = [segments[i] for i in order]
        lists = [[one[i] for i in order] for one in lists]
    made = backends.native.gram(
        backends.tensor_reader(),
        [*lists],
        segments,
        count,
        results,
        torch.get_num_threads(),
        backends.device_bytes,
        kept,
    )
    if isinstance(made, tuple):
        raise NotNative(*made)
    return made


def _added(made: Sequence[Tensor], device: torch.device, size: tuple[int, int]) -> Tensor:
    """The sum of products over devices, on one of them."""
    count, lists = size
    if not made:
        return torch.zeros(count, lists, lists, dtype=torch.float64, device=device)
    total, *others = (products.view(count, lists, lists).to(device) for products in made)
    for other in others:
        total = total + other
    return total


def _products_in_parts(
    given: list[Position],
    segments: list[int],
    size: tuple[int, int],
    device: torch.device,
    process_group: ProcessGroup | str | None,
) -> Tensor:
    """Products of what is sharded, or not served by kernels."""
    others = processes_of(name_of(process_group))
    # All processes take part in a sum, whatever they hold.
    spread: dict[tuple[ProcessGroup, ...], list[Position]] = {others: []} if others else {}
    for position in given:
        spread.setdefault(position.processes, []).append(position)
    total = _added([], device, size)
    for processes, positions in spread.items():
        made = []
        if native := [position for position in positions if position.native]:
            of = [segments[position.place] for position in native] if segments else []
            with readable(native):
                made = _native_products(lists_of(native), of, size[0])
        for position in positions:
            if not position.native:
                products = _added([], device, size)
                products[segments[position.place] if segments else 0] = _reference(position.parts)
                made.append(products)
        total = total + all_reduce(_added(made, device, size), processes)
    return total


def _reference(parts: Operand) -> Tensor:
    """The products of one position in plain torch."""
    first = next(part for part in parts if part is not None)
    flat = [
        torch.zeros(first.numel(), device=first.device, dtype=torch.float64)
        if part is None
        else part.reshape(-1).to(torch.promote_types(part.dtype, torch.float64))
        for part in parts
    ]
    products = torch.zeros(len(flat), len(flat), dtype=torch.float64, device=first.device)
    for i, a in enumerate(flat):
        for j, b in enumerate(flat[: i + 1]):
            products[i, j] = products[j, i] = (a * b.conj()).sum().real
    return products
