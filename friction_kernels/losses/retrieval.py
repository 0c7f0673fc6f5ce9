"""RetrievalLoss: which document answers a query, and a mixture of documents that a generator can train."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from friction_kernels.choices import check_choice
from friction_kernels.graph import checks
from friction_kernels.losses.embeddings import (
    check_matrix,
    check_temperature,
    number_of,
    unit_length,
)
from friction_kernels.losses.row_softmax import REDUCTIONS, Reduction, row_softmax_loss
from friction_kernels.scores.targets import Index


class RetrievalLoss(nn.Module):
    """The retriever's part of a retrieval-augmented generator's loss, and the context that it generates from.

    Equals, for queries (N, d) and documents (M, d):

        scores = queries @ documents.T / temperature
        context = scores.softmax(1) @ documents  # mix
        loss = cross_entropy(scores, positives)  # the call

    Call: loss = loss_fn(queries, documents, positives), see `forward`; context = loss_fn.mix(queries,
    documents). A generator that reads `context` trains the retriever by its own loss, to which this one is
    added: loss_of_generator + weight * loss.

    Source: He et al., arXiv 2504.19436, read second-hand: the mixture c = sum_j softmax(q.d)_j d_j, and the
    sum of a generator's and a contrastive retrieval loss. Ours: the contrastive term as the cross-entropy
    over all documents of the call, the temperature, normalize, and that its scores are not stored.

    Args:
        temperature: by which scores are divided, above 0: a float, or a one-element tensor (a Parameter is
            registered in this module, and gradients flow to it) (default 1.0).
        normalize: scores of rows of unit length; the mixture is of the documents as they are
            (default False).
        reduction: "mean" over the queries that have a positive, "sum", or "none" for (N,) losses
            (default "mean").
        ignore_index: the positive of queries that have none (default -100).

    Raises:
        ValueError, TypeError: an argument out of range, from the constructor; from the calls, shapes, types
            or devices that do not fit together, or a positive that is none of the documents.
        RuntimeError: from backward(), a second time, or a second derivative.
    """

    def __init__(
        self,
        temperature: float | Tensor = 1.0,
        normalize: bool = False,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("reduction", reduction, REDUCTIONS)
        checks.check_ignore_index(ignore_index)
        self.temperature, self.normalize = temperature, normalize
        self.reduction, self.ignore_index = reduction, ignore_index

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(self, queries: Tensor, documents: Tensor, positives: Tensor) -> Tensor: ...

    def forward(self, queries: Tensor, documents: Tensor, positives: Tensor) -> Tensor:
        """The contrastive term, differentiable in queries, documents and a temperature that is a tensor.

        Args:
            queries: (N, d), float16, bfloat16, float32 or float64.
            documents: (M, d), of which every query meets all.
            positives: (N,), integers: the number of the document that answers, or ignore_index.

        Returns:
            (), or (N,) for reduction "none"; float32, or float64 if queries or documents are.
        """
        check_matrix("queries", queries)
        check_matrix("documents", documents, queries)
        x, w = self._scored(queries, documents)
        loss = row_softmax_loss(
            x,
            w,
            Index(positives),
            scale=1 / self.temperature,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )
        assert isinstance(loss, Tensor)
        return loss

    def mix(self, queries: Tensor, documents: Tensor) -> Tensor:
        """The mixture of documents for each query, differentiable, by torch's attention.

        Args:
            queries: (N, d).
            documents: (M, d) for all queries, or (N, K, d), those that were retrieved for each.

        Returns:
            (N, d).
        """
        check_matrix("queries", queries)
        shared = documents.dim() == 2
        if not shared and (documents.dim() != 3 or len(documents) != len(queries)):
            raise ValueError(
                f"documents must have shape (M, d), or ({len(queries)}, K, d), some for each query, got "
                f"{tuple(documents.shape)}"
            )
        check_matrix("documents", documents.flatten(0, -2), queries)
        x, w = self._scored(queries, documents)
        # The temperature multiplies queries, for attention takes no tensor as its scale.
        x, w = (x / self.temperature).to(documents.dtype), w.to(documents.dtype)
        if shared:
            return scaled_dot_product_attention(x[None], w[None], documents[None], scale=1.0)[0]
        return scaled_dot_product_attention(x[:, None], w, documents, scale=1.0)[:, 0]

    def _scored(self, queries: Tensor, documents: Tensor) -> tuple[Tensor, Tensor]:
        if not self.normalize:
            return queries, documents
        rows = unit_length("documents", documents.flatten(0, -2))
        return unit_length("queries", queries), rows.view(documents.shape)

    def extra_repr(self) -> str:
        return f"temperature={number_of(self.temperature):g}, normalize={self.normalize}"
