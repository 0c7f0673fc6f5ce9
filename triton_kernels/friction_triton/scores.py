"""Score matrices on a GPU: `friction_kernels.scores.backend.Scores` with passes over tiles."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from friction_triton.apply import apply_kernel, apply_vector_kernel
from friction_triton.configurations import (
    BLOCK_D,
    DOT_PRECISION,
    VALUE_PRECISION,
    architecture,
    computes_tiles_once,
    splits,
    tile,
    tuned,
)
from friction_triton.gradient import coefficients_kernel, product_kernel
from friction_triton.launches import launch
from friction_triton.logsumexp import logsumexp_kernel
from friction_triton.symmetric import symmetric_logsumexp_kernel
from friction_triton.tiles import LOG2_E

WHOLE = 128  # rows and columns that the tiles of the gradient's kernels divide, or are
# Of coefficients at a time, or the size of the keys if larger. Products of higher stripes are faster, 12.3 ms
# with 300 MiB and 17.6 with 96 of a step of 110 on an H200; but they are the largest thing a step adds.
STRIPE_BYTES = 128 << 20
BAND_BYTES = 32 << 20  # of partial sums of a symmetric pass


class TritonScores:
    """Passes over x_ij = scale q_i . k_j, tile by tile, in O((N + M) (d + K)) memory.

    queries: (N, d), keys: (M, d), or None for the queries; float32, or bfloat16 or float16 if precision is
    "bf16". scale: one float32 on their device; the host never reads it. mask_diagonal: x_ii = -inf.
    precision: of the products q_i . k_j and, in the gradient, of G with queries and keys: "fp32", "tf32", or
    "bf16", which rounds both. All other arithmetic is float32. The same inputs give the same bits on one
    device. If the keys are the queries, the gradient exploits symmetry, and so does logsumexp of all rows of
    large graphs; see symmetric_logsumexp_kernel.
    """

    def __init__(
        self,
        queries: Tensor,
        keys: Tensor | None,
        scale: Tensor,
        precision: str = "fp32",
        *,
        mask_diagonal: bool = False,
    ):
        if precision not in DOT_PRECISION:
            raise ValueError(
                f"precision must be one of {', '.join(DOT_PRECISION)}, got {precision!r}"
            )
        if queries.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"the Triton kernels compute in float32, got {queries.dtype}")
        self.symmetric = keys is None
        self.queries, self.keys = queries, queries if keys is None else keys
        self.scale, self.precision, self.mask_diagonal = scale, precision, mask_diagonal
        self._scale = scale.detach().to(queries.device, torch.float32).reshape(1)
        self._queries = self._operand(queries)
        self._keys = self._queries if keys is None else self._operand(keys)
        self._dim = self._queries.shape[1]

    def _operand(self, rows: Tensor) -> Tensor:
        # Zero padding of the last dimension changes no product, and saves every kernel a mask.
        rows = rows.detach().to(torch.bfloat16 if self.precision == "bf16" else torch.float32)
        return pad(rows, (0, -rows.shape[1] % BLOCK_D[self.precision])).contiguous()

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        if rows is None and self.symmetric and self._computes_tiles_once():
            return self._symmetric_logsumexp(column_bias)
        rows = range(len(self._queries)) if rows is None else rows
        sizes = self._tile("logsumexp")
        row_blocks = triton.cdiv(len(rows), sizes["BLOCK_M"])
        column_blocks = triton.cdiv(len(self._keys), sizes["BLOCK_N"])
        num_splits, per_split = self._divide(row_blocks, column_blocks)
        result = self._empty(num_splits, len(rows))
        self._launch(
            logsumexp_kernel, sizes, (row_blocks, num_splits), self._queries, self._keys, self._scale,
            _padded_bias(column_bias, sizes["BLOCK_N"]), result, rows.start, len(rows),
            len(self._queries), len(self._keys), self._dim, per_split,
            MASK_DIAGONAL=self.mask_diagonal, PRECISION=DOT_PRECISION[self.precision],
        )  # fmt: skip
        return result[0] if num_splits == 1 else result.logsumexp(dim=0)

    def _symmetric_logsumexp(self, bias: Tensor) -> Tensor:
        """Band by band of columns: a band's partial sums are in memory, and added to those before."""
        sizes, num_nodes = self._tile("symmetric_logsumexp"), len(self._queries)
        block, padded = sizes["BLOCK_N"], _padded_bias(bias, sizes["BLOCK_N"])
        blocks = max(1, BAND_BYTES // (4 * num_nodes))
        result = padded.new_full((num_nodes,), float("-inf"))
        for first in range(0, num_nodes, blocks * block):
            rest = num_nodes - first
            count = min(blocks, triton.cdiv(rest, block))
            chunks = triton.cdiv(rest, sizes["TILES"] * sizes["BLOCK_M"])
            width = min(count * block, rest)
            of_columns = self._empty(chunks, count * block)
            of_rows = padded.new_full((count, rest), float("-inf"))
            self._launch(
                symmetric_logsumexp_kernel, sizes, (count, chunks), self._queries, self._scale, padded,
                of_columns, of_rows, first, num_nodes, self._dim,
                MASK_DIAGONAL=self.mask_diagonal, PRECISION=DOT_PRECISION[self.precision],
            )  # fmt: skip
            for partial in (of_rows, of_columns[:, :width]):
                here = result[first : first + partial.shape[1]]
                torch.logaddexp(here, partial.logsumexp(dim=0), out=here)
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
        width, binary = values.shape[1], binary and self.precision != "fp32"
        if width == 1:
            return self._apply_vector(rows, columns, row_bias, column_bias, values[:, 0])[:, None]
        sizes = self._tile("apply_narrow" if width <= 16 else "apply_wide")
        row_blocks = triton.cdiv(len(rows), sizes["BLOCK_M"])
        column_blocks = triton.cdiv(len(columns), sizes["BLOCK_N"])
        channel_blocks = triton.cdiv(width, sizes["BLOCK_K"])
        num_splits, per_split = self._divide(row_blocks * channel_blocks, column_blocks)
        result = self._empty(num_splits, len(rows), width)
        self._launch(
            apply_kernel, sizes, (row_blocks, num_splits, channel_blocks),
            self._queries, self._keys, self._scale,
            _padded_bias(row_bias, sizes["BLOCK_M"]), _padded_bias(column_bias, sizes["BLOCK_N"]),
            _padded(
                values.detach().to(torch.bfloat16 if binary else torch.float32),
                sizes["BLOCK_N"], sizes["BLOCK_K"],
            ).T.contiguous(),
            result, rows.start, len(rows), columns.start, len(columns),
            len(self._queries), len(self._keys), self._dim, width,
            column_blocks * sizes["BLOCK_N"], per_split,
            MASK_DIAGONAL=self.mask_diagonal, PRECISION=DOT_PRECISION[self.precision],
            VALUE_PRECISION=VALUE_PRECISION[self.precision],
        )  # fmt: skip
        return result[0] if num_splits == 1 else result.sum(dim=0)

    def _apply_vector(
        self, rows: range, columns: range, row_bias: Tensor, column_bias: Tensor, values: Tensor
    ) -> Tensor:
        sizes = self._tile("apply_vector")
        row_blocks = triton.cdiv(len(rows), sizes["BLOCK_M"])
        column_blocks = triton.cdiv(len(columns), sizes["BLOCK_N"])
        num_splits, per_split = self._divide(row_blocks, column_blocks)
        result = self._empty(num_splits, len(rows))
        self._launch(
            apply_vector_kernel, sizes, (row_blocks, num_splits),
            self._queries, self._keys, self._scale,
            _padded_bias(row_bias, sizes["BLOCK_M"]), _padded_bias(column_bias, sizes["BLOCK_N"]),
            _zeros_after(values.detach().float(), column_blocks * sizes["BLOCK_N"]),
            result, rows.start, len(rows), columns.start, len(columns),
            len(self._queries), len(self._keys), self._dim, per_split,
            MASK_DIAGONAL=self.mask_diagonal, PRECISION=DOT_PRECISION[self.precision],
        )  # fmt: skip
        return result[0] if num_splits == 1 else result.sum(dim=0)

    def gradient(self, terms) -> tuple[Tensor, Tensor | None]:
        """See `Scores.gradient`; the result is float32.

        For large d, the d sums over j of a row do not fit in registers. So the coefficients G of a stripe of
        rows are stored, and G k and G^T q are matrix products: by arithmetic that is cheaper than recomputing
        the tile for each part of d. A stripe of a symmetric G starts at its diagonal; earlier stripes have
        already added the columns left of it, as G^T q.
        """
        queries, keys, sizes = self._queries, self._keys, self._tile("coefficients")
        pitch = triton.cdiv(len(keys), WHOLE) * WHOLE
        vectors, active, left, right = self._coefficient_inputs(terms)
        stripe_bytes = max(STRIPE_BYTES, keys.nbytes)
        height = stripe_bytes // (pitch * keys.element_size()) // WHOLE * WHOLE
        height = min(max(height, WHOLE), triton.cdiv(len(queries), WHOLE) * WHOLE)
        stripe = keys.new_empty(height, pitch)
        of_queries = self._empty(len(queries), self._dim).zero_()
        of_keys = of_queries if self.symmetric else self._empty(len(keys), self._dim).zero_()
        for first in range(0, len(queries), height):
            last = min(first + height, len(queries))
            first_column = first if self.symmetric else 0
            num_rows = triton.cdiv(last - first, WHOLE) * WHOLE
            row_blocks = num_rows // sizes["BLOCK_M"]
            column_blocks = triton.cdiv(len(keys) - first_column, sizes["BLOCK_N"])
            self._launch(
                coefficients_kernel, sizes, (row_blocks * column_blocks,), queries, keys, self._scale,
                vectors, active, left, right, stripe, first, first_column, num_rows,
                len(queries), len(keys), self._dim, left.shape[1], pitch, len(active),
                TERMS=len(terms) - 1, SYMMETRIC=self.symmetric, MASK_DIAGONAL=self.mask_diagonal,
                PRECISION=DOT_PRECISION[self.precision],
                VALUE_PRECISION=VALUE_PRECISION[self.precision],
            )  # fmt: skip
            self._add_product(stripe, keys[first_column:], of_queries[first:last])
            done = last if self.symmetric else 0
            if done < len(keys):
                rest = stripe[:, done - first_column :]
                self._add_product(rest, queries[first:last], of_keys[done:], transposed=True)
        dim = self.queries.shape[1]
        return of_queries[:, :dim], None if self.symmetric else of_keys[:, :dim]

    def _add_product(
        self, coefficients: Tensor, z: Tensor, result: Tensor, *, transposed: bool = False
    ) -> None:
        """result += coefficients z, or coefficients^T z; coefficients may extend beyond z and result."""
        sizes = self._tile("product")
        row_blocks = triton.cdiv(len(result), sizes["BLOCK_M"])
        channel_blocks = triton.cdiv(self._dim, sizes["BLOCK_N"])
        num_splits, per_split = 1, triton.cdiv(len(z), sizes["BLOCK_D"])
        if not transposed:  # few rows and many columns
            num_splits, per_split = self._divide(row_blocks * channel_blocks, per_split)
        sums = result if num_splits == 1 else self._empty(num_splits, *result.shape)
        self._launch(
            product_kernel, sizes, (row_blocks, channel_blocks, num_splits), coefficients, z, sums,
            len(result), len(z), self._dim, coefficients.stride(0), per_split, TRANSPOSED=transposed,
            ACCUMULATE=num_splits == 1, PRECISION=DOT_PRECISION[self.precision],
        )  # fmt: skip
        if num_splits > 1:
            result += sums.sum(dim=0)

    def _coefficient_inputs(self, terms) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The inputs of coefficients_kernel, with zeros beyond the last row and key."""
        rows, columns = (triton.cdiv(len(t), WHOLE) * WHOLE for t in (self._queries, self._keys))
        first, pitch = terms[0], max(rows, columns)
        if any(term.left is not None for term in terms[1:]):
            raise ValueError("only the first term may have left and right")

        scaled = (
            (t.row_bias * LOG2_E.value, t.column_bias * LOG2_E.value, t.row_factor) for t in terms
        )
        vectors = torch.stack(
            [_zeros_after(v.detach().float(), pitch) for of in scaled for v in of]
        )
        left, right = first.left, first.right
        if left is None:
            left, right = self._empty(len(self._queries), 0), self._empty(len(self._keys), 0)
        active = (left != 0).any(dim=1) | (first.row_factor != 0)
        block = self._tile("coefficients")["BLOCK_K"]
        left = _padded(left.detach().float(), rows, block)
        right = _padded(right.detach().float(), columns, block)
        return vectors, _zeros_after(active.int(), pitch), left, right

    def _tile(self, kernel: str):
        return tile(kernel, self.precision, architecture(self._queries.device))

    def _computes_tiles_once(self) -> bool:
        return computes_tiles_once(
            len(self._queries), self.precision, architecture(self._queries.device)
        )

    def _divide(self, programs: int, blocks: int) -> tuple[int, int]:
        """Return (splits, blocks per split), such that no split is empty."""
        per_split = triton.cdiv(blocks, splits(programs, blocks, self._queries.device))
        return triton.cdiv(blocks, per_split), per_split

    def _launch(self, kernel, sizes, grid: tuple[int, ...], *args, **options) -> None:
        launch(tuned(kernel, sizes), grid, self._queries.device, *args, **options)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._queries.device)


def _padded_bias(bias: Tensor, multiple: int) -> Tensor:
    """Convert to base 2, and pad with -inf to a multiple of a tile, so that padding has no weight."""
    return pad(
        bias.detach().float() * LOG2_E.value, (0, -len(bias) % multiple), value=float("-inf")
    )


def _zeros_after(vector: Tensor, length: int) -> Tensor:
    return pad(vector, (0, length - len(vector)))


def _padded(values: Tensor, rows: int, columns: int) -> Tensor:
    """Pad with zeros to multiples of a tile."""
    return pad(values, (0, -values.shape[1] % columns, 0, -len(values) % rows)).contiguous()
