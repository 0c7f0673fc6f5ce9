"""The nodes of one graph: checked, normalised, and put in order, labelled ones first."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from friction_kernels.graph.checks import rows_at_fault


class Nodes(NamedTuple):
    """Rows are in order: labelled, scored (unlabelled, but their label is known), the rest."""

    z: Tensor  # (N, d) with rows of length one, float32 or float64, differentiable
    labels: Tensor  # (N,) int64
    order: Tensor  # (N,): row i was row order[i] of the input
    num_labelled: int
    num_scored: int
    num_missing_classes: (
        int  # that scored nodes have and no labelled node; 0 where they are not counted
    )
    sigma: float


def draw_keys(num_nodes: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(N,): random numbers in [0, 1), made where the generator lives."""
    at = device if generator is None else generator.device
    return torch.rand(num_nodes, generator=generator, device=at).to(device)


def rank_nodes(
    known: Tensor, labelled: Tensor | None, keys: Tensor | None, gamma: float, num_remembered: int
) -> tuple[Tensor, Tensor]:
    """(order (N,), number of labelled nodes ()): labelled nodes, then known ones, then the rest.

    known: bool (N,), whether a label is known; labelled: bool (N,), or None to take those known nodes with
    the smallest `keys` (N,): a share gamma, rounded up as the authors' code does, at least one and at most
    all but one. The last `num_remembered` nodes are labelled in any case. Nothing waits for the device.
    """
    if labelled is not None:
        order_by = torch.where(labelled, 0, torch.where(known, 1, 2))
        return order_by.argsort(stable=True), labelled.sum()
    assert keys is not None
    order_by = torch.where(known, keys, 2.0)
    if num_remembered:
        order_by[-num_remembered:] = -1.0
    num_new = known.sum() - num_remembered
    num_drawn = (num_new.double() * gamma).ceil_().long()
    num_drawn = num_drawn.clamp_min(0 if num_remembered else 1).minimum(num_new - 1).clamp_min(0)
    return order_by.argsort(stable=True), num_drawn + num_remembered


def first_of(order: Tensor, count: int | Tensor) -> Tensor:
    """bool (N,): true at the first `count` nodes of order (N,)."""
    first = torch.arange(len(order), device=order.device) < count
    return torch.zeros_like(first).scatter_(0, order, first)


def arrange(
    embeddings: Tensor,
    labels: Tensor,
    *,
    labelled: Tensor | None,
    num_classes: int,
    sigma: float | Tensor,
    ignore_index: int,
    keys: Tensor | None = None,
    gamma: float = 0.0,
    num_remembered: int = 0,
    count_missing_classes: bool = False,
) -> Nodes:
    """Check the values, and order the nodes as `rank_nodes` does. The host waits for the device once."""
    labels = labels.long()
    known = labels != ignore_index
    order, count_labelled = rank_nodes(known, labelled, keys, gamma, num_remembered)

    e = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    length = torch.linalg.vector_norm(e, dim=1, keepdim=True)
    unusable = ~((length.detach() > 0) & (length.detach() < math.inf))[:, 0]
    outside = known & (labels != labels.clamp(0, num_classes - 1))
    faulty = unusable | outside
    if labelled is not None:
        faulty |= labelled & ~known
    counts = [known.sum(), count_labelled, faulty.sum()]
    if count_missing_classes:
        usable = (known & ~outside)[order]
        counts.append(_missing_classes(labels[order], usable, count_labelled, num_classes))
    numbers = torch.stack(counts)
    if isinstance(sigma, Tensor):
        width = sigma.detach().to(e.device, torch.float64)
        numbers = torch.cat((numbers.double(), width.reshape(1)))
    on_host = numbers.tolist()  # the host waits here
    sigma_value = on_host.pop() if isinstance(sigma, Tensor) else float(sigma)
    num_known, num_labelled, num_faulty, *num_missing = map(int, on_host)

    _raise_for_sizes(len(e), num_known, num_labelled)
    if not 0 < sigma_value < math.inf:
        raise ValueError(
            f"sigma must be positive and finite, got {sigma_value}; for a trained width that stays "
            "positive use sigma='learnable'"
        )
    if num_faulty:
        _raise_for_rows(unusable, outside, labelled, known, num_classes, ignore_index)
    z = (e / length).index_select(0, order)
    num_scored = num_known - num_labelled
    return Nodes(z, labels[order], order, num_labelled, num_scored, sum(num_missing), sigma_value)


def _raise_for_rows(
    unusable: Tensor,
    outside: Tensor,
    labelled: Tensor | None,
    known: Tensor,
    num_classes: int,
    ignore_index: int,
) -> None:
    if unusable.any():
        raise ValueError(
            f"embeddings have NaN, infinite or zero length in {rows_at_fault(unusable)} of "
            f"{len(known)}; leave these rows out, or look for the operation that made them"
        )
    if outside.any():
        raise ValueError(
            f"labels lie outside [0, {num_classes}) in {rows_at_fault(outside)}; correct num_classes, "
            f"or mark unlabelled nodes with ignore_index={ignore_index}"
        )
    assert labelled is not None
    raise ValueError(
        f"labelled is true where the label is ignore_index={ignore_index}, in "
        f"{rows_at_fault(labelled & ~known)}; pass labelled & (labels != {ignore_index})"
    )


def _raise_for_sizes(num_nodes: int, num_known: int, num_labelled: int) -> None:
    if num_nodes < 2:
        raise ValueError(f"a graph needs at least two nodes, got {num_nodes}; pass a larger batch")
    if num_labelled < 1:
        raise ValueError(
            f"no node is labelled: nothing can be propagated ({num_known} of {num_nodes} nodes have a "
            "label); label at least one node, and for a drawn part pass at least two labels"
        )
    if num_labelled == num_nodes:
        raise ValueError(
            f"no node is unlabelled: nothing is to be recovered from {num_nodes} labelled nodes; "
            "set labelled to False for some"
        )


def _missing_classes(
    labels: Tensor, usable: Tensor, num_labelled: Tensor, num_classes: int
) -> Tensor:
    """(): how many classes of usable unlabelled nodes no usable labelled node has; nodes are in order."""
    labelled = torch.arange(len(labels), device=labels.device) < num_labelled
    place = torch.where(usable, labels + torch.where(labelled, 0, num_classes), 2 * num_classes)
    present = torch.zeros(2 * num_classes + 1, dtype=torch.bool, device=labels.device)
    present[place] = True
    return (present[num_classes:-1] & ~present[:num_classes]).sum()
