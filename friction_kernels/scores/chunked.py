"""Score matrices in plain torch, for any device, in O(N + M) memory plus one or two tiles of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from friction_kernels.scores.backend import Term

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS = get_args(Precision)
# A tile consists of whole rows: enough for an efficient product, yet far fewer elements than N x M.
ELEMENTS_PER_TILE = 1 << 22  # 16 MiB in float32
FEWEST_ROWS, MOST_ROWS = 64, 1024
LARGEST_SCORE = 20.0  # limit of the exp domain


def round_to(precision: str, z: Tensor) -> Tensor:
    """Round z as a tensor core does in this precision; products of such numbers are exact in float32."""
    if precision == "bf16":
        return z.to(torch.bfloat16).to(z.dtype)
    if precision == "tf32":  # ten mantissa bits, to nearest, in float32's range
        bits = z.float().contiguous().view(torch.int32)
        return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(z.dtype)
    return z


class ChunkedScores:
    """Tiles of the scores x, or of their exponentials, computed for each pass or stored once.

    Shared by both domains of `backend.Scores`. With a masked diagonal, x_ii is -infinity and exp(x_ii) is
    0. Callers must not write to a tile.
    """

    exponential: ClassVar[bool]  # whether tiles hold exp(x)

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor | None,
        scale: Tensor,
        precision: str = "fp32",
        *,
        mask_diagonal: bool = False,
        stored: bool = False,
    ):
        self.symmetric = keys is None
        self.queries, self.keys = queries, queries if keys is None else keys
        self.scale, self.precision, self.mask_diagonal = scale, precision, mask_diagonal
        self._right = round_to(precision, self.keys)
        self._left = (self._right if self.symmetric else round_to(precision, queries)) * scale
        rows = max(FEWEST_ROWS, min(MOST_ROWS, ELEMENTS_PER_TILE // len(self.keys)))
        self.rows_per_tile = min(len(queries), rows)
        self._matrix = self._store() if stored else None

    @property
    def stored(self) -> bool:
        return self._matrix is not None

    def _store(self) -> Tensor:
        matrix = self._left.new_empty(len(self.queries), len(self.keys))
        for rows, columns in self.strips():
            strip = matrix[_at(rows), _at(columns)]
            self._compute(rows, columns, out=strip)
            if self.symmetric:
                matrix[rows.stop :, _at(rows)].copy_(strip[:, len(rows) :].T)
        return matrix

    def buffer(self) -> Tensor:
        """Memory for one tile, reused throughout a pass."""
        return self._left.new_empty(self.rows_per_tile * len(self.keys))

    def row_chunks(self, rows: range) -> Iterator[range]:
        for start in range(rows.start, rows.stop, self.rows_per_tile):
            yield range(start, min(start + self.rows_per_tile, rows.stop))

    def strips(self) -> Iterator[tuple[range, range]]:
        """Yield (rows, columns) that cover the matrix; if symmetric, each strip starts at its diagonal."""
        for rows in self.row_chunks(range(len(self.queries))):
            yield rows, range(rows.start if self.symmetric else 0, len(self.keys))

    def tile(self, rows: range, columns: range, buffer: Tensor | None = None) -> Tensor:
        """(len(rows), len(columns)), written to `buffer`, which is required if nothing is stored."""
        if self._matrix is not None:
            return self._matrix[_at(rows), _at(columns)]
        assert buffer is not None
        return self._compute(rows, columns, out=_as_tile(buffer, rows, columns))

    def _compute(self, rows: range, columns: range, out: Tensor) -> Tensor:
        torch.mm(self._left[_at(rows)], self._right[_at(columns)].T, out=out)
        if self.exponential:
            out.exp_()
        first, last = max(rows.start, columns.start), min(rows.stop, columns.stop)
        if self.mask_diagonal and first < last:
            itself = out[first - rows.start : last - rows.start, first - columns.start :].diagonal()
            itself.fill_(0 if self.exponential else -torch.inf)
        return out

    def _no_gradient(self) -> tuple[Tensor, Tensor]:
        """Zeros for `_add_products`: gradients of queries and keys, one tensor if they are the same."""
        of_queries = torch.zeros_like(self.queries)
        return of_queries, of_queries if self.symmetric else torch.zeros_like(self.keys)

    def _add_products(
        self,
        of_queries: Tensor,
        of_keys: Tensor,
        coefficients: Tensor,
        rows: range,
        columns: range,
    ) -> None:
        """Add the contributions of a strip's coefficients to the gradients of queries and keys.

        Symmetric coefficients count once for the strip's own rows, and transposed for all later rows.
        """
        of_queries[_at(rows)].addmm_(coefficients, self.keys[_at(columns)])
        done = len(rows) if self.symmetric else 0
        if columns[done:]:
            of_keys[_at(columns[done:])].addmm_(coefficients[:, done:].T, self.queries[_at(rows)])

    def _scaled(self, of_queries: Tensor, of_keys: Tensor) -> tuple[Tensor, Tensor | None]:
        of_queries.mul_(self.scale)
        return of_queries, None if self.symmetric else of_keys.mul_(self.scale)


class LogDomainScores(ChunkedScores):
    """Everything in logarithms, for scores of any size.

    Exponents are at most 0 when exponentials are taken, so nothing overflows, and only negligible weights
    underflow.
    """

    exponential = False

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        everything = range(len(self.keys))
        rows = range(len(self.queries)) if rows is None else rows
        buffer, scratch = self.buffer(), self.buffer()
        result = column_bias.new_empty(len(rows))
        smallest = torch.finfo(result.dtype).min  # for rows without any score, whose result is -inf
        for chunk in self.row_chunks(rows):
            x = self.tile(chunk, everything, buffer)
            logits = torch.add(x, column_bias, out=_as_tile(scratch, chunk, everything))
            largest = logits.amax(dim=1).clamp_min_(smallest)
            total = logits.sub_(largest[:, None]).exp_().sum(dim=1)
            torch.add(total.log_(), largest, out=result[_at(chunk, rows.start)])
        return result

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
        buffer, scratch = self.buffer(), self.buffer()
        result = values.new_empty(len(rows), values.shape[1])
        for chunk in self.row_chunks(rows):
            x, here = self.tile(chunk, columns, buffer), _at(chunk, rows.start)
            weights = torch.add(x, column_bias, out=_as_tile(scratch, chunk, columns))
            weights.add_(row_bias[here, None]).exp_()
            torch.mm(weights, values, out=result[here])
        return result

    def gradient(self, terms: Sequence[Term]) -> tuple[Tensor, Tensor | None]:
        gradients, buffers = self._no_gradient(), [self.buffer() for _ in range(4)]
        for rows, columns in self.strips():
            x = self.tile(rows, columns, buffers[0])
            total, weights, product = (_as_tile(b, rows, columns) for b in buffers[1:])
            total.zero_()
            for term in terms:
                _add_term(total, x, weights, product, term, rows, columns)
                if self.symmetric:  # dL/dx_ji, from the same tile
                    _add_term(total.T, x.T, weights.T, product.T, term, columns, rows)
            self._add_products(*gradients, total, rows, columns)
        return self._scaled(*gradients)


def _add_term(
    total: Tensor,
    x: Tensor,
    weights: Tensor,
    product: Tensor,
    term: Term,
    rows: range,
    columns: range,
) -> None:
    i, j = _at(rows), _at(columns)
    # Same order as in logsumexp: with equal rounding, a softmax's row sums to one more exactly.
    torch.add(x, term.column_bias[j], out=weights).add_(term.row_bias[i, None]).exp_()
    factor = term.row_factor[i, None]
    if term.left is not None and term.right is not None:
        factor = torch.mm(term.left[i], term.right[j].T, out=product).add_(factor)
    total.addcmul_(weights, factor)


class ExpDomainScores(ChunkedScores):
    """Products with the weights W = exp(x) themselves, for scores from -20 to 20.

    In this range weights, their sums and all normalised forms are ordinary float32 numbers. In a graph of
    unit rows with up to a million nodes |log deg| <= 34, |log u| <= 51, and |log r| <= 85; real graphs stay
    far below. A logsumexp is then a product with a vector, and dL/dx is W times a low-rank matrix: a pass
    takes one exponential per element, or none if W is stored.
    """

    exponential = True

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        factor, buffer = column_bias.exp(), self.buffer()
        if rows is not None or not self.symmetric:
            rows = range(len(self.queries)) if rows is None else rows
            return self._product(rows, range(len(factor)), factor[:, None])[:, 0].log_()
        total = torch.zeros_like(factor)
        for chunk, rest in self.strips():  # a tile serves its rows and, transposed, its columns
            w = self.tile(chunk, rest, buffer)
            total[_at(chunk)].addmv_(w, factor[_at(rest)])
            if chunk.stop < len(factor):
                total[chunk.stop :].addmv_(w[:, len(chunk) :].T, factor[_at(chunk)])
        return total.log_()

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
        result = self._product(rows, columns, values * column_bias.exp()[:, None])
        return result.mul_(row_bias.exp()[:, None])

    def _product(self, rows: range, columns: range, values: Tensor) -> Tensor:
        buffer, result = self.buffer(), values.new_empty(len(rows), values.shape[1])
        for chunk in self.row_chunks(rows):
            w = self.tile(chunk, columns, buffer)
            torch.mm(w, values, out=result[_at(chunk, rows.start)])
        return result

    def gradient(self, terms: Sequence[Term]) -> tuple[Tensor, Tensor | None]:
        # dL/dx_ij = W_ij left_i . right_j, with the terms' biases folded into left and right.
        left, right = (torch.cat(parts, dim=1) for parts in zip(*map(_factors, terms), strict=True))
        if self.symmetric:  # dL/dx_ij + dL/dx_ji
            left, right = torch.cat((left, right), dim=1), torch.cat((right, left), dim=1)
        gradients, buffer, scratch = self._no_gradient(), self.buffer(), self.buffer()
        for rows, columns in self.strips():
            w = self.tile(rows, columns, buffer)
            strip = _as_tile(scratch, rows, columns)
            torch.mm(left[_at(rows)], right[_at(columns)].T, out=strip).mul_(w)
            self._add_products(*gradients, strip, rows, columns)
        return self._scaled(*gradients)


def _factors(term: Term) -> tuple[Tensor, Tensor]:
    """left (N, 1 + K) and right (M, 1 + K), such that the term is W * (left @ right.T)."""
    left, right = term.row_factor[:, None], torch.ones_like(term.column_bias)[:, None]
    if term.left is not None and term.right is not None:
        left, right = torch.cat((term.left, left), dim=1), torch.cat((term.right, right), dim=1)
    return left * term.row_bias.exp()[:, None], right * term.column_bias.exp()[:, None]


def _at(positions: range, origin: int = 0) -> slice:
    return slice(positions.start - origin, positions.stop - origin)


def _as_tile(buffer: Tensor, rows: range, columns: range) -> Tensor:
    return buffer[: len(rows) * len(columns)].view(len(rows), len(columns))
