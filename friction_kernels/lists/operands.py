"""What an operation on lists of tensors is given, and who serves it.

Plain tensors are read natively, at once. What cannot be read so is looked at here, position by position: it
is refused by name, unwrapped (DTensors), or left to plain torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from friction_kernels import backends
from friction_kernels.flattened import is_flattened
from friction_kernels.shards import (
    is_dtensor,
    local,
    mismatch,
    name_of,
    processes_of,
    summed_over,
    why_no_sum,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

MOST_LISTS = 8
Missing = Literal["error", "zero"]
Operand = list[Tensor | None]

kept: list[Tensor] = []  # memory that captured CUDA graphs read at every replay


class NotNative(Exception):  # noqa: N818
    """Some tensor is not served by kernels; only ever raised to look at all of them here."""


class Position(NamedTuple):
    """The tensors at one place of all lists, as this process holds them."""

    place: int  # in the lists
    parts: Operand
    processes: tuple[ProcessGroup, ...]  # which hold the other parts
    native: bool


def listed(given: Sequence[Iterable[Tensor | None] | Tensor]) -> list[Operand]:
    """The lists, once it is known that an operation takes as many and that they are of one length."""
    lists: list[Operand] = [[item] if isinstance(item, Tensor) else list(item) for item in given]
    if not 1 <= len(lists) <= MOST_LISTS:
        raise ValueError(f"1 to {MOST_LISTS} lists are taken together, got {len(lists)}")
    for number, one in enumerate(lists):
        if len(one) != len(lists[0]):
            raise ValueError(
                f"list {number} has {len(one)} tensors, and list 0 has {len(lists[0])}; they must "
                "correspond"
            )
    return lists


def check_missing(lists: Sequence[Operand], missing: Missing) -> None:
    if missing not in ("error", "zero"):
        raise ValueError(f"missing must be 'error' or 'zero', got {missing!r}")
    if missing == "zero":
        return
    for number, one in enumerate(lists):
        for index, tensor in enumerate(one):
            if tensor is None:
                raise ValueError(
                    f"tensor {index} of list {number} is None; leave it out of all lists, or count it as "
                    "zeros by missing='zero'"
                )


def is_traced() -> bool:
    """Whether torch records operators to run them again, in which native code has no part."""
    proxies = sys.modules.get("torch.fx.experimental.proxy_tensor")
    is_proxied = proxies is not None and proxies.get_proxy_mode() is not None
    return is_proxied or torch._C._get_tracing_state() is not None


def may_be_plain(lists: Sequence[Operand], process_group: ProcessGroup | str | None) -> bool:
    """Whether it is worth to read all tensors natively at once: no processes are to be asked for."""
    unavailable = backends.native_unavailable_reason() is not None
    if process_group is not None or unavailable or is_traced():
        return False
    if "torch.distributed.fsdp._flat_param" not in sys.modules:
        return True
    return not any(  # FSDP1 flags what look like plain parameters
        type(tensor) is not Tensor and tensor is not None and is_flattened(tensor)
        for one in lists
        for tensor in one
    )


def check_device(device: int) -> None:
    """Raise NotNative unless kernels run on a device, as native code numbers them."""
    if device >= 0 and backends.cuda_unavailable_reason(device) is not None:
        raise NotNative


def positions_of(
    lists: Sequence[Operand],
    process_group: ProcessGroup | str | None = None,
    *,
    owners: Sequence[Tensor] | None = None,
    last: str | None = None,
) -> list[Position]:
    """The tensors by position, or an error that names the one that cannot be taken.

    owners: the parameters that know which processes hold the other parts of gradients; None: the tensors
    themselves. last: what the last list is called.
    """
    name = name_of(process_group)
    others = processes_of(name)
    is_traceable = not is_traced()
    positions = []
    for index, tensors in enumerate(zip(*lists, strict=True)):
        first, owner = None, None if owners is None else owners[index]
        for number, tensor in enumerate(tensors):
            if tensor is None:
                continue
            what = f"tensor {index}" if len(lists) == 1 else f"tensor {index} of list {number}"
            if last is not None and number == len(lists) - 1:
                what = f"tensor {index} of {last}"
            check_tensor(tensor, what)
            problem = why_no_sum(tensor if owner is None else owner, name)
            if problem is not None:
                raise RuntimeError(f"the sum over {what} is not known: {problem}")
            if first is None:
                first, called = tensor, what
            else:
                check_alike(first, tensor, called, what)
        if first is None:
            continue
        parts = [None if tensor is None else local(tensor).detach() for tensor in tensors]
        native = is_traceable and all(
            backends.native_fallback_reason(part) is None for part in parts if part is not None
        )
        processes = summed_over(first if owner is None else owner, others)
        positions.append(Position(index, parts, processes, native))
    return positions


def lists_of(positions: Sequence[Position]) -> list[Operand]:
    return [list(one) for one in zip(*(position.parts for position in positions), strict=True)]


@contextmanager
def readable(positions: Sequence[Position]) -> Iterator[None]:
    """Kernels serve these tensors; one that is not read even so has no memory."""
    try:
        yield
    except NotNative as unread:
        number, index = unread.args
        raise ValueError(
            f"tensor {positions[index].place} of list {number} has elements and no memory for them"
        ) from None


def check_tensor(tensor: object, what: str) -> None:
    if not isinstance(tensor, Tensor):
        if isinstance(tensor, (list, tuple, str)):
            raise TypeError(
                f"{what} is a {type(tensor).__name__}, and no tensor; a list is of tensors, such as a "
                "dict's values()"
            )
        raise TypeError(f"{what} is {tensor!r}, and no tensor; leave it out")
    if not (tensor.is_floating_point() or tensor.is_complex()) or tensor.dtype.itemsize == 1:
        raise TypeError(
            f"{what} is {tensor.dtype}; lists are of floating tensors of 16 bits or more, or of complex "
            "ones"
        )
    if is_dtensor(tensor) and any(placement.is_partial() for placement in tensor.placements):
        raise ValueError(
            f"{what} is spread as {tensor.placements}, a sum that has not been taken; redistribute it"
        )
    layout = str(local(tensor).layout)
    if layout != "torch.strided":
        raise TypeError(f"{what} is not strided ({layout}); make it dense")


def check_alike(first: Tensor, other: Tensor, first_name: str, name: str) -> None:
    for aspect, mine, its in (
        ("of shape", tuple(other.shape), tuple(first.shape)),
        ("on", other.device, first.device),
        ("complex:", other.is_complex(), first.is_complex()),
    ):
        if mine != its:
            raise ValueError(
                f"{name} is {aspect} {mine}, and {first_name} {aspect} {its}; they must correspond"
            )
    if is_dtensor(first) != is_dtensor(other):
        raise ValueError(
            f"only one of {first_name} and {name} is a DTensor; both must be, or neither"
        )
    if problem := mismatch(first, other):
        raise ValueError(f"{name} is not sharded as {first_name}: {problem}")
