"""Distillation of outputs over a vocabulary: neither model's logits are stored."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from friction_kernels.choices import check_choice
from friction_kernels.graph.checks import check_ignore_index
from friction_kernels.losses.row_softmax import REDUCTIONS, Reduction, row_softmax_loss
from friction_kernels.losses.tokens import labels_of_rows, rows_of, rows_of_head
from friction_kernels.scores.checks import check_beta, check_distillation
from friction_kernels.scores.targets import (
    KINDS,
    Distilled,
    Kind,
    Scores,
    TopK,
)


class DistillationLoss(nn.Module):
    """Cross-entropy with labels and divergence from a teacher, in one pass over the student's vocabulary.

    Equals, at temperature T, with the logits z of the student and z_t of the teacher:

        p, q = (z / T).softmax(-1), (z_t / T).softmax(-1)
        # Means over the tokens that count:
        loss = (1 - alpha) * cross_entropy(z, labels) + alpha * T**2 * KL(q, p)

    Call: loss = loss_fn(hidden, weight, labels, teacher, bias=None), see `forward`. The teacher gets no
    gradient.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531; the mix of divergences: Agarwal et al.,
    arXiv 2306.13649. One pass for both terms is this library's choice.

    Args:
        alpha: the teacher's share of the loss, from 0 to 1 (default 0.5).
        temperature: T, above 0 (default 2.0).
        kind: "kl" is KL(q, p), "reverse_kl" KL(p, q), "jsd" their mix with m = beta * q + (1 - beta) * p:
            beta * KL(q, m) + (1 - beta) * KL(p, m). A stored top k has "kl" only (default "kl").
        beta: of "jsd", between 0 and 1 (default 0.5).
        ignore_index: the label of tokens that take no part, in neither term (default -100).
        reduction: "mean" over the tokens that count, "sum", or "none" for a loss of each token, 0 where it
            does not count (default "mean").
        shift: compare each hidden state with the label of the next position, as causal language models do
            whose labels are the input ids; the last of each sequence takes no part (default False).

    Raises:
        ValueError: an option is out of range, from the constructor; from the call, shapes or labels do not
            fit together, vocabularies differ, or logits are NaN.
        TypeError: a dtype is not float16, bfloat16, float32 or float64.
    """

    def __init__(
        self,
        alpha: float = 0.5,
        temperature: float = 2.0,
        kind: Kind = "kl",
        beta: float = 0.5,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
        shift: bool = False,
    ) -> None:
        super().__init__()
        check_distillation(alpha, temperature)
        check_choice("kind", kind, KINDS)
        if kind == "jsd":
            check_beta(beta)
        check_ignore_index(ignore_index)
        check_choice("reduction", reduction, REDUCTIONS)
        self.alpha = alpha
        self.temperature = temperature
        self.kind: Kind = kind
        self.beta = beta
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.shift = shift

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(
            self,
            hidden: Tensor,
            weight: Tensor,
            labels: Tensor,
            teacher: Scores | TopK,
            bias: Tensor | None = None,
        ) -> Tensor: ...

    def forward(
        self,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        teacher: Scores | TopK,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The loss, in float32, or in float64 if the hidden states or the weight are.

        Args:
            hidden: (..., d) the student's hidden states, with any leading dimensions.
            weight: (V, d) of the student's head.
            labels: (...) integers from 0 to V - 1, or ignore_index.
            teacher: Scores(hidden, weight, bias=...) with the teacher's hidden states (..., d_t) and its head
                (V, d_t), or TopK(ids, logprobs, rest), both (..., k), with logarithms of its probabilities at
                this temperature.
            bias: (V,) of the student's head (default None).
        """
        loss = row_softmax_loss(
            rows_of_head(hidden, weight, bias),
            weight,
            Distilled(
                labels_of_rows(hidden, labels, self.shift, self.ignore_index),
                rows_of_teacher(teacher),
                self.alpha,
                self.temperature,
            ),
            kind=self.kind,
            beta=self.beta,
            bias=bias,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
        )
        loss = cast(Tensor, loss)
        return loss.view(labels.shape) if self.reduction == "none" else loss

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, temperature={self.temperature}, kind={self.kind!r}"


def rows_of_teacher(teacher: Scores | TopK) -> Scores | TopK:
    if isinstance(teacher, Scores):
        return replace(teacher, x=rows_of("the teacher's hidden states", teacher.x))
    if not isinstance(teacher, TopK):
        raise TypeError(
            f"teacher must be Scores(hidden, weight) or TopK(ids, logprobs), got {type(teacher).__name__}; "
            "of logits: logprobs, ids = (logits / temperature).log_softmax(-1).topk(k)"
        )
    ids, logprobs = rows_of("ids", teacher.ids), rows_of("logprobs", teacher.logprobs)
    return replace(teacher, ids=ids, logprobs=logprobs)
