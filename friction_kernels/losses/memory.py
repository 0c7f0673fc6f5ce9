"""GraphMemory: past embeddings and labels that join the graph of each new batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from friction_kernels.graph import checks
from friction_kernels.graph.nodes import Nodes, Past
from friction_kernels.graph.torch_modes import refuse_transforms
from friction_kernels.graph.unit_rows import unit_rows
from friction_kernels.losses import notices
from friction_kernels.losses.distributed import gather_rows
from friction_kernels.losses.document_ids import (
    NO_ID,
    find,
    int64_ids,
    last_copies,
    places_for,
    places_taken,
)
from friction_kernels.losses.memory_state import RING, faults_of
from friction_kernels.warn import warn


class Joined(NamedTuple):
    """A batch followed by rows of a memory."""

    embeddings: Tensor
    labels: Tensor
    labelled: Tensor | None
    past: Past | None  # None if nothing was added


class GraphMemory(torch.nn.Module):
    """A ring of the last `capacity` labelled embeddings, for `GLoss(memory=...)`.

    Its rows are labelled, detached nodes of each graph, so that a batch of 32 can see a graph of 8,192. In
    training mode with gradients enabled, GLoss adds every batch after computing its loss; otherwise call
    `add` yourself.

    A row with an id represents a document. When the document comes again, its row is left out of that graph,
    because it would reveal the hidden label, and the document's new embedding replaces the row. New
    documents replace the oldest rows, by order of first arrival. Rows without ids are never recognised.

    Rows are stored with unit length in float32, whatever dtype the module is cast to; buffers move with
    `.to()` and are part of `state_dict()`. Under torch.distributed each rank's new rows are gathered in rank
    order, so all ranks' memories stay identical. Every rank must then call `add` equally often, with no rows
    if need be, and with ids on all ranks or on none.

    Source: this library; G-Loss (arXiv 2604.25853) builds its graph from the batch alone.

    Args:
        capacity: rows kept, at least 1; the oldest are overwritten.
        dim: d of the embeddings, at least 1.

    Raises:
        ValueError, TypeError: capacity or dim is not an integer of at least 1; from `add` and from GLoss,
            embeddings of another width, on another device, or with NaN, infinite or zero length.
        RuntimeError: from `load_state_dict`, a state of another capacity or dim, or an incomplete or broken
            one; nothing is changed. A state saved before ids were stored loads with a warning.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    _ring: Tensor

    def __init__(self, capacity: int, dim: int) -> None:
        super().__init__()
        checks.check_integer("capacity", capacity, 1)
        checks.check_integer("dim", dim, 1)
        self.register_buffer("embeddings", torch.zeros(capacity, dim, dtype=torch.float32))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64))
        self.register_buffer("ids", torch.full((capacity,), NO_ID, dtype=torch.int64))
        # Rows in use and the next place. Kept on the device so that GLoss need not wait for them.
        self.register_buffer("_ring", torch.zeros(2, dtype=torch.int64), persistent=False)
        self._filled_at_most = 0
        self._warned_of_ids = False

    @property
    def capacity(self) -> int:
        """Maximum number of rows."""
        return self.embeddings.shape[0]

    @property
    def dim(self) -> int:
        """d of the embeddings."""
        return self.embeddings.shape[1]

    def __len__(self) -> int:
        """Number of rows in use. On a GPU the host waits for it."""
        return int(self._ring[0])

    def rows(self) -> tuple[Tensor, Tensor]:
        """(embeddings (len, dim), labels (len,)) of the rows in use, in no particular order."""
        filled = len(self)
        return self.embeddings[:filled], self.labels[:filled]

    def add(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ignore_index: int = -100,
        ids: Tensor | None = None,
    ) -> None:
        """Add these rows, and those that the other ranks add.

        Args:
            embeddings: (n, dim), floating-point, of any nonzero length.
            labels: (n,), integers of any type.
            ignore_index: rows with this label are left out (default -100).
            ids: (n,), integers between -2^63 and 2^63 that identify documents. A row replaces the memory's
                row with the same id; of several rows with one id, the last is stored. None: rows are not
                recognised when their document comes again, which warns once
                (default None).

        Raises:
            ValueError, TypeError: rows that are invalid in a graph, or do not match the memory's.
            RuntimeError: a transform of torch.func.
        """
        checks.check_ignore_index(ignore_index)
        checks.check_batch(embeddings, labels, None, ids)
        refuse_transforms("GraphMemory.add", embeddings)
        self.check_rows(embeddings)
        labels = checks.int64_labels(labels)
        ids = None if ids is None else int64_ids(ids)
        if ids is not None and bool((ids == NO_ID).any()):
            checks.raise_for_ids(ids == NO_ID)
        known = labels != ignore_index
        with torch.no_grad():
            rows, usable = unit_rows(embeddings[known])
        if not bool(usable.all()):
            raise ValueError(
                f"embeddings have NaN, infinite or zero length in {checks.rows_at_fault(~usable)} of "
                f"the {len(rows)} labelled ones; leave these rows out"
            )
        if ids is None and len(rows) and not self._warned_of_ids:
            self._warned_of_ids = True
            notices.warn_of_rows_without_ids()
        self.put(*gather_rows(rows.float(), labels[known], None if ids is None else ids[known]))

    def check_rows(self, embeddings: Tensor) -> None:
        """Raise if embeddings (n, d) do not match the memory's width or device."""
        if embeddings.shape[1] != self.dim:
            raise ValueError(
                f"embeddings have {embeddings.shape[1]} columns and the memory has dim={self.dim}; "
                "make the memory with the model's width"
            )
        if embeddings.device != self.embeddings.device:
            raise ValueError(
                f"the memory is on {self.embeddings.device} and embeddings on {embeddings.device}; "
                "move it with .to()"
            )

    def join(
        self,
        embeddings: Tensor,
        labels: Tensor,
        labelled: Tensor | None,
        ids: Tensor | None,
        ignore_index: int,
    ) -> Joined:
        """Return a batch followed by the memory's rows, which are labelled where they are nodes.

        embeddings: (N, dim); labels: (N,) int64; labelled: bool (N,) or None, which stays None; ids: (N,)
        int64 or None. Rows of documents in the batch are left out. The host does not wait for the device.
        """
        count = self._filled_at_most
        if count == 0:
            return Joined(embeddings, labels, labelled, None)
        present = torch.arange(count, device=self.ids.device) < self._ring[0]
        present &= self.labels[:count] != ignore_index
        if ids is not None:
            present &= ~places_taken(*find(ids, self.ids), self.capacity)[:count]
        compute = torch.promote_types(embeddings.dtype, torch.float32)
        # cat copies the rows, so that backward() still finds them after they are overwritten.
        joined = torch.cat((embeddings.to(compute), self.embeddings[:count].to(compute)))
        nobody = present.new_zeros(len(labels))
        past = Past(torch.cat((nobody, present)), torch.cat((nobody, ~present)))
        if labelled is not None:
            labelled = torch.cat((labelled, present))
        return Joined(joined, torch.cat((labels, self.labels[:count])), labelled, past)

    def remember(self, nodes: Nodes, num_new: int, ids: Tensor | None, *, gathered: bool) -> None:
        """Add those of a graph's first `num_new` rows whose label is known, in the batch's order.

        ids: (num_new,) int64 or None; gathered: whether the graph already has the rows of all ranks.
        """
        num_known = nodes.num_known
        place = nodes.order.where(nodes.order < num_new, num_new)
        place[num_known:] = num_new
        rows = place.argsort()[: num_known - nodes.num_remembered]
        z, labels = nodes.z.detach()[rows].float(), nodes.labels[rows]
        of_rows = None if ids is None else ids[nodes.order[rows]]
        self.put(*((z, labels, of_rows) if gathered else gather_rows(z, labels, of_rows)))

    @torch.no_grad()
    def put(self, rows: Tensor, labels: Tensor, ids: Tensor | None) -> None:
        """Add rows (n, dim) of unit length, labels (n,) and ids (n,) int64, the same on all ranks."""
        rows, labels = rows[-self.capacity :], labels[-self.capacity :]
        if len(rows) == 0:
            return
        if ids is None:
            places = (self._ring[1] + torch.arange(len(rows), device=rows.device)) % self.capacity
            ids = torch.full_like(labels, NO_ID)
            self._advance(places[-1:], self._ring.new_full((1,), len(rows)))
        else:
            ids = ids[-self.capacity :]
            last = last_copies(ids)
            places, last_new, num_new = places_for(ids, last, self.ids, self._ring[1])
            self._advance(last_new, num_new)
            # Copies of a document are all written as the last copy, to the same place.
            places, rows, labels = places[last], rows[last], labels[last]
        self.embeddings.index_copy_(0, places, rows)
        self.labels.index_copy_(0, places, labels)
        self.ids.index_copy_(0, places, ids)
        self._filled_at_most = min(self._filled_at_most + len(rows), self.capacity)
        if self._ring.device.type == "cpu":
            self._filled_at_most = int(self._ring[0])

    def _advance(self, last_place: Tensor, num_new: Tensor) -> None:
        """Advance the ring by num_new (1,) rows, the last of which went to last_place (1,)."""
        filled, following = self._ring.split(1)
        following.copy_(torch.where(num_new > 0, (last_place + 1) % self.capacity, following))
        filled.copy_((filled + num_new).clamp_max(self.capacity))

    def clear(self) -> None:
        """Remove all rows."""
        self.ids.fill_(NO_ID)
        self._ring.zero_()
        self._filled_at_most = 0

    def get_extra_state(self) -> dict[str, int]:
        filled, following = (0, 0) if self._ring.is_meta else self._ring.tolist()
        return {"filled": filled, "next": following}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if self._ring.device != self.ids.device:  # assign=True has moved the rows only
            self._ring = torch.empty_like(self._ring, device=self.ids.device)
        self._ring.copy_(torch.tensor([state["filled"], state["next"]]))
        self._filled_at_most = state["filled"]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load everything or nothing: a partial ring would be a different memory."""
        buffers = {"embeddings": self.embeddings, "labels": self.labels, "ids": self.ids}
        state = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        missing = {"embeddings", "labels", RING} - state.keys()
        unexpected = state.keys() - buffers.keys() - {RING} if strict else set()
        faults = [] if missing else faults_of(state, buffers, prefix)
        missing_keys += sorted(prefix + name for name in missing)
        unexpected_keys += sorted(prefix + name for name in unexpected)
        error_msgs += faults
        if missing or unexpected or faults:
            return
        if "ids" not in state:
            state["ids"] = torch.full_like(state["labels"], NO_ID, dtype=torch.int64)
            if filled := state[RING]["filled"]:
                warn(
                    f"the memory's state is of before ids were kept: its {filled} rows are not recognised "
                    "when their documents come again, and give their hidden labels away until they are "
                    "overwritten; clear() forgets them"
                )
        for name, buffer in buffers.items():
            state[name] = state[name].to(buffer.dtype)  # assign=True would not cast
        state = {prefix + name: value for name, value in state.items()}
        super()._load_from_state_dict(
            state, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> GraphMemory:
        """Move buffers as fn does, but keep their dtypes and the values that to_empty() would lose."""
        before = {name: getattr(self, name) for name in self._buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved is not buffer and (moved.is_meta or not buffer.is_meta):
                setattr(self, name, buffer.to(moved.device))
        if before["_ring"].is_meta:
            self.clear()
        return self

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}, dim={self.dim}"
