"""SupConLoss: the supervised contrastive loss of a batch, a few rows of its scores at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from friction_kernels.choices import check_choice
from friction_kernels.graph import checks
from friction_kernels.graph.torch_modes import refuse_recomputation
from friction_kernels.losses.distributed import gather_rows, is_distributed
from friction_kernels.losses.document_ids import NO_ID, int64_ids
from friction_kernels.losses.embeddings import check_temperature, number_of, unit_length
from friction_kernels.losses.memory import GraphMemory
from friction_kernels.losses.row_softmax import (
    REDUCTIONS,
    Reduction,
    RowSoftmaxStats,
    row_softmax_loss,
)
from friction_kernels.scores.targets import SameLabel


class SupConLoss(nn.Module):
    """Supervised contrastive loss: each row against all rows of its label, in a softmax over all others.

    Equals, with z the embeddings scaled to unit length:

        scores = (z @ z.T / temperature).fill_diagonal_(-inf)
        positive = (labels[:, None] == labels).fill_diagonal_(False)
        log_p = scores.log_softmax(1).fill_diagonal_(0)
        of_row = -(positive * log_p).sum(1) / positive.sum(1)
        loss = of_row[positive.any(1)].mean()

    Call: loss = loss_fn(embeddings, labels, mask=None, ids=None), see `forward`. Scores are never stored as a
    whole, and the gradient is made with the loss; see `row_softmax_loss`.

    Source: Khosla et al., arXiv 2004.11362, the form with the sum outside the logarithm, L_out. A memory of
    past batches as further columns is that of arXiv 1912.06798. Ours: that rows without positives leave the
    mean, as in pytorch-metric-learning, and gather.

    Args:
        temperature: by which cosines are divided, above 0: a float, or a one-element tensor (a Parameter is
            registered in this module, and gradients flow to it) (default 0.1).
        normalize: scale rows to unit length; False takes embeddings as they are (default True).
        reduction: "mean" over the rows that have positives, "sum", or "none" for (N,) losses, 0 at rows
            without (default "mean").
        ignore_index: rows with this label take no part, and may hold anything (default -100).
        memory: a `GraphMemory`, whose rows are further columns without a gradient. It stores each batch in
            training mode if gradients are enabled (default None).
        gather: take the rows of all ranks (torch.distributed). Every rank computes the same loss, and its
            own rows get exactly the gradient that they would get in a single process with all rows.
            DistributedDataParallel then averages what a single process would sum: multiply the loss by the
            world size to get the same step. (A trained temperature gets its whole gradient on every rank.)
            Has no effect without torch.distributed (default False).

    Attributes:
        without_positives: scalar tensor, the number of the last call's rows that have no positive; None
            before the first call. Reading it may wait for a GPU.

    Against pytorch-metric-learning's SupConLoss: the same loss and gradients, except that it returns 0 for a
    batch without negatives, and drops rows whose loss is exactly 0 from its mean.

    Raises:
        ValueError, TypeError: an argument out of range, from the constructor; from the call, invalid
            embeddings, labels, mask or ids.
        RuntimeError: from backward(), a second time, a second derivative, or where it recomputes a call
            that added to the memory (torch.utils.checkpoint).
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.1,
        normalize: bool = True,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        memory: GraphMemory | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("reduction", reduction, REDUCTIONS)
        checks.check_ignore_index(ignore_index)
        if memory is not None and not isinstance(memory, GraphMemory):
            raise TypeError(f"memory must be a GraphMemory, got {type(memory).__name__}")
        if memory is not None and not normalize:
            raise ValueError("a memory's rows have unit length, so it needs normalize=True")
        self.temperature, self.normalize, self.reduction = temperature, normalize, reduction
        self.ignore_index, self.memory, self.gather = ignore_index, memory, gather
        self.without_positives: Tensor | None = None

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(
            self,
            embeddings: Tensor,
            labels: Tensor,
            mask: Tensor | None = None,
            ids: Tensor | None = None,
        ) -> Tensor: ...

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        mask: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, differentiable in embeddings and in a temperature that is a tensor.

        Args:
            embeddings: (N, d), float16, bfloat16, float32 or float64.
            labels: (N,), integers of any type: classes, or documents, of which rows are views.
            mask: bool (N, N), which rows meet: a column that is False is neither positive nor in the row's
                softmax, such as a false negative. Not for rows of several ranks (default None).
            ids: (N,), integers that identify documents for the memory: a document does not meet its own
                older row, which is replaced (default None).

        Returns:
            (), or with reduction "none" (N,), of all ranks' rows with gather; float32, or float64 if
            embeddings are. Without any positives it is 0, and its gradient is, too.

        Raises:
            ValueError, TypeError: invalid embeddings, labels, mask or ids.
        """
        checks.check_batch(embeddings, labels, None, ids)
        if self.memory is not None:
            self.memory.check_rows(embeddings)
        check_mask(mask, len(embeddings), self.gather and is_distributed())
        if self._remembers():
            refuse_recomputation("SupConLoss", "this call would add to its memory")
        labels = checks.int64_labels(labels)
        known = labels != self.ignore_index
        embeddings = embeddings.where(known[:, None], 1)  # others take no part, whatever they are
        z = unit_length("embeddings", embeddings) if self.normalize else embeddings
        ids = None if ids is None else int64_ids(ids)
        if self.memory is not None and ids is not None and bool((ids == NO_ID).any()):
            checks.raise_for_ids(ids == NO_ID)
        if self.gather:
            z, labels, ids = gather_rows(z, labels, ids)
        columns, of_columns, mask = self._columns(z, labels, mask, ids)
        found = row_softmax_loss(
            z,
            columns,
            SameLabel(labels, of_columns, exclude_self=True),
            scale=1 / self.temperature,
            mask=mask,
            reduction=self.reduction,
            statistics="without entropy",
        )
        assert isinstance(found, RowSoftmaxStats)
        self.without_positives = (~found.counted & (labels != self.ignore_index)).sum()
        if self.memory is not None and self._remembers():
            known = labels != self.ignore_index
            rows = z.detach()[known].float(), labels[known], None if ids is None else ids[known]
            self.memory.put(*(rows if self.gather else gather_rows(*rows)))
        return found.loss

    def _remembers(self) -> bool:
        """Whether a call would change the memory."""
        return self.memory is not None and self.training and torch.is_grad_enabled()

    def _columns(
        self, z: Tensor, labels: Tensor, mask: Tensor | None, ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch's rows and the memory's, their labels, and which take part: (M,), (N, M), or all."""
        present, num_new = labels != self.ignore_index, len(labels)
        if self.memory is not None:
            z, labels, _, past = self.memory.join(z, labels, None, ids, self.ignore_index)
            if past is not None:
                present = torch.cat((present, ~past.absent[num_new:]))
        if mask is None:
            all_do = present.device.type == "cpu" and bool(present.all())
            return z, labels, None if all_do else present
        further = present[num_new:].expand(num_new, -1)
        return z, labels, torch.cat((mask & present[:num_new], further), 1)

    def extra_repr(self) -> str:
        return f"temperature={number_of(self.temperature):g}, normalize={self.normalize}"


def check_mask(mask: Tensor | None, count: int, of_ranks: bool) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, True where two rows meet, got {got}")
    if mask.shape != (count, count):
        raise ValueError(f"mask must have shape ({count}, {count}), got {tuple(mask.shape)}")
    if of_ranks:
        raise ValueError("mask is of one rank's rows, and gather takes those of all; leave one out")
