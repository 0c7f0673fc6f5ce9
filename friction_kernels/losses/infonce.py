"""InfoNCELoss: queries against their keys and those of the others, a few rows of scores at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from friction_kernels.choices import check_choice
from friction_kernels.losses.distributed import gather_rows
from friction_kernels.losses.embeddings import (
    check_matrix,
    check_temperature,
    number_of,
    unit_length,
)
from friction_kernels.losses.row_softmax import REDUCTIONS, Reduction, row_softmax_loss
from friction_kernels.scores.targets import Index


class InfoNCELoss(nn.Module):
    """Contrastive loss with one positive a row: query i belongs to key i, and to no other key or negative.

    Equals, with rows q, k and n scaled to unit length:

        scores = q @ torch.cat((k, n)).T / temperature
        loss = cross_entropy(scores, torch.arange(N))
        symmetric = (loss + cross_entropy(k @ q.T / temperature, torch.arange(N))) / 2

    Call: loss = loss_fn(queries, keys, negatives=None, scale=None), see `forward`. Scores are never stored as
    a whole, and the gradient is made with the loss; see `row_softmax_loss`.

    Source: van den Oord et al., arXiv 1807.03748; in-batch negatives, Henderson et al., arXiv 1705.00652; the
    symmetric form, Radford et al. (CLIP), arXiv 2103.00020. Ours: gather.

    Args:
        temperature: by which cosines are divided, above 0: a float, or a one-element tensor (a Parameter is
            registered in this module, and gradients flow to it) (default 0.05).
        symmetric: the mean of both directions; keys meet queries alone, without negatives (default False).
        normalize: scale rows to unit length; False takes them as they are (default True).
        reduction: "mean", "sum", or "none" for (N,) losses (default "mean").
        gather: take the rows of all ranks (torch.distributed), as in `SupConLoss`; negatives on all ranks or
            on none (default False).

    Raises:
        ValueError, TypeError: an argument out of range, from the constructor; from the call, invalid
            queries, keys or negatives.
        RuntimeError: from backward(), a second time, or a second derivative.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.05,
        symmetric: bool = False,
        normalize: bool = True,
        reduction: Reduction = "mean",
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_temperature(temperature)
        check_choice("reduction", reduction, REDUCTIONS)
        self.temperature, self.symmetric, self.normalize = temperature, symmetric, normalize
        self.reduction, self.gather = reduction, gather

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(
            self,
            queries: Tensor,
            keys: Tensor,
            negatives: Tensor | None = None,
            scale: Tensor | None = None,
        ) -> Tensor: ...

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        negatives: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch of pairs, differentiable in all its arguments.

        Args:
            queries: (N, d), float16, bfloat16, float32 or float64.
            keys: (N, d), of which row i is the positive of query i.
            negatives: (K, d) hard negatives, which every query meets (default None).
            scale: a one-element tensor in the place of 1 / temperature, such as CLIP's logit_scale.exp()
                (default None).

        Returns:
            (), or with reduction "none" (N,), of all ranks' rows with gather; float32, or float64 if queries
            or keys are.

        Raises:
            ValueError, TypeError: shapes, types or devices that do not fit together.
        """
        check_matrix("queries", queries)
        check_matrix("keys", keys, queries)
        if len(keys) != len(queries):
            raise ValueError(
                f"keys must be {len(queries)}, one for each query, got {len(keys)}; pass hard negatives "
                "as negatives"
            )
        if negatives is not None:
            check_matrix("negatives", negatives, queries)
        if self.normalize:
            queries, keys = unit_length("queries", queries), unit_length("keys", keys)
            negatives = None if negatives is None else unit_length("negatives", negatives)
        if self.gather:
            queries, keys, _ = gather_rows(queries, keys, None)
            negatives = None if negatives is None else gather_rows(negatives)[0]
        candidates = keys if negatives is None else torch.cat((keys, negatives))
        loss = self._one_way(queries, candidates, scale)
        return (loss + self._one_way(keys, queries, scale)) / 2 if self.symmetric else loss

    def _one_way(self, x: Tensor, w: Tensor, scale: Tensor | None) -> Tensor:
        loss = row_softmax_loss(
            x,
            w,
            Index(torch.arange(len(x), device=x.device)),
            scale=1 / self.temperature if scale is None else scale,
            reduction=self.reduction,
        )
        assert isinstance(loss, Tensor)
        return loss

    def extra_repr(self) -> str:
        return f"temperature={number_of(self.temperature):g}, symmetric={self.symmetric}"
