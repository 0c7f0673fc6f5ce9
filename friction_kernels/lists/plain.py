"""Weighted sums in plain torch, of what kernels do not serve, and whose memory results share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import islice, pairwise

import torch
from torch import Tensor

from friction_kernels.lists.operands import Operand, Position


def write_plainly(parts: Operand, weights: Sequence[float] | Tensor) -> None:
    """Write the weighted sum of all parts but the last one to that."""
    *tensors, result = parts
    assert result is not None
    wide = any(
        part.dtype in (torch.float64, torch.complex128) for part in parts if part is not None
    )
    arithmetic = torch.float64 if wide else torch.float32
    total = None
    for index, tensor in enumerate(tensors):
        if tensor is None:
            continue
        weight = weights[index]
        if isinstance(weight, Tensor):
            weight = weight.detach().to(tensor.device, arithmetic)  # else a scalar would be widened
        wide_tensor = tensor.to(torch.promote_types(tensor.dtype, arithmetic))
        product = _reals(wide_tensor) * weight
        total = product if total is None else total + product
    if total is None:
        result.zero_()
    else:
        result.copy_(torch.view_as_complex(total) if result.is_complex() else total)


def _reals(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def check_memory(positions: Sequence[Position]) -> None:
    """Raise ValueError if a result shares memory with a tensor that is not the same, as native code does."""
    results = sorted((*_span(position.parts[-1]), position.place) for position in positions)
    results = [span for span in results if span[0]]  # what has no address shares nothing
    for (_, end, _), (begin, _, _) in pairwise(results):
        if begin < end:
            raise ValueError("two tensors of out share memory; each needs its own")
    ends = [end for _, end, _ in results]
    for position in positions:
        result = position.parts[-1]
        if result is not None and torch._debug_has_internal_overlap(result) == 1:
            raise ValueError(
                "a tensor of out has elements that share memory, such as one that was expanded; give a copy "
                "of it"
            )
        for number, part in enumerate(position.parts[:-1]):
            begin, end = _span(part)
            for start, _, place in islice(results, bisect_right(ends, begin), None):
                if start >= end:
                    break
                if place != position.place or not _is_same(part, result):
                    raise ValueError(
                        f"out shares memory with list {number} but is not the same tensors; give that "
                        "list itself, or other memory"
                    )


def _span(tensor: Tensor | None) -> tuple[int, int]:
    """The addresses between which a tensor's elements are."""
    if tensor is None or tensor.numel() == 0:
        return 0, 0
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return False
    same_memory = a.data_ptr() == b.data_ptr() and a.stride() == b.stride()
    return same_memory and (a.dtype, a.is_neg(), a.is_conj()) == (b.dtype, b.is_neg(), b.is_conj())
