"""Direction statistics: how the gradient of the next step agrees with momentum and with its predecessor."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from friction_kernels.lists.products import segmented_products
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.statistics import check_gradients
from friction_kernels.shards import wrap


class DirectionStats(NamedTuple):
    """float64 tensors (S,) on the first gradient's device, one number a group or tensor.

    A group without gradients has norms of 0. A cosine is nan where one of its vectors is zero, as all states
    are before the first step.
    """

    grad_norm: Tensor
    momentum_norm: Tensor
    cos_momentum: Tensor  # of gradient and momentum
    cos_previous: Tensor | None  # of gradient and previous gradient; None if the rule keeps none


@torch.no_grad()
def direction_stats(
    opt: PlannedOptimizer, by: Literal["group", "tensor"] = "group"
) -> DirectionStats:
    """Norms of the gradients and the momentum that the next step meets, and the cosines between them.

    Call it between backward() and step(). One launch reads gradients, momentum and previous gradients once,
    and changes nothing; the host does not wait for a GPU. With vectors g, m and h of a group:

        g.norm(), m.norm(), g @ m / (g.norm() * m.norm()), g @ h / (g.norm() * h.norm())

    g is the gradient as it is, with its loss scale and before clipping, which do not change cosines, and
    negated if the group maximizes. m is the state exp_avg (momentum_buffer), without bias correction, and h
    is what the last step applied; coupled weight decay is part of both and not of g. Parameters without a
    gradient are left out.

    These statistics are this library's.

    Args:
        opt: one of this library's optimizers.
        by: "group" for each parameter group, or "tensor" for each parameter with a gradient, in the order of
            the groups (default "group").

    Returns:
        DirectionStats(grad_norm, momentum_norm, cos_momentum, cos_previous). Sharded parameters are summed
        over their processes, all of which must call this function.

    Raises:
        TypeError: another optimizer.
        ValueError: states are kept in 8 bits; or `by` is neither.
        RuntimeError: no gradient is about to be applied, because none was computed, step() has applied it
            already, or release_gradients applies each as it arrives.
    """
    if not isinstance(opt, PlannedOptimizer):
        raise TypeError(
            f"{type(opt).__name__} is not one of this library's; direction_stats takes those that are"
        )
    if by not in ("group", "tensor"):
        raise ValueError(f"by must be 'group' or 'tensor', got {by!r}")
    check_gradients(opt, "direction_stats")
    states_of_rule = opt.rule.states.items()
    momentum = next(name for name, kind in states_of_rule if not kind.non_negative)
    copies = [name for name, kind in states_of_rule if not kind.at_least_float32]
    owners: list[Tensor] = []
    groups: list[int] = []
    for number, group in enumerate(opt.param_groups):
        with_gradient = [param for param in group["params"] if param.grad is not None]
        owners += with_gradient
        groups += [number] * len(with_gradient)
    vectors: list[list[Tensor | None]] = [[param.grad for param in owners]]
    for name in (momentum, *copies):
        states = (opt.state.get(param, {}).get(name) for param in owners)
        vectors.append(
            [_floating(state, name, param) for state, param in zip(states, owners, strict=True)]
        )
    of_groups = [group["process_group"] for group in opt.param_groups]
    signs = [-1.0 if group["maximize"] else 1.0 for group in opt.param_groups]
    labels, count = groups, len(opt.param_groups)
    if by == "tensor":
        labels, count = list(range(len(owners))), len(owners)
        signs = [signs[number] for number in groups]
    parts = []
    for process_group in dict.fromkeys(of_groups):  # one, as a rule
        mine = [i for i, number in enumerate(groups) if of_groups[number] == process_group]
        chosen = [[one[i] for i in mine] for one in vectors]
        segments, of = [labels[i] for i in mine], [owners[i] for i in mine]
        parts.append(segmented_products(chosen, segments, count, process_group, of))
    products = torch.stack([part.to(parts[0].device) for part in parts]).sum(0)
    norms = products.diagonal(dim1=1, dim2=2).sqrt()
    cosines = products[:, 0, 1:] / (norms[:, :1] * norms[:, 1:])
    cosines = (
        cosines * torch.tensor(signs, dtype=torch.float64, device="cpu").to(cosines.device)[:, None]
    )
    previous = cosines[:, 1] if copies else None
    return DirectionStats(norms[:, 0], norms[:, 1], cosines[:, 0], previous)


def _floating(state: Tensor | None, name: str, param: Tensor) -> Tensor | None:
    if state is None:
        return None
    if not state.is_floating_point() and not state.is_complex():
        raise ValueError(
            f"state {name!r} is kept in 8 bits, of which direction_stats takes no products; keep it in "
            "bfloat16"
        )
    return wrap(state, param)
