"""The nodes of one graph: validated, normalised, and ordered with labelled nodes first."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from friction_kernels.graph import checks
from friction_kernels.graph.checks import rows_at_fault
from friction_kernels.graph.unit_rows import unit_rows


class Nodes(NamedTuple):
    """Rows are ordered: labelled, scored (unlabelled, but with a known label), the rest."""

    z: Tensor  # (N, d) with rows of unit length, float32 or float64, differentiable
    labels: Tensor  # (N,) int64
    order: Tensor  # (N,): row i is row order[i] of the input
    num_labelled: int
    num_scored: int
    num_remembered: int  # labelled nodes that come from a memory
    num_missing_classes: int  # classes of scored nodes that no labelled node has; 0 if not counted
    sigma: float

    @property
    def num_known(self) -> int:
        return self.num_labelled + self.num_scored


class Past(NamedTuple):
    """Masks, bool (N,), of the input rows that came from a memory."""

    remembered: Tensor  # always labelled
    absent: Tensor  # excluded from this graph


def draw_keys(num_nodes: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """(N,): random numbers in [0, 1), generated on the generator's device."""
    at = device if generator is None else generator.device
    # A default dtype with few bits would give distinct documents equal keys.
    return torch.rand(num_nodes, generator=generator, device=at, dtype=torch.float32).to(device)


def first_copies(ids: Tensor) -> Tensor:
    """(N,): the index of the first row with the same id. The host does not wait for the device."""
    ordered, rows = ids.sort(stable=True)
    starts = torch.arange(len(ids), device=ids.device)
    starts[1:].masked_fill_(ordered[1:] == ordered[:-1], 0)
    starts = starts.cummax(0).values if len(ids) else starts
    return torch.empty_like(rows).scatter_(0, rows, rows[starts])


