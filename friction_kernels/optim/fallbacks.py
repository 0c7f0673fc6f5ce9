"""Which parameters the native kernels serve, and why they cannot serve the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from friction_kernels import backends
from friction_kernels.optim import checks
from friction_kernels.optim.rule import Rule
from friction_kernels.optim.sharded_adamp import is_spread
from friction_kernels.warn import warn

Groups = list[dict[str, Any]]  # all groups of an optimizer, or some of them


class Entry(NamedTuple):
    """A parameter's position, and why native kernels cannot serve it (None if they can)."""

    group: int
    index: int  # type: ignore[assignment]  # shadows tuple.index
    ordinal: int  # its index among all of the optimizer's parameters
    fallback_reason: str | None


def entries_of(rule: Rule, groups: Groups, first: int) -> list[Entry]:
    """An entry for every parameter of the groups; `first`: the ordinal of the first one."""
    entries: list[Entry] = []
    seen: set[int] = set()
    for group_index, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            reason = _fallback_reason(rule, group, param, again=id(param) in seen)
            seen.add(id(param))
            entries.append(Entry(group_index, index, first + len(entries), reason))
    return entries


def _fallback_reason(
    rule: Rule, group: Mapping[str, Any], param: Tensor, *, again: bool
) -> str | None:
    """again: whether the parameter occurred before, so that its updates must run one after the other."""
    if group["backend"] == "reference":
        return "backend='reference' was asked for"
    if again:
        return "it is given twice, and kernels step all parameters at once"
    if param.grad is None:  # inspected again once it has a gradient
        return backends.native_unavailable_reason()
    return fallback_reason_with_gradient(rule, param)


def fallback_reason_with_gradient(rule: Rule, param: Tensor) -> str | None:
    reason = backends.native_fallback_reason(param)
    if reason is None and rule.projects_rows and is_spread(param):
        reason = "AdamP's sums over processes are plain torch's"
    return reason


def warn_of_fallbacks(all_groups: Groups, groups: Groups, entries: list[Entry]) -> None:
    """Warn once per reason about parameters with a gradient that fall back to plain torch."""
    unserved: dict[str, list[int]] = {}
    for entry in entries:
        group = groups[entry.group]
        if entry.fallback_reason is None or group["backend"] != "auto":
            continue
        if group["params"][entry.index].grad is not None:
            unserved.setdefault(entry.fallback_reason, []).append(entry.ordinal)
    for reason, (first, *others) in unserved.items():
        more = f" and {len(others)} more" if others else ""
        warn(
            f"{checks.name_at(all_groups, first)}{more} cannot be served by native kernels: "
            f"{reason}. Plain torch computes the same, many times slower; backend='reference' asks for "
            "that and is not warned of"
        )
