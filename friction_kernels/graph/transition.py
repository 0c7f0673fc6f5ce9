"""The published transition matrix T over the scores of unit rows with themselves.

With x_ij = (z_i . z_j) / sigma^2 for rows z_i of unit length, and x_ii = -infinity (no node is its own
neighbour), T and its two normalisers are row softmaxes:

    log deg_i = LSE_j x_ij                          Q_ij = exp(x_ij - log deg_i)
    log u_i   = LSE_j (x_ij - log deg_j / 2)        P_ij = exp(x_ij - log deg_j / 2 - log u_i)
    log r_i   = LSE_j (x_ij - log u_j)              T_ij = exp(x_ij - log u_j - log r_i)

All weights that are computed have one of these forms, at most 1: nothing over- or underflows at any sigma.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from friction_kernels.scores.backend import Scores
from friction_kernels.scores.chunked import ChunkedScores, LogDomainScores

ROWS_CONVERTED_AT_ONCE = 4096  # of a T_UU stored in bfloat16


class Normalisers(NamedTuple):
    """The logarithms defined above, (N,) each."""

    log_degree: Tensor
    log_u: Tensor
    log_r: Tensor  # exact for unlabelled rows; for the others, a bound that keeps T_ij <= 1


def normalisers(scores: Scores, num_labelled: int) -> Normalisers:
    """Compute the normalisers in three passes. Only unlabelled nodes need rows of T."""
    num_nodes = len(scores.queries)
    log_degree = scores.logsumexp(scores.queries.new_zeros(num_nodes))
    log_u = scores.logsumexp(log_degree / -2)
    log_r = scores.logsumexp(-log_u, range(num_labelled, num_nodes))
    bound = scores.scale - log_u.min()  # upper bound of x_ij - log u_j
    return Normalisers(log_degree, log_u, torch.cat((bound.expand(num_labelled), log_r)))


class Transition:
    """T of one graph whose first `num_labelled` nodes are L and the others U.

    Exponents are differences of numbers as large as 1 / sigma^2, so rounding leaves the row sums of T at
    1 + O(eps / sigma^2). Rows are divided by their sums, so that propagation conserves probability at any
    sigma: the mass missing from a row of F is then what no label has reached.
    """

    def __init__(self, scores: Scores, num_labelled: int):
        num_nodes = len(scores.queries)
        self.scores = scores
        self.normalisers = normalisers(scores, num_labelled)
        self.everything = range(num_nodes)
        self.labelled = range(num_labelled)
        self.unlabelled = range(num_labelled, num_nodes)
        self.of_row = -self.normalisers.log_r  # T_ij = exp(x_ij + of_row_i + of_column_j)
        self.of_column = -self.normalisers.log_u
        self.row_factor = scores.queries.new_ones(len(self.unlabelled), 1)  # the inverse row sums
        self._stored: Tensor | None = None  # T_UU; _stored_factor corrects its rounded row sums
        self._stored_factor: Tensor

    @property
    def log_weight(self) -> Tensor:
        """(num_unlabelled,): log pi, where pi_i T_ij = pi_j T_ji."""
        u = slice(self.unlabelled.start, None)
        return self.of_column[u] - self.of_row[u] - self.row_factor[:, 0].log()

    def store(self, dtype: torch.dtype) -> None:
        """Store T_UU for all later products. Call it before `from_labels`."""
        rows, scores = self.unlabelled, self.scores
        if not isinstance(scores, ChunkedScores):
            scores = LogDomainScores(
                scores.queries, None, scores.scale, scores.precision, mask_diagonal=True
            )
        stored = scores.queries.new_empty(len(rows), len(rows), dtype=dtype)
        buffer, factor = scores.buffer(), torch.ones_like(self.row_factor)
        of_row, of_column = (bias[rows.start :] for bias in (self.of_row, self.of_column))
        for chunk in scores.row_chunks(rows):
            here = slice(chunk.start - rows.start, chunk.stop - rows.start)
            tile = scores.tile(chunk, rows, buffer)
            if scores.exponential:
                weights = (tile * of_column.exp()).mul_(of_row[here, None].exp())
            else:
                weights = (tile + of_column).add_(of_row[here, None]).exp_()
            stored[here] = weights
            if dtype != weights.dtype:
                rounded = stored[here].sum(dim=1, dtype=weights.dtype)
                factor[here, 0] = (weights.sum(dim=1) / rounded).nan_to_num_(1.0)
        self._stored, self._stored_factor = stored, factor

    def stored_matrix(self) -> Tensor:
        """The stored T_UU (num_unlabelled, num_unlabelled)."""
        assert self._stored is not None
        return self._stored * self.row_factor

    def from_labels(self, targets: Tensor) -> Tensor:
        """T_UL Y_L (num_unlabelled, C) for Y_L (num_labelled, C), whose rows are one-hot."""
        b = self._apply(
            self.unlabelled, self.labelled, self.of_row, self.of_column, targets, binary=True
        )
        sums = b.sum(dim=1, keepdim=True) + self.times(torch.ones_like(self.row_factor))
        self.row_factor = sums.reciprocal_()
        if self._stored is not None:
            self._stored_factor *= self.row_factor
        return b.mul_(self.row_factor)

    def times(self, values: Tensor) -> Tensor:
        """T_UU values: (num_unlabelled, K) -> (num_unlabelled, K)."""
        if self._stored is not None:
            return _product(self._stored, values).mul_(self._stored_factor)
        u = self.unlabelled
        return self._apply(u, u, self.of_row, self.of_column, values).mul_(self.row_factor)

    def transposed_times(self, values: Tensor) -> Tensor:
        """T_UU^T values: (num_unlabelled, K) -> (num_unlabelled, K)."""
        if self._stored is not None:
            return _transposed_product(self._stored, values * self._stored_factor)
        u = self.unlabelled
        return self._apply(u, u, self.of_column, self.of_row, values * self.row_factor)

    def transposed_to_all(self, values: Tensor) -> Tensor:
        """T_U^T values, where T_U are the rows of U: (num_unlabelled, K) -> (N, K)."""
        values = values * self.row_factor
        return self._apply(self.everything, self.unlabelled, self.of_column, self.of_row, values)

    def _apply(
        self,
        rows: range,
        columns: range,
        of_row: Tensor,
        of_column: Tensor,
        values: Tensor,
        *,
        binary: bool = False,
    ) -> Tensor:
        of_row, of_column = of_row[rows.start : rows.stop], of_column[columns.start : columns.stop]
        return self.scores.apply(rows, columns, of_row, of_column, values, binary=binary)


def _blocks(matrix: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, these rows of the matrix in another dtype), limiting the memory for conversion."""
    at_once = len(matrix) if matrix.dtype == dtype else ROWS_CONVERTED_AT_ONCE
    for start in range(0, len(matrix), at_once):
        rows = slice(start, start + at_once)
        yield rows, matrix[rows].to(dtype)


def _product(matrix: Tensor, values: Tensor) -> Tensor:
    """Compute in the dtype of the values, as if nothing were stored."""
    return torch.cat([block @ values for _, block in _blocks(matrix, values.dtype)])


def _transposed_product(matrix: Tensor, values: Tensor) -> Tensor:
    products = (block.T @ values[rows] for rows, block in _blocks(matrix, values.dtype))
    return reduce(torch.add, products)
