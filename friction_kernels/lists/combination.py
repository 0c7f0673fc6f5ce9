"""Weighted sums of lists of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from friction_kernels import backends
from friction_kernels.lists.operands import (
    Missing,
    NotNative,
    Operand,
    check_device,
    check_missing,
    kept,
    listed,
    lists_of,
    may_be_plain,
    positions_of,
    readable,
)
from friction_kernels.lists.plain import check_memory, write_plainly
from friction_kernels.lists.products import gram
from friction_kernels.shards import is_dtensor

Weights = Sequence[float] | Tensor


def combine(
    lists: Sequence[Iterable[Tensor | None] | Tensor],
    weights: Weights,
    *,
    out: Iterable[Tensor | None] | Tensor | None = None,
    missing: Missing = "error",
) -> list[Tensor | None]:
    """The weighted sum of lists of tensors.

    Equals, in one launch per device and with no memory but the result's:

        [sum(w * x for w, x in zip(weights, tensors)) for tensors in zip(*lists)]

    A sum is taken in the order of the lists, in float32 or, if one of its tensors is float64, in float64,
    and rounded to the nearest number of the result's dtype, from float64 to 16 bits by way of float32. It is
    linear, and differentiable any number of times backward, in the tensors and in a tensor of weights. The
    host does not wait for a GPU.

    Args:
        lists: 1 to 8 lists (K) of tensors that correspond: the same number, and at each position the same
            shape, on one device. Dtypes (floating or complex) and strides may differ. DTensors must be
            sharded alike.
        weights: K numbers, or a real tensor (K,), which stays on its device.
        out: where the result goes: tensors of their own memory, or one of the lists itself (default None:
            new ones, in the dtype to which torch promotes those of a position). Not with autograd.
        missing: what None in a list is: an "error" (the default) or "zero", which is left out of the sum.

    Returns:
        the result: `out` as a list, or new tensors; None where no list has a tensor.

    Raises:
        TypeError: an item is not a tensor of floating or complex dtype, is sparse or float8.
        ValueError: the lists do not correspond, or there are more than 8; a tensor is missing; `weights`
            are not K real numbers; `out` shares memory with a list that is not the same tensors.
        RuntimeError: `out` is given, and autograd would have to record its change.
    """
    operands = listed(lists)
    check_missing(operands, missing)
    checked = _checked(weights, len(operands))
    if _is_recorded(operands, checked):
        if out is not None:
            raise RuntimeError(
                "autograd does not record what is written to out; leave it None, or call combine() under "
                "torch.no_grad()"
            )
        return _recorded(operands, checked)
    if out is None:
        results = new_results(operands)
    else:
        results = [out] if isinstance(out, Tensor) else list(out)
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in results):
            raise RuntimeError(
                "a tensor of out requires a gradient, and autograd does not record what is written to it; "
                "call combine() under torch.no_grad()"
            )
    write(operands, checked, results)
    return results


def _is_recorded(lists: list[Operand], weights: Weights) -> bool:
    """Whether autograd has to see what is combined; forward-mode tangents it refuses by name."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    if not torch.is_grad_enabled():
        return False
    if isinstance(weights, Tensor) and weights.requires_grad:
        return True
    return any(tensor is not None and tensor.requires_grad for one in lists for tensor in one)


def _checked(weights: Weights, lists: int) -> Weights:
    if isinstance(weights, Tensor):
        if weights.shape != (lists,) or weights.is_complex():
            raise ValueError(
                f"weights must be {lists} real numbers, one a list, got a tensor of {weights.dtype} "
                f"{tuple(weights.shape)}"
            )
        if is_dtensor(weights):
            raise ValueError("weights are a DTensor; give weights.full_tensor()")
        return weights
    given = list(weights)
    if any(isinstance(weight, (Tensor, complex)) for weight in given):
        raise ValueError(
            f"weights must be {lists} real numbers or one tensor, got {given!r}; torch.stack makes one of "
            "several tensors"
        )
    numbers = [float(weight) for weight in given]
    if len(numbers) != lists:
        raise ValueError(f"weights must be {lists} real numbers, one a list, got {len(numbers)}")
    return numbers


def new_results(lists: Sequence[Operand]) -> Operand:
    return [_new_result(tensors) for tensors in zip(*lists, strict=True)]


def _new_result(tensors: tuple[Tensor | None, ...]) -> Tensor | None:
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    if not dtypes:
        return None
    first = next(tensor for tensor in tensors if tensor is not None)
    if len(dtypes) == 1:
        return torch.empty_like(first)
    return torch.empty_like(first, dtype=reduce(torch.promote_types, dtypes))


