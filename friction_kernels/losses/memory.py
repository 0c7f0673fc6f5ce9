"""GraphMemory: past embeddings and labels that join the graph of each new batch."""

from __future__ import annotations

import torch
from torch import Tensor

from friction_kernels.graph import checks
from friction_kernels.graph.dense import normalize
from friction_kernels.graph.nodes import Nodes
from friction_kernels.losses.distributed import gather_rows


class GraphMemory(torch.nn.Module):
    """A ring of the last `capacity` labelled embeddings, for `GLoss(memory=...)`.

    Its rows are labelled, detached nodes of each graph, so that a batch of 32 sees a graph of 8,192. In
    training mode GLoss adds every batch after its loss was computed; call `add` yourself otherwise.

    Rows are kept at length one in float32; buffers move with `.to()` and are part of `state_dict()`.
    Under torch.distributed each rank's new rows are gathered in rank order, so that all ranks' memories
    stay identical; every rank then must call `add` equally often, if need be with no rows.

    Source: this library; G-Loss (arXiv 2604.25853) builds its graph from the batch alone.

    Args:
        capacity: rows kept, at least 1; the oldest are overwritten.
        dim: d of the embeddings, at least 1.

    Raises:
        ValueError, TypeError: capacity or dim is no integer of at least 1; from `add` and from GLoss,
            embeddings of another width, on another device, or with NaN, infinite or zero length.
    """

    embeddings: Tensor
    labels: Tensor

    def __init__(self, capacity: int, dim: int) -> None:
        super().__init__()
        checks.check_integer("capacity", capacity, 1)
        checks.check_integer("dim", dim, 1)
        self.register_buffer("embeddings", torch.zeros(capacity, dim))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64))
        self._filled = 0  # on the host, so that nothing waits for a device
        self._next = 0

    @property
    def capacity(self) -> int:
        """Rows kept at most."""
        return self.embeddings.shape[0]

    @property
    def dim(self) -> int:
        """d of the embeddings."""
        return self.embeddings.shape[1]

    def __len__(self) -> int:
        """Rows in use."""
        return self._filled

    def rows(self) -> tuple[Tensor, Tensor]:
        """(embeddings (len, dim), labels (len,)) in use, in no particular order."""
        return self.embeddings[: self._filled], self.labels[: self._filled]

    def add(self, embeddings: Tensor, labels: Tensor, ignore_index: int = -100) -> None:
        """Put in these rows, and those that the other ranks add.

        Args:
            embeddings: (n, dim), floating-point, of any length but zero.
            labels: (n,), integers.
            ignore_index: rows with this label are left out (default -100).

        Raises:
            ValueError, TypeError: rows that cannot stand in a graph, or not beside the memory's.
        """
        checks.check_batch(embeddings, labels, None)
        self.check_rows(embeddings)
        known = labels != ignore_index
        with torch.no_grad():
            rows = normalize(embeddings[known]).float()
        faulty = ~rows.isfinite().all(dim=1)
        if bool(faulty.any()):
            raise ValueError(
                f"embeddings have NaN, infinite or zero length in {checks.rows_at_fault(faulty)} of the "
                f"{len(rows)} labelled ones; leave these rows out"
            )
        self.put(*gather_rows(rows, labels[known].long()))

    def check_rows(self, embeddings: Tensor) -> None:
        """Raise where embeddings (n, d) cannot stand beside the memory's."""
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
        self, embeddings: Tensor, labels: Tensor, labelled: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A batch followed by the memory's rows, which are labelled.

        embeddings: (N, dim); labels: (N,); labelled: bool (N,) or None, which stays None.
        """
        if len(self) == 0:
            return embeddings, labels, labelled
        rows, their_labels = self.rows()
        compute = torch.promote_types(embeddings.dtype, torch.float32)
        embeddings = torch.cat((embeddings.to(compute), rows.to(compute)))
        labels = torch.cat((labels.long(), their_labels))
        if labelled is not None:
            labelled = torch.cat((labelled, labelled.new_ones(len(rows))))
        return embeddings, labels, labelled

    def remember(self, nodes: Nodes, num_new: int, *, gathered: bool) -> None:
        """Put in those of a graph's first `num_new` rows whose label is known, in the batch's order.

        gathered: whether the graph has the rows of all ranks.
        """
        num_known = nodes.num_labelled + nodes.num_scored
        num_remembered = len(nodes.z) - num_new
        place = torch.where(nodes.order < num_new, nodes.order, len(nodes.z))
        place[num_known:] = len(nodes.z)
        rows = place.argsort()[: num_known - num_remembered]
        z, labels = nodes.z.detach()[rows].to(self.embeddings.dtype), nodes.labels[rows]
        self.put(*((z, labels) if gathered else gather_rows(z, labels)))

    @torch.no_grad()
    def put(self, rows: Tensor, labels: Tensor) -> None:
        """Put in rows (n, dim) of length one and labels (n,), the same on all ranks."""
        rows, labels = rows[-self.capacity :], labels[-self.capacity :]
        places = torch.arange(self._next, self._next + len(rows), device=self.labels.device)
        places.remainder_(self.capacity)
        self.embeddings.index_copy_(0, places, rows.to(self.embeddings))
        self.labels.index_copy_(0, places, labels.to(self.labels))
        self._next = (self._next + len(rows)) % self.capacity
        self._filled = min(self._filled + len(rows), self.capacity)

    def clear(self) -> None:
        """Forget all rows."""
        self._filled = self._next = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"filled": self._filled, "next": self._next}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._filled, self._next = state["filled"], state["next"]

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}, dim={self.dim}"
