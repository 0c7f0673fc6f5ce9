"""take_gradients: a gradient's memory becomes the state that keeps it for the next step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from friction_kernels.optim import checks, options
from friction_kernels.optim.rule import Rule
from friction_kernels.shards import local

TAKE_GRADIENTS = """\
take_gradients: the step keeps the gradient's memory as prev_grad and leaves p.grad None, so that
            nothing is copied: 32 bytes a float32 parameter instead of 36. A gradient that the step scales
            (clipping, a loss scale, maximize) is written once more, as the next step needs it scaled.
            Not for captured steps, coupled decay, or gradients that something else holds or shares,
            such as views of a bucket: step() raises (default False)."""


def takes(group: Mapping[str, Any]) -> bool:
    """Whether a group's gradients are taken; rules without such a state do not have the option."""
    return bool(group.get("take_gradients", False))


def check_group(group: Mapping[str, Any], *, decoupled: bool) -> None:
    """Raise if the option is wrong or conflicts with another option of the group."""
    checks.check_choice("take_gradients", group.get("take_gradients", False), (False, True))
    if not takes(group):
        return
    if group["capturable"]:
        raise ValueError(
            "take_gradients=True and capturable=True exclude each other: a captured step reads the same "
            "memory at every replay; choose one of them"
        )
    if not decoupled and checks.as_number("weight_decay", group["weight_decay"]) != 0:
        raise ValueError(
            "take_gradients=True and a coupled weight_decay exclude each other: the gradient that is kept "
            "includes the decay; use a class with decoupled decay, or weight_decay=0"
        )


def why_not_taken(rule: Rule, groups: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The place of the first parameter whose gradient cannot be taken although it should, and why."""
    first = 0
    for group in groups:
        if takes(group):
            for place, param in enumerate(group["params"], first):
                reason = None if param.grad is None else _why_not(param, group, rule)
                if reason is not None:
                    return place, reason
        first += len(group["params"])
    return None


def kept_state(rule: Rule) -> str:
    """The state that keeps the gradient."""
    return next(key for key, kind in rule.states.items() if not kind.at_least_float32)


def _why_not(param: Tensor, group: Mapping[str, Any], rule: Rule) -> str | None:
    """Why a parameter's gradient cannot be taken, or None if it can."""
    grad = param.grad
    assert grad is not None
    if sys.getrefcount(grad) > _references_of_a_gradient():
        return "something else holds its gradient: a variable, a hook or a compiled function"
    if grad.requires_grad:
        return "its gradient has a graph of its own; call backward() without create_graph"
    part, kept_as = local(grad), param.dtype
    if group["state_dtype"] is not None:
        kept_as, _ = options.state_type(local(param), group, kept_state(rule), wide=False)
    if part.dtype != kept_as:
        return (
            f"its gradient is {part.dtype}, and its state '{kept_state(rule)}' is kept as {kept_as}"
        )
    storage = part.untyped_storage()
    if storage.nbytes() != part.numel() * part.element_size():
        return "its gradient is a view of other memory, such as a bucket's"
    if _is_shared(storage):
        return "something else shares its gradient's memory"
    return None


def _is_shared(storage: torch.UntypedStorage) -> bool:
    """Whether more than one tensor has this storage, where torch can tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return count is not None and count(storage._cdata) > 2  # the gradient and `storage`


@cache
def _references_of_a_gradient() -> int:
    """What `_why_not` counts if nothing else holds the gradient, which depends on the version of torch."""
    with torch.enable_grad():
        param = torch.zeros((), device="cpu", requires_grad=True)
        param.sum().backward()
    grad = param.grad
    return sys.getrefcount(grad)
