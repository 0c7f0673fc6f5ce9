"""Cross-entropy over a vocabulary, whose logits are never stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from friction_kernels.choices import check_choice
from friction_kernels.graph.checks import check_ignore_index
from friction_kernels.losses.row_softmax import (
    REDUCTIONS,
    Reduction,
    row_softmax_loss,
)
from friction_kernels.losses.tokens import labels_of_rows, rows_of_head
from friction_kernels.scores.checks import check_label_smoothing, check_softcap
from friction_kernels.scores.targets import Index


class LinearCrossEntropyLoss(nn.Module):
    """A linear layer and torch.nn.CrossEntropyLoss in one: logits exist for a few rows at a time.

    Equals, but that a mean over no labels is 0:

        logits = torch.nn.functional.linear(hidden, weight, bias)
        cross_entropy = torch.nn.CrossEntropyLoss(
            ignore_index=..., label_smoothing=..., reduction=...
        )
        loss = cross_entropy(logits.flatten(0, -2), labels.flatten())

    Call: loss = loss_fn(hidden, weight, labels, bias=None), see `forward`. Classes have no weights.

    Source: the equations are torch's. That logits need not be stored is shown by Cut Cross-Entropy,
    arXiv 2411.09009; how many rows exist at a time is this library's choice.

    Args:
        ignore_index: the label of tokens that do not count (default -100).
        label_smoothing: the share that is spread over the whole vocabulary, from 0 to below 1 (default 0.0).
        softcap: the bound c of capped logits, c * tanh(logits / c); None: no bound (default None).
        reduction: "mean" over the tokens that count, "sum", or "none" for a loss of each token, 0 where it
            does not count (default "mean").
        shift: compare each hidden state with the label of the next position, as causal language models do
            whose labels are the input ids; the last of each sequence does not count (default False).

    Raises:
        ValueError: an option is out of range, from the constructor; from the call, shapes or labels do not
            fit together, or logits are NaN.
        TypeError: a dtype is not float16, bfloat16, float32 or float64.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        softcap: float | None = None,
        reduction: Reduction = "mean",
        shift: bool = False,
    ) -> None:
        super().__init__()
        check_ignore_index(ignore_index)
        check_label_smoothing(label_smoothing)
        check_softcap(softcap)
        check_choice("reduction", reduction, REDUCTIONS)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.softcap = softcap
        self.reduction: Reduction = reduction
        self.shift = shift

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(
            self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None
        ) -> Tensor: ...

    def forward(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """The loss, in float32, or in float64 if the hidden states or the weight are.

        Args:
            hidden: (..., d) hidden states, with any leading dimensions.
            weight: (V, d) of the linear layer: `lm_head.weight`.
            labels: (...) integers from 0 to V - 1, or ignore_index.
            bias: (V,) of the linear layer (default None).
        """
        rows = rows_of_head(hidden, weight, bias)
        flat = labels_of_rows(hidden, labels, self.shift, self.ignore_index)
        loss = row_softmax_loss(
            rows,
            weight,
            Index(flat),
            bias=bias,
            softcap=self.softcap,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )
        loss = cast(Tensor, loss)
        return loss.view(labels.shape) if self.reduction == "none" else loss

    def extra_repr(self) -> str:
        return f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
