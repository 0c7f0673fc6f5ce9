"""What the kernels of row softmax losses are told of a target."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from friction_kernels.scores.row_softmax import Problem
from friction_kernels.scores.targets import (
    Distilled,
    Index,
    SameLabel,
    Scores,
    TopK,
    entropy_of_smoothed,
)
from friction_triton.row_form import Form


class Comparison(NamedTuple):
    """A target's tensors and numbers; the loss is a weighted sum of that of labels and that of a teacher."""

    labels: Tensor | None = None  # (N,)
    labels_of_columns: Tensor | None = None  # (M,)
    stored: TopK | None = None
    hard_weight: float = 1.0
    soft_weight: float = 1.0  # of the derivative by scores
    temperature: float = 1.0  # that scores are divided by before a teacher's
    smoothing: float = 0.0
    constant: float = 0.0  # that the loss of a label is higher by

    def of(self, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        return None if self.labels is None else self.labels[rows], self.labels_of_columns


def comparison_of(problem: Problem, num_columns: int) -> Comparison:
    target, smoothing = problem.target, float(problem.options.label_smoothing)
    if isinstance(target, Distilled):
        return Comparison(
            labels=integers(target.labels),
            stored=target.soft if isinstance(target.soft, TopK) else None,
            hard_weight=1.0 - target.alpha,
            soft_weight=float(target.alpha * target.temperature),
            temperature=float(target.temperature),
        )
    if isinstance(target, Index):
        with_entropy = problem.options.kind == "kl" and smoothing > 0
        constant = -entropy_of_smoothed(smoothing, num_columns) if with_entropy else 0.0
        return Comparison(integers(target.labels), smoothing=smoothing, constant=constant)
    if isinstance(target, SameLabel):
        of_rows = integers(target.rows_of)
        return Comparison(
            of_rows, of_rows if target.columns_of is None else integers(target.columns_of)
        )
    return Comparison(stored=target if isinstance(target, TopK) else None)


def integers(labels: Tensor) -> Tensor:
    return labels.to(torch.int64).contiguous()


def form_of(problem: Problem) -> Form:
    target, options, mask = problem.target, problem.options, problem.mask
    soft = target.soft if isinstance(target, Distilled) else target
    hard = {Index: "index", Distilled: "index", SameLabel: "labels"}.get(type(target), "none")
    return Form(
        hard=hard,
        soft=options.kind if isinstance(soft, Scores | TopK) else "none",
        rest=soft.rest if isinstance(soft, TopK) else "scores",
        tempered=isinstance(target, Distilled),
        smoothed=options.label_smoothing > 0,
        entropy=options.entropy,
        kl=options.kind == "kl",
        mask="stored" if isinstance(mask, Tensor) else mask or "none",
        excludes_diagonal=target.excludes_diagonal,
    )
