"""What a score matrix offers: three passes over x_ij = scale * (q_i . k_j), computed tile by tile.

A row softmax of scores, whatever it is weighed against, takes these passes alone: `logsumexp` gives its
normalisers, `apply` its products with values, and `gradient` what a loss of them sends back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Term(NamedTuple):
    """A part of dL/dx_ij: exp(x_ij + row_bias_i + column_bias_j) (row_factor_i + left_i . right_j).

    The exponential is a softmax's weight, at most 1 but for rounding. Of several terms, the first alone may
    have left and right.
    """

    row_bias: Tensor  # (N,)
    column_bias: Tensor  # (M,)
    row_factor: Tensor  # (N,)
    left: Tensor | None = None  # (N, K)
    right: Tensor | None = None  # (M, K)


class Scores(Protocol):
    """The scores of queries (N, d) and keys (M, d).

    Made as `Backend(queries, keys, scale, precision, mask_diagonal=...)`. keys None takes the queries: x is
    then symmetric, which passes make use of. scale: () on the queries' device; precision: "fp32", "tf32" or
    "bf16", of q_i . k_j alone; mask_diagonal: whether x_ii = -infinity, so that no row sees itself.

    Tensors are float32 (float64 where queries are), on the queries' device. Rows and columns are given as
    ranges. No sum is taken in an order that depends on anything but shapes: the same inputs, the same bits.
    """

    queries: Tensor
    keys: Tensor
    scale: Tensor
    precision: str
    mask_diagonal: bool

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        """LSE_j (x_ij + column_bias_j) for i in rows, all by default: (M,) -> (len(rows),)."""

    def apply(
        self, rows: range, columns: range, row_bias: Tensor, column_bias: Tensor, values: Tensor
    ) -> Tensor:
        """sum_j exp(x_ij + row_bias_i + column_bias_j) values_j, for i in rows, j in columns.

        row_bias (len(rows),), column_bias (len(columns),), values (len(columns), K) -> (len(rows), K).
        Biases are such that no weight exceeds 1 by more than rounding.
        """

    def gradient(self, terms: Sequence[Term]) -> tuple[Tensor, Tensor | None]:
        """dL/dqueries (N, d) and dL/dkeys (M, d), where dL/dx is the sum of the terms.

        Where the keys are the queries, the first has both, and the second is None. The gradient with
        respect to the scale needs no pass: sum_i q_i . dL/dq_i / scale, of half of dL/dq where it has both.
        """
