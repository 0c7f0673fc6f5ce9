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

    capacity: rows kept, at least 1; the oldest are overwritten.
    dim: d of the embeddings.

    Rows are kept at length one in float32; buffers move with `.to()` and are part of `state_dict()`.
    Under torch.distributed each rank's new rows are gathered in rank order, so that all ranks' memories
    stay identical; every rank then must call `add` equally often, if need be with no rows.
    Ours: arXiv 2604.25853 builds its graph from the batch alone.
    """

    def __init__(self, capacity: int, dim: int):
        super().__init__()
        checks.check_integer("capacity", capacity, 1)
        checks.check_integer("dim", dim, 1)
        self.register_buffer("embeddings", torch.zeros(capacity, dim))
        self.register_buffer("labels", torch.zeros(capacity, dtype=torch.int64))
        self._filled = 0  # on the host, so that nothing waits for a device
        self._next = 0

    @property
    def capacity(self) -> int:
        return self.embeddings.shape[0]

    @property
    def dim(self) -> int:
        return self.embeddings.shape[1]

    def __len__(self) -> int:
        """Rows in use."""
        return self._filled

    def rows(self) -> tuple[Tensor, Tensor]:
        """(embeddings (len, dim), labels (len,)) in use, in no particular order."""
        return self.embeddings[: self._filled], self.labels[: self._filled]

    def add(self, embeddings: Tensor, labels: Tensor, ignore_index: int = -100) -> None:
        """Put in these rows, and those that the other ranks add.

        embeddings (n, dim), of any length but zero; labels (n,), those with ignore_index are left out.
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
        """Raise where these embeddings cannot stand beside the memory's."""
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
        """A batch followed by the memory's rows, which are labelled."""
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
        self._filled = self._next = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"filled": self._filled, "next": self._next}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self._filled, self._next = state["filled"], state["next"]

    def extra_repr(self) -> str:
        return f"capacity={self.capacity}, dim={self.dim}"
