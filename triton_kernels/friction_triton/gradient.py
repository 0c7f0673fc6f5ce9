"""The gradient pass: compute a stripe of coefficients once, then multiply it with queries and keys."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import LOG2_E, add_product, dots, half


@triton.jit
def low_rank(
    left, right, row, column, width,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """left_i . right_j for BLOCK_M rows i from row, BLOCK_N columns j from column.

    left, right: (count, width) padded with zeros to whole tiles.
    """
    steps = tl.arange(0, BLOCK_K)
    left += row.to(tl.int64) * width
    right += column.to(tl.int64) * width
    rows = (tl.arange(0, BLOCK_M) * width)[:, None] + steps[None, :]
    columns = (tl.arange(0, BLOCK_N) * width)[None, :] + steps[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, width, BLOCK_K):
        a, b = tl.load(left + rows + start), tl.load(right + columns + start)
        sums = add_product(sums, a, b, PRECISION)
    return sums


@triton.jit
def term_of(x, vectors, vector_pitch, rows, columns, FLIPPED: tl.constexpr):
    """(exp(x_ij + row_bias_i + column_bias_j), row_factor_i); FLIPPED: for x_ji, given the tile of x_ij."""
    if FLIPPED:
        row_bias = tl.load(vectors + columns)[None, :]
        column_bias = tl.load(vectors + vector_pitch + rows)[:, None]
        row_factor = tl.load(vectors + 2 * vector_pitch + columns)[None, :]
    else:
        row_bias = tl.load(vectors + rows)[:, None]
        column_bias = tl.load(vectors + vector_pitch + columns)[None, :]
        row_factor = tl.load(vectors + 2 * vector_pitch + rows)[:, None]
    return tl.exp2(x + (row_bias + column_bias)), row_factor


@triton.jit(do_not_specialize=["num_rows", "num_queries", "num_keys"])
def coefficients_kernel(
    queries,  # (num_queries, dim)
    keys,  # (num_keys, dim)
    scale,  # (1,) float32
    vectors,  # (terms, 3, vector_pitch) float32: row_bias and column_bias in base 2, row_factor; or zeros
    active,  # (vector_pitch,) int32: 1 if left or row_factor of the first term is nonzero
    left,  # (num_queries rounded up to a tile, width) float32
    right,  # (num_keys rounded up to a tile, width) float32
    result,  # (num_rows, pitch): G starting at row first and column first_column
    first,
    first_column,
    num_rows,
    num_queries,
    num_keys,
    dim,
    width,  # a multiple of BLOCK_K
    pitch,  # num_keys rounded up to a multiple of the tile
    vector_pitch,
    TERMS: tl.constexpr,  # number of terms after the first
    SYMMETRIC: tl.constexpr,
    MASK_DIAGONAL: tl.constexpr,
    PRECISION: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """G_ij = scale times the sum over terms of exp(x_ij + row_bias_i + column_bias_j) row_factor_i.

    x_ij = scale q_i . k_j. left_i . right_j is added to the first term's row_factor_i. If the keys are the
    queries (SYMMETRIC), computes G_ij + G_ji instead. Masked entries are 0.
    """
    # Concurrent programs share columns, which are then read from the cache.
    row_blocks = tl.cdiv(num_rows, BLOCK_M)
    row = first + tl.program_id(0) % row_blocks * BLOCK_M
    column = first_column + tl.program_id(0) // row_blocks * BLOCK_N
    factor = tl.load(scale)
    x = (factor * LOG2_E) * dots(
        queries, keys, row, column, num_queries, num_keys, dim, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    rows = row + tl.arange(0, BLOCK_M)
    columns = column + tl.arange(0, BLOCK_N)
    # Rows and columns beyond the end get zero coefficients, because the products read whole tiles.
    absent = (rows >= num_queries)[:, None] | (columns >= num_keys)[None, :]
    if MASK_DIAGONAL:
        absent = absent | (rows[:, None] == columns[None, :])
    x = tl.where(absent, float("-inf"), x)
    g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for term in tl.static_range(1, TERMS + 1):
        of_term = vectors + term * 3 * vector_pitch
        weights, factor_i = term_of(x, of_term, vector_pitch, rows, columns, False)
        g += weights * factor_i
        if SYMMETRIC:
            weights, factor_j = term_of(x, of_term, vector_pitch, rows, columns, True)
            g += weights * factor_j
    # G-Loss's labelled nodes receive no propagation, so most tiles skip both products.
    if tl.max(tl.load(active + rows)) > 0:
        inner = low_rank(
            left, right, row, column, width, BLOCK_M, BLOCK_N, BLOCK_K, VALUE_PRECISION
        )
        weights, factor_i = term_of(x, vectors, vector_pitch, rows, columns, False)
        g += weights * (inner + factor_i)
    if SYMMETRIC:  # noqa: SIM102 - a compile-time condition
        if tl.max(tl.load(active + columns)) > 0:
            inner = low_rank(
                right, left, row, column, width, BLOCK_M, BLOCK_N, BLOCK_K, VALUE_PRECISION
            )
            weights, factor_j = term_of(x, vectors, vector_pitch, rows, columns, True)
            g += weights * (inner + factor_j)
    offsets = (rows - first)[:, None].to(tl.int64) * pitch + (columns - first_column)[None, :]
    g *= factor
    tl.store(result + offsets, half(g) if result.dtype.element_ty == tl.bfloat16 else g)


@triton.jit(do_not_specialize=["num_rows", "depth", "blocks_per_split"])
def product_kernel(
    coefficients,  # (num_rows, depth), or its transpose; stored with row stride pitch
    z,  # (depth, dim)
    result,  # (splits, num_rows, dim) float32
    num_rows,
    depth,
    dim,
    pitch,
    blocks_per_split,
    TRANSPOSED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """result_sik (+)= sum over j in split s of coefficients_ij z_jk.

    One program computes BLOCK_M rows and BLOCK_N columns of the result: no atomics, a fixed summation order.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(2)
    first = split * blocks_per_split * BLOCK_D
    last = tl.minimum(first + blocks_per_split * BLOCK_D, depth)
    steps = tl.arange(0, BLOCK_D)
    if TRANSPOSED:
        left = coefficients + first.to(tl.int64) * pitch + rows[:, None] + (steps * pitch)[None, :]
        stride = pitch
    else:
        left = coefficients + first + rows[:, None].to(tl.int64) * pitch + steps[None, :]
        stride = 1
    # Channels past the last wrap around instead of being masked; dim is a multiple of 16.
    safe_channels = tl.max_contiguous(tl.multiple_of(channels % dim, 16), 16)
    right = z + first.to(tl.int64) * dim + (steps * dim)[:, None] + safe_channels[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(first, last, BLOCK_D):
        g = tl.load(left)
        taken = tl.load(right, mask=(start + steps < last)[:, None], other=0.0)
        sums = add_product(sums, g, taken, PRECISION)
        left += BLOCK_D * stride
        right += BLOCK_D * dim
    offsets = (split.to(tl.int64) * num_rows + rows)[:, None] * dim + channels[None, :]
    mask = (rows < num_rows)[:, None] & (channels < dim)[None, :]
    if ACCUMULATE:
        sums += tl.load(result + offsets, mask=mask, other=0.0)
    tl.store(result + offsets, sums, mask=mask)
