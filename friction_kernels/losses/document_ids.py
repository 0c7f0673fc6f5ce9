"""Ids of documents, and where a ring of rows has, or takes, the rows with these ids.

Nothing waits for the device. A ring has `capacity` places, whose ids are `kept` (capacity,) int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from friction_kernels.graph.nodes import first_copies

NO_ID = torch.iinfo(torch.int64).min  # of rows without an id


def int64_ids(ids: Tensor) -> Tensor:
    """ids (N,) of any integer type in int64; NO_ID, which callers refuse, where they do not fit."""
    wide = ids.long()
    return wide.where(wide >= 0, NO_ID) if ids.dtype == torch.uint64 else wide


def last_copies(ids: Tensor) -> Tensor:
    """(n,): the last row that has the id of each row."""
    return len(ids) - 1 - first_copies(ids.flip(0)).flip(0)


def find(ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """(places (n,), bool (n,): whether a row with this id is kept, which then is there)."""
    ordered, places = kept.sort()
    position = torch.searchsorted(ordered, ids).clamp_max(len(kept) - 1)
    return places[position], ordered[position] == ids


def places_taken(found_at: Tensor, found: Tensor, capacity: int) -> Tensor:
    """bool (capacity,): the places that were found."""
    times = torch.zeros(capacity, dtype=torch.int64, device=found.device)
    return times.index_add_(0, found_at, found.long()) > 0


def places_for(
    ids: Tensor, last: Tensor, kept: Tensor, following: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows with these ids go: (places (n,), the last new place (1,), number of new places (1,)).

    last: `last_copies` of ids, and a place is right where a row is that; following: (), the next place.
    """
    capacity, device = len(kept), ids.device
    found_at, found = find(ids, kept)
    taken = places_taken(found_at, found, capacity)
    ring = (following + torch.arange(capacity, device=device)) % capacity
    oldest_first = ring[taken[ring].long().argsort(stable=True)]  # those taken at the end
    is_new = ~found & (last == torch.arange(len(ids), device=device))
    turn = is_new.long().cumsum(0) - 1
    places = torch.where(found, found_at, oldest_first[turn])
    return (
        places,
        oldest_first[turn[-1:]],
        turn[-1:] + 1,
    )  # where none is new, the place does not count
