"""take_gradients: a gradient's memory becomes the state that keeps it for the next step."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.optim import checks, options
from friction_kernels.optim.rule import Rule
from friction_kernels.shards import local

TAKE_GRADIENTS = """\
take_gradients: the step keeps the gradient's memory as prev_grad and leaves p.grad None, so that
            nothing is copied: 32 bytes a float32 parameter instead of 36. A gradient that the step scales
            (clipping, a loss scale, maximize) is written once more, as the next step needs it scaled.
            Not for captured steps, coupled decay, or gradients that something else holds or shares,
            such as views of a bucket: step() raises (default False)."""


def takes(rule: Rule, group: Mapping[str, Any]) -> bool:
    """Whether a group's gradients are taken; without a state that keeps them the option means nothing."""
    return bool(group.get("take_gradients", False)) and kept_state(rule) is not None


def check_group(group: Mapping[str, Any], *, decoupled: bool) -> None:
    """Raise if the option is wrong or conflicts with another option of the group."""
    check_choice("take_gradients", group.get("take_gradients", False), (False, True))
    if not group.get("take_gradients", False):
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


def check_members(rule: Rule, index: int, group: Mapping[str, Any]) -> None:
    """Raise if a parameter is given twice, so that its second step would find no gradient."""
    seen: set[int] = set()
    for place, param in enumerate(group["params"] if takes(rule, group) else ()):
        if id(param) in seen:
            name = checks.parameter_name(index, group, place)
            raise RuntimeError(
                f"{name} has take_gradients=True, and is given twice, while its gradient is there for one "
                "step; give it once, or set take_gradients=False for it"
            )
        seen.add(id(param))


def why_not_taken(rule: Rule, groups: list[dict[str, Any]]) -> tuple[int, str] | None:
    """The place of the first parameter whose gradient cannot be taken although it should, and why."""
    state, first = kept_state(rule), 0
    if state is None:
        return None
    for group in groups:
        if takes(rule, group):
            for place, param in enumerate(group["params"], first):
                reason = None if param.grad is None else _why_not(param, group, state)
                if reason is not None:
                    return place, reason
        first += len(group["params"])
    return None


def release(rule: Rule, groups: list[dict[str, Any]]) -> None:
    """Leave no gradient after a step that is skipped, as after every other."""
    for group in groups:
        for param in group["params"] if takes(rule, group) else ():
            param.grad = None


def kept_state(rule: Rule) -> str | None:
    """The state that keeps the gradient, or None if the rule has no such state."""
    return next((key for key, kind in rule.states.items() if not kind.at_least_float32), None)


def _why_not(param: Tensor, group: Mapping[str, Any], state: str) -> str | None:
    """Why a parameter's gradient cannot be taken as this state, or None if it can."""
    grad = param.grad
    assert grad is not None
    references, uses = _usual_holders()
    if sys.getrefcount(grad) > references or _uses(grad) > uses:
        return (
            "something else holds its gradient: a variable, a hook, a graph, another parameter or a "
            "compiled function"
        )
    if grad.layout != torch.strided:
        return None  # no step takes a sparse one
    if grad.requires_grad:
        return "its gradient has a graph of its own; call backward() without create_graph"
    if grad.is_inference():
        return "its gradient was made in inference mode, and could not be written later"
    part, kept_as = local(grad), param.dtype
    if group["state_dtype"] is not None:
        kept_as, _ = options.state_type(local(param), group, state, wide=False)
    if part.dtype != kept_as:
        return f"its gradient is {part.dtype}, and its state '{state}' is kept as {kept_as}"
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


def _uses(grad: Tensor) -> int:
    """How many hold a gradient in C++, one of which stands for all in Python."""
    uses: int = grad._use_count()  # type: ignore[attr-defined]
    return uses


@cache
def _usual_holders() -> tuple[int, int]:
    """What `_why_not` counts if nothing else holds the gradient, which depends on the version of torch."""
    param = torch.zeros((), device="cpu")
    param.grad = torch.zeros((), device="cpu")
    grad = param.grad
    return sys.getrefcount(grad), _uses(grad)
