"""What the harmonic solver asks of an implementation: three passes over a similarity matrix.

With x_ij = (z_i . z_j) / sigma^2 for rows z_i of length one, and x_ii = -infinity (no node is its own
neighbour), the published transition matrix is a row softmax, and so are the two normalisers in it:

    log deg_i = LSE_j x_ij                          Q_ij = exp(x_ij - log deg_i)
    log u_i   = LSE_j (x_ij - log deg_j / 2)        P_ij = exp(x_ij - log deg_j / 2 - log u_i)
    log r_i   = LSE_j (x_ij - log u_j)              T_ij = exp(x_ij - log u_j - log r_i)

Every weight that is ever formed is one of these, at most 1; nothing under- or overflows at any sigma.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class Normalisers(NamedTuple):
    """The logarithms above, (N,) each."""

    log_degree: Tensor
    log_u: Tensor
    log_r: Tensor  # of the rows that propagation uses; elsewhere a number that keeps T_ij <= 1


class Cotangents(NamedTuple):
    """How the loss depends on each row's softmax: dL/dx_ij = M_ij,

    M_ij = T_ij (sum_k left_ik right_jk - of_transition_i) + P_ij of_log_u_i + Q_ij of_log_degree_i
    """

    left: Tensor  # (N, K)
    right: Tensor  # (N, K)
    of_transition: Tensor  # (N,)
    of_log_u: Tensor  # (N,), dL / d log u
    of_log_degree: Tensor  # (N,), dL / d log deg


class Similarity(Protocol):
    """Passes over the matrix x of one graph. `z` (N, d) has rows of length one.

    Made as `Backend(z, inverse_sigma_squared, precision)`, which it keeps as attributes:
    inverse_sigma_squared is () on z's device, precision "fp32", "tf32" or "bf16" (of z_i . z_j).

    Tensors are float32 (float64 where z is float64), on z's device. Rows and columns are given as
    ranges, because nodes are ordered: labelled ones first, so that U x U and U x L are blocks.
    """

    z: Tensor
    inverse_sigma_squared: Tensor
    precision: str

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        """LSE over j != i of (x_ij + column_bias_j) for i in rows, all by default: (N,) -> (len(rows),)."""

    def apply(
        self, rows: range, columns: range, row_bias: Tensor, column_bias: Tensor, values: Tensor
    ) -> Tensor:
        """sum over j != i of exp(x_ij + row_bias_i + column_bias_j) values_j, for i in rows, j in columns.

        row_bias (len(rows),), column_bias (len(columns),), values (len(columns), K) -> (len(rows), K).
        Biases are such that no weight exceeds 1 by more than rounding.
        """

    def gradient(self, normalisers: Normalisers, cotangents: Cotangents) -> Tensor:
        """dL/dz_i = sum over j != i of (M_ij + M_ji) z_j / sigma^2: (N, d).

        The gradient with respect to 1 / sigma^2 follows without a pass: sum_i z_i . dL/dz_i sigma^2 / 2.
        """