@torch.no_grad()
def write(lists: list[Operand], weights: Weights, results: Operand) -> None:
    """Write the weighted sum of the lists to the results."""
    if len(results) != len(lists[0]):
        raise ValueError(
            f"out has {len(results)} tensors, and list 0 has {len(lists[0])}; they must correspond"
        )
    for index, (result, *tensors) in enumerate(zip(results, *lists, strict=True)):
        if result is None and any(tensor is not None for tensor in tensors):
            raise ValueError(f"tensor {index} of out is None, and a list has one; give it a place")
    written = [result for result in results if result is not None]
    if may_be_plain([*lists, results], None):
        with suppress(NotNative):
            _write_natively([*lists, results], weights)
            return increment_version(written)
    positions = positions_of([*lists, results], last="out")
    check_memory(positions)
    if native := [position for position in positions if position.native]:
        with readable(native):
            _write_natively(lists_of(native), weights)
    for position in positions:
        if not position.native:
            write_plainly(position.parts, weights)
    increment_version(written)


def _write_natively(lists: list[Operand], weights: Weights) -> None:
    """Raises NotNative, before anything is written, if a tensor is not read natively."""

    def weights_on(device: int) -> Tensor:
        assert isinstance(weights, Tensor)
        return weights.detach().to(backends.device_of(device), torch.float64).contiguous()

    unread = backends.native.combine(
        backends.tensor_reader(),
        lists,
        weights_on if isinstance(weights, Tensor) else list(weights),
        check_device,
        torch.get_num_threads(),
        backends.device_bytes,
        kept,
    )
    if unread is not None:
        raise NotNative(*unread)


def _recorded(lists: list[Operand], weights: Weights) -> Operand:
    """The combination with autograd's record of it."""
    is_tensor = isinstance(weights, Tensor)
    flat = [tensor for one in lists for tensor in one]
    return list(
        _Combination.apply(  # type: ignore[no-untyped-call]
            len(lists), None if is_tensor else weights, weights if is_tensor else None, *flat
        )
    )


class _Combination(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        count: int,
        numbers: list[float] | None,
        weights: Tensor | None,
        *flat: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        lists = _split(flat, count)
        ctx.set_materialize_grads(False)
        ctx.numbers, ctx.like = numbers, [tensor is not None and tensor.dtype for tensor in flat]
        # The tensors themselves are needed for the gradient of the weights only.
        ctx.save_for_backward(weights, *(flat if ctx.needs_input_grad[2] else ()))
        results = new_results(lists)
        given = numbers if weights is None else weights
        assert given is not None
        write(lists, given, results)
        ctx.placements = [y.placements if is_dtensor(y) else None for y in results]
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        weights, *flat = ctx.saved_tensors
        grads = tuple(
            grad.redistribute(placements=placements) if is_dtensor(grad) and placements else grad
            for grad, placements in zip(grads, ctx.placements, strict=True)
        )
        needed = _split(ctx.needs_input_grad[3:], len(ctx.needs_input_grad[3:]) // len(grads))
        of_weights = None
        if ctx.needs_input_grad[2]:
            lists = _split(flat, len(needed))
            of_weights = torch.stack([_product(grads, one).to(weights) for one in lists])
        of_tensors: Operand = []
        for number, (wanted, dtypes) in enumerate(
            zip(needed, _split(ctx.like, len(needed)), strict=True)
        ):
            weight = ctx.numbers[number : number + 1] if weights is None else weights[number, None]
            kept = [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
            scaled = combine([kept], weight, missing="zero") if any(wanted) else kept
            of_tensors += [
                None if grad is None else grad.to(dtype)
                for grad, dtype in zip(scaled, dtypes, strict=True)
            ]
        return None, None, of_weights, *of_tensors


def _split(flat: Sequence[Any], count: int) -> list[Any]:
    each = len(flat) // count
    return [list(flat[i * each : (i + 1) * each]) for i in range(count)]


def _product(grads: Sequence[Tensor | None], tensors: Operand) -> Tensor:
    """The inner product of two lists, recorded by autograd if it records."""
    pairs = [
        (grad, tensor)
        for grad, tensor in zip(grads, tensors, strict=True)
        if grad is not None and tensor is not None
    ]
    if not pairs:
        return torch.zeros((), dtype=torch.float64)
    if not torch.is_grad_enabled():
        return gram([grad for grad, _ in pairs], [tensor for _, tensor in pairs])[0, 1]
    wide = [(a.to(torch.promote_types(a.dtype, torch.float64)), b) for a, b in pairs]
    products = [(a * b.conj()).real.sum() for a, b in wide]
    return torch.stack([x.full_tensor() if is_dtensor(x) else x for x in products]).sum()
