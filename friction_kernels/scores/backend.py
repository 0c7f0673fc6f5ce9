"""The interface of a score matrix: three passes over x_ij = scale * (q_i . k_j), computed tile by tile.

Any loss of a row softmax of scores needs only these passes: `logsumexp` computes its normalisers, `apply`
its products with values, and `gradient` the gradient of queries and keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Term(NamedTuple):
    """A part of dL/dx_ij: exp(x_ij + row_bias_i + column_bias_j) (row_factor_i + left_i . right_j).

    The exponential is a softmax's weight, at most 1 up to rounding. Of several terms, only the first may
    have left and right.
    """

    row_bias: Tensor  # (N,)
    column_bias: Tensor  # (M,)
    row_factor: Tensor  # (N,)
    left: Tensor | None = None  # (N, K)
    right: Tensor | None = None  # (M, K)


class Scores(Protocol):
    """The scores of queries (N, d) and keys (M, d).

    Created as `Backend(queries, keys, scale, precision, mask_diagonal=...)`. If keys is None, the queries are
    used and x is symmetric, which the passes exploit. scale: () on the queries' device; precision: "fp32",
    "tf32" or "bf16", of q_i . k_j alone; mask_diagonal: sets x_ii = -infinity, so no row sees itself.

    Tensors are float32 (float64 if queries are), on the queries' device. Rows and columns are given as
    ranges. The order of every sum depends on shapes alone: the same inputs give the same bits.
    """

    queries: Tensor
    keys: Tensor
    scale: Tensor
    precision: str
    mask_diagonal: bool

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        """LSE_j (x_ij + column_bias_j) for i in rows (default: all): (M,) -> (len(rows),)."""

    def apply(
        self,
        rows: range,
        columns: range,
        row_bias: Tensor,
        column_bias: Tensor,
        values: Tensor,
        *,
        binary: bool = False,
    ) -> Tensor:
        """sum_j exp(x_ij + row_bias_i + column_bias_j) values_j, for i in rows, j in columns.

        row_bias (len(rows),), column_bias (len(columns),), values (len(columns), K) -> (len(rows), K).
        The biases must be such that no weight exceeds 1 by more than rounding. binary: the values are zeros
        and ones, with which some backends multiply faster.
        """

    def gradient(self, terms: Sequence[Term]) -> tuple[Tensor, Tensor | None]:
        """dL/dqueries (N, d) and dL/dkeys (M, d), where dL/dx is the sum of the terms.

        If the keys are the queries, the first contains both gradients and the second is None. The gradient
        of the scale needs no pass: sum_i q_i . dL/dq_i / scale, halved if dL/dq contains both.
        """