def rank_nodes(
    known: Tensor,
    labelled: Tensor | None,
    keys: Tensor | None,
    gamma: float,
    past: Past | None = None,
    *,
    equal_keys_together: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return (order (N,), number of labelled nodes ()): labelled, known, other, and excluded nodes.

    known: bool (N,), whether a label is known. labelled: bool (N,), or None to draw the known nodes with
    the smallest `keys` (N,): a fraction gamma, rounded up as in the authors' code, at least one and at most
    all but one. Remembered nodes are labelled in addition; then none need be drawn. equal_keys_together:
    nodes with equal keys are labelled together or not at all, which may change the fraction slightly.
    The host does not wait for the device.
    """
    if labelled is not None:
        order_by = torch.where(labelled, 0, torch.where(known, 1, 2))
    else:
        assert keys is not None
        order_by = torch.where(known, keys, 2.0)
        if past is not None:
            order_by = order_by.masked_fill(past.remembered, -1.0)
    if past is not None:
        order_by = order_by.masked_fill(past.absent, 3)
    order = order_by.argsort(stable=True)
    if labelled is not None:
        return order, labelled.sum()
    num_known = num_new = known.sum()
    num_drawn_at_least: int | Tensor = 1
    if past is not None:
        num_remembered = past.remembered.sum()
        num_new = num_known - num_remembered
        num_drawn_at_least = (num_remembered == 0).long()
    num_drawn = (num_new.double() * gamma).ceil_().long().clamp_min(num_drawn_at_least)
    num_labelled = num_drawn.minimum(num_new - 1).clamp_min(0)
    if past is not None:
        num_labelled += num_remembered
    if equal_keys_together and len(order):
        num_labelled = _part_no_equal_keys(order_by[order], num_labelled, num_known)
    return order, num_labelled


def _part_no_equal_keys(keys: Tensor, count: Tensor, num_known: Tensor) -> Tensor:
    """(): count, raised so as not to part equal sorted keys, or lowered if that takes all known nodes."""
    last = keys.index_select(0, (count - 1).clamp_min(0).reshape(1))
    up_to_it = (keys <= last).sum()
    return torch.where(up_to_it < num_known, up_to_it, (keys < last).sum())


def first_of(order: Tensor, count: int | Tensor) -> Tensor:
    """bool (N,): true at the first `count` nodes of order (N,)."""
    first = torch.arange(len(order), device=order.device) < count
    return torch.zeros_like(first).scatter_(0, order, first)


def draw_labelled(
    known: Tensor, keys: Tensor | None, gamma: float, equal_keys_together: bool
) -> Tensor:
    """bool (N,): the nodes that `rank_nodes` labels in a batch without a memory."""
    return first_of(*rank_nodes(known, None, keys, gamma, equal_keys_together=equal_keys_together))


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
    past: Past | None = None,
    ids_outside: Tensor | None = None,
    equal_keys_together: bool = False,
    count_missing_classes: bool = False,
) -> Nodes:
    """Check the values, and order the nodes as `rank_nodes` does. The host waits for the device once.

    labels: int64. ids_outside: bool, which of the first rows have an invalid id. `check_sizes` checks
    whether there are enough nodes.
    """
    known = labels != ignore_index
    if past is not None:
        known &= ~past.absent
    order, count_labelled = rank_nodes(
        known, labelled, keys, gamma, past, equal_keys_together=equal_keys_together
    )
    z, usable = unit_rows(embeddings)
    unusable = ~usable if past is None else ~(usable | past.absent)
    outside = known & (labels != labels.clamp(0, num_classes - 1))
    faulty = unusable | outside
    if labelled is not None:
        faulty |= labelled & ~known
    if ids_outside is not None:
        faulty[: len(ids_outside)] |= ids_outside
    counts = [known.sum(), count_labelled, faulty.sum()]
    if past is not None:
        counts += [past.remembered.sum(), past.absent.sum()]
    if count_missing_classes:
        ranked_usable = (known & ~outside)[order]
        counts.append(_missing_classes(labels[order], ranked_usable, count_labelled, num_classes))
    numbers = torch.stack(counts)
    if isinstance(sigma, Tensor):
        width = sigma.detach().to(z.device, torch.float64)
        numbers = torch.cat((numbers.double(), width.reshape(1)))
    on_host = numbers.tolist()  # the host waits here
    sigma_value = on_host.pop() if isinstance(sigma, Tensor) else float(sigma)
    num_known, num_labelled, num_faulty, *more = map(int, on_host)
    num_missing = more.pop() if count_missing_classes else 0
    num_remembered, num_absent = more or (0, 0)

    if not 0 < sigma_value < math.inf:
        raise ValueError(
            f"sigma must be positive and finite, got {sigma_value}; for a trained width that stays "
            "positive use sigma='learnable'"
        )
    if num_faulty:
        num_new = len(known) if past is None else int((~past.remembered & ~past.absent).sum())
        batch, memory = slice(num_new), slice(num_new, None)
        marked = None if labelled is None else labelled[batch] & ~known[batch]
        _raise_for_rows(unusable[batch], outside[batch], marked, num_classes, ignore_index)
        if ids_outside is not None and ids_outside.any():
            checks.raise_for_ids(ids_outside)
        _raise_for_memory(unusable[memory], outside[memory], num_classes)
    order = order[: len(order) - num_absent]
    return Nodes(
        z.index_select(0, order),
        labels[order],
        order,
        num_labelled,
        num_known - num_labelled,
        num_remembered,
        num_missing,
        sigma_value,
    )


def _raise_for_rows(
    unusable: Tensor,
    outside: Tensor,
    marked: Tensor | None,  # labelled, but without a label
    num_classes: int,
    ignore_index: int,
) -> None:
    if unusable.any():
        raise ValueError(
            f"embeddings have NaN, infinite or zero length in {rows_at_fault(unusable)} of "
            f"{len(unusable)}; leave these rows out, or look for the operation that made them"
        )
    if outside.any():
        raise ValueError(
            f"labels lie outside [0, {num_classes}) in {rows_at_fault(outside)}; correct num_classes, "
            f"or mark unlabelled nodes with ignore_index={ignore_index}"
        )
    if marked is not None and marked.any():
        raise ValueError(
            f"labelled is true where the label is ignore_index={ignore_index}, in "
            f"{rows_at_fault(marked)}; pass labelled & (labels != {ignore_index})"
        )


def _raise_for_memory(unusable: Tensor, outside: Tensor, num_classes: int) -> None:
    if unusable.any():
        raise ValueError(
            f"the memory's embeddings have NaN, infinite or zero length in its {rows_at_fault(unusable)}; "
            "clear() the memory, or load another state"
        )
    raise ValueError(
        f"the memory's labels lie outside [0, {num_classes}) in its {rows_at_fault(outside)}, which were "
        "added for other classes; correct num_classes, or clear() the memory"
    )


def check_sizes(nodes: Nodes) -> None:
    """Raise if there are too few nodes for a graph, or if all or none of them are labelled."""
    num_nodes = len(nodes.z)
    if num_nodes < 2:
        raise ValueError(f"a graph needs at least two nodes, got {num_nodes}; pass a larger batch")
    if nodes.num_labelled < 1:
        raise ValueError(
            f"no node is labelled: nothing can be propagated ({nodes.num_scored} of {num_nodes} nodes "
            "have a label); label at least one node, and for a drawn part pass at least two documents "
            "with a label"
        )
    if nodes.num_labelled == num_nodes:
        raise ValueError(
            f"no node is unlabelled: nothing is to be recovered from {num_nodes} labelled nodes; "
            "set labelled to False for some"
        )


def _missing_classes(
    labels: Tensor, usable: Tensor, num_labelled: Tensor, num_classes: int
) -> Tensor:
    """(): number of classes of usable unlabelled nodes that no usable labelled one has; nodes are ordered."""
    labelled = torch.arange(len(labels), device=labels.device) < num_labelled
    place = torch.where(usable, labels + torch.where(labelled, 0, num_classes), 2 * num_classes)
    present = torch.zeros(2 * num_classes + 1, dtype=torch.bool, device=labels.device)
    present[place] = True
    return (present[num_classes:-1] & ~present[:num_classes]).sum()
