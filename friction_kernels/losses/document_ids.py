"""Document ids: which rows of a ring buffer hold given ids, and where new rows go.

The host never waits for the device. A ring of `capacity` rows stores their ids in `kept` (capacity,) int64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from friction_kernels.graph.nodes import first_copies

NO_ID = torch.iinfo(torch.int64).min  # marks rows without an id


def int64_ids(ids: Tensor) -> Tensor:
    """ids (N,) of any integer type as int64; NO_ID, which callers reject, where they do not fit."""
    wide = ids.long()
    return wide.where(wide >= 0, NO_ID) if ids.dtype == torch.uint64 else wide


def last_copies(ids: Tensor) -> Tensor:
    """(n,): the index of the last row with the same id."""
    return len(ids) - 1 - first_copies(ids.flip(0)).flip(0)


def find(ids: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """(places (n,), bool (n,)): whether a kept row has this id, and where; the place is valid only if so."""
    ordered, places = kept.sort()
    position = torch.searchsorted(ordered, ids).clamp_max(len(kept) - 1)
    return places[position], ordered[position] == ids


def places_taken(found_at: Tensor, found: Tensor, capacity: int) -> Tensor:
    """bool (capacity,): which places were found."""
    times = torch.zeros(capacity, dtype=torch.int64, device=found.device)
    return times.index_add_(0, found_at, found.long()) > 0


def places_for(
    ids: Tensor, last: Tensor, kept: Tensor, following: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rows with these ids go: (places (n,), the last new place (1,), number of new places (1,)).

    last: `last_copies` of ids; places are valid only in the last rows. following: (), the next place.
    """
    capacity, device = len(kept), ids.device
    found_at, found = find(ids, kept)
    taken = places_taken(found_at, found, capacity)
    ring = (following + torch.arange(capacity, device=device)) % capacity
    oldest_first = ring[taken[ring].long().argsort(stable=True)]  # places already taken come last
    is_new = ~found & (last == torch.arange(len(ids), device=device))
    turn = is_new.long().cumsum(0) - 1
    places = torch.where(found, found_at, oldest_first[turn])
    # With no new row, the last new place is arbitrary and ignored.
    return places, oldest_first[turn[-1:]], turn[-1:] + 1
