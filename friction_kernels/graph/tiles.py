"""Tiles of the matrix x_ij = (z_i . z_j) / sigma^2, or of its exponential, computed anew or stored once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS = get_args(Precision)
# A tile is whole rows: many enough for an efficient product, few enough to be far below N x N.
ELEMENTS_PER_TILE = 1 << 22  # 16 MiB in float32
FEWEST_ROWS, MOST_ROWS = 64, 1024


def round_to(precision: str, z: Tensor) -> Tensor:
    """z as a tensor core reads it in this precision; the products of such numbers are exact in float32."""
    if precision == "bf16":
        return z.to(torch.bfloat16).to(z.dtype)
    if precision == "tf32":  # ten bits of mantissa, to nearest, in float32's range
        bits = z.float().contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(z.dtype)
    return z


class Tiles:
    """Rectangles of x, its diagonal -inf (no node is its own neighbour), or of W = exp(x), diagonal 0.

    z: (N, d) with rows of length one; inverse_sigma_squared: () or float; exponential: whether tiles are
    of W; stored: whether the whole matrix is computed once and kept. Nobody writes to a tile.
    """

    def __init__(
        self,
        z: Tensor,
        inverse_sigma_squared: Tensor | float,
        precision: str = "fp32",
        *,
        exponential: bool = False,
        stored: bool = False,
    ):
        self.exponential = exponential
        self._right = round_to(precision, z)
        self._left = self._right * inverse_sigma_squared
        self._num_nodes = len(z)
        rows = max(FEWEST_ROWS, min(MOST_ROWS, ELEMENTS_PER_TILE // len(z)))
        self.rows_per_tile = min(len(z), rows)
        self._matrix = self._store() if stored else None

    @property
    def stored(self) -> bool:
        return self._matrix is not None

    def _store(self) -> Tensor:
        matrix = self._left.new_empty(self._num_nodes, self._num_nodes)
        for rows, rest in self.strips():
            strip = matrix[rows.start : rows.stop, rest.start :]
            self._compute(rows, rest, out=strip)
            below = matrix[rows.stop :, rows.start : rows.stop]
            below.copy_(strip[:, len(rows) :].T)
        return matrix

    def buffer(self) -> Tensor:
        """Memory for one tile, for the length of a pass."""
        return self._left.new_empty(self.rows_per_tile * self._num_nodes)

    def row_chunks(self, rows: range) -> Iterator[range]:
        step = self.rows_per_tile
        for start in range(rows.start, rows.stop, step):
            yield range(start, min(start + step, rows.stop))

    def strips(self) -> Iterator[tuple[range, range]]:
        """(rows, columns from the first of these rows to the end): half of a symmetric matrix."""
        for rows in self.row_chunks(range(self._num_nodes)):
            yield rows, range(rows.start, self._num_nodes)

    def tile(self, rows: range, columns: range, buffer: Tensor | None = None) -> Tensor:
        """(len(rows), len(columns)), in `buffer`, which is needed where nothing is stored."""
        if self._matrix is not None:
            return self._matrix[rows.start : rows.stop, columns.start : columns.stop]
        assert buffer is not None
        return self._compute(rows, columns, out=as_tile(buffer, rows, columns))

    def _compute(self, rows: range, columns: range, out: Tensor) -> Tensor:
        left = self._left[rows.start : rows.stop]
        torch.mm(left, self._right[columns.start : columns.stop].T, out=out)
        if self.exponential:
            out.exp_()
        first, last = max(rows.start, columns.start), min(rows.stop, columns.stop)
        if first < last:
            itself = out[first - rows.start : last - rows.start, first - columns.start :].diagonal()
            itself.fill_(0 if self.exponential else -torch.inf)
        return out


def as_tile(buffer: Tensor, rows: range, columns: range) -> Tensor:
    return buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
