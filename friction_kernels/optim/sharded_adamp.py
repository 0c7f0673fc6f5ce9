"""AdamP's steps of matrices whose rows, or parts of rows, are on several processes.

Sums are accumulated in float64: first each row's over the processes that share it, then over all rows. One
message carries those of all matrices. The decisions stay on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from friction_kernels import equations
from friction_kernels.flattened import is_flattened, stretch_of
from friction_kernels.optim.reference import Update
from friction_kernels.optim.rule import ProjectedRule, Rule
from friction_kernels.optim.states import count_of_reals
from friction_kernels.shards import all_reduce, sharding_groups

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def is_spread(param: Tensor) -> bool:
    """Whether the decision to project a parameter involves several processes."""
    return param.dim() > 1 and bool(sharding_groups(param))


def flattened_refusal(rule: Rule, param: Tensor) -> str | None:
    """Why a rule cannot update a parameter of FSDP1, or None if it can."""
    if not rule.projects_rows or not is_flattened(param) or param.dim() > 1:
        return None  # with several dimensions, the parameter was not cut
    stretch = stretch_of(param)
    if stretch is not None and stretch.dims <= 1:
        return None
    return (
        "FullyShardedDataParallel flattened it, and AdamP needs to know matrices and their rows; use "
        "torch.distributed.fsdp.fully_shard, or the AdamW form of the optimizer"
    )


class Direction(NamedTuple):
    """A matrix halfway through its step: the direction is known, the projection not yet decided."""

    update: Update
    u: Tensor
    sums: Tensor  # of p.g, p.p, g.g and p.u for each row with elements on this process


def make_together(rule: ProjectedRule, updates: Iterable[Update]) -> None:
    """Make the steps of sharded matrices.

    Every process that holds a part of a matrix must call it, with the same matrices in the same order. All
    directions stay in memory until the last sum arrives.
    """
    directions = [_direction(rule, update) for update in updates]
    wholes = [direction.update.whole for direction in directions]
    of_rows = _sum_over(
        [direction.sums for direction in directions],
        [sharding_groups(whole, range(1, whole.dim())) for whole in wholes],
    )
    of_all = _sum_over(
        [
            torch.cat([_count_failing(direction, rows), rows.sum(dim=1)])
            for direction, rows in zip(directions, of_rows, strict=True)
        ],
        [sharding_groups(whole, [0]) for whole in wholes],
    )
    for direction, rows, numbers in zip(directions, of_rows, of_all, strict=True):
        _finish(direction, rows, failing=numbers[0], total=numbers[1:])


def _direction(rule: ProjectedRule, update: Update) -> Direction:
    u = rule.direction(update.operands(), update.group)
    p, g, u_rows = (t.flatten(start_dim=1).double() for t in (update.wide, update.grad, u))
    sums = torch.stack([(a * b).sum(dim=1) for a, b in ((p, g), (p, p), (g, g), (p, u_rows))])
    update.keep_states()
    return Direction(update, u, sums)


def _sum_over(parts: list[Tensor], processes: list[tuple[ProcessGroup, ...]]) -> list[Tensor]:
    """Sum each tensor over its processes, with one message per set of processes."""
    sums = list(parts)
    for key in dict.fromkeys(processes):
        members = [index for index, groups in enumerate(processes) if groups == key]
        together = all_reduce(torch.cat([parts[index].flatten() for index in members]), key)
        shares = together.split([parts[index].numel() for index in members])
        for index, share in zip(members, shares, strict=True):
            sums[index] = share.view_as(parts[index])
    return sums


def _count_failing(direction: Direction, sums: Tensor) -> Tensor:
    """The number of rows that are not nearly orthogonal to their gradient."""
    whole = direction.update.whole
    row_length = count_of_reals(whole) // max(whole.shape[0], 1)
    passing = _nearly_orthogonal(sums, row_length, direction.update.group)
    return (~passing).sum(dtype=sums.dtype).reshape(1)


def _nearly_orthogonal(sums: Tensor, length: int, group: Mapping[str, Any]) -> Tensor:
    options = {"delta": float(group["delta"]), "eps": float(group["eps"])}
    return equations.nearly_orthogonal(sums[0], sums[1], sums[2], length, **options)


def _finish(direction: Direction, rows: Tensor, *, failing: Tensor, total: Tensor) -> None:
    """Project by rows, else as a whole, else not, and update: the rest of `equations.friction_adamp`."""
    update, u = direction.update, direction.u
    group = update.group
    by_rows = failing == 0
    projects = by_rows | _nearly_orthogonal(total, count_of_reals(update.whole), group)
    sums = torch.where(by_rows, rows, total[:, None])
    coefficient = sums[3] / (sums[1].sqrt() + float(group["eps"])) ** 2
    p, u_rows = (t.flatten(start_dim=1).double() for t in (update.wide, u))
    along = coefficient[:, None] * p  # p^ (p^ . u), p^ = p / (|p| + eps)
    u = torch.where(projects, u_rows - along, u_rows).to(u.dtype).reshape(u.shape)

    lr, decay = float(group["lr"]), float(group["weight_decay"])
    p = update.wide
    p = torch.where(
        projects, p * (1 - lr * (decay * float(group["wd_ratio"]))), p * (1 - lr * decay)
    )
    update.wide.copy_(p - lr * u)
    update.keep_value()
