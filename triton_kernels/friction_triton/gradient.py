"""The gradient pass: a stripe of coefficients, formed once and multiplied with the embeddings twice."""

# ruff: noqa: N803 - what is compiled in is written in capitals, as everywhere in Triton

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
def store_coefficients(
    x, result, vectors, propagates, left, right, scale, row, column, first, count, width,
    pitch, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """G for the tile of similarities x (in base 2), whose nodes begin at row and column."""
    rows = row + tl.arange(0, x.shape[0])
    columns = column + tl.arange(0, x.shape[1])
    # What does not exist gets coefficients of zero: the products read whole tiles.
    absent = (rows >= count)[:, None] | (columns >= count)[None, :]
    x = tl.where(absent | (rows[:, None] == columns[None, :]), float("-inf"), x)
    degree_i, degree_j = tl.load(vectors + rows)[:, None], tl.load(vectors + columns)[None, :]
    vectors += pitch
    u_i, u_j = tl.load(vectors + rows)[:, None], tl.load(vectors + columns)[None, :]
    vectors += pitch
    r_i, r_j = tl.load(vectors + rows)[:, None], tl.load(vectors + columns)[None, :]
    vectors += pitch
    of_degree_i, of_degree_j = tl.load(vectors + rows)[:, None], tl.load(vectors + columns)[None, :]
    vectors += pitch
    of_u_i, of_u_j = tl.load(vectors + rows)[:, None], tl.load(vectors + columns)[None, :]
    vectors += pitch
    of_t_i, of_t_j = tl.load(vectors + rows)[:, None], tl.load(vectors + columns)[None, :]

    g = tl.exp2(x - degree_i) * of_degree_i + tl.exp2(x - degree_j) * of_degree_j
    g += tl.exp2(x - (0.5 * degree_j + u_i)) * of_u_i
    g += tl.exp2(x - (0.5 * degree_i + u_j)) * of_u_j
    # Labelled nodes propagate nothing onwards: most tiles are spared both products.
    if tl.max(tl.load(propagates + rows)) > 0:
        inner = low_rank(
            left, right, row, column, width, x.shape[0], x.shape[1], BLOCK_K, PRECISION
        )
        g += tl.exp2(x - (u_j + r_i)) * (inner - of_t_i)
    if tl.max(tl.load(propagates + columns)) > 0:
        inner = low_rank(
            right, left, row, column, width, x.shape[0], x.shape[1], BLOCK_K, PRECISION
        )
        g += tl.exp2(x - (u_i + r_j)) * (inner - of_t_j)
    offsets = (rows - first)[:, None].to(tl.int64) * pitch + (columns - first)[None, :]
    g *= scale
    tl.store(result + offsets, half(g) if result.dtype.element_ty == tl.bfloat16 else g)


@triton.jit(do_not_specialize=["num_rows", "count"])
def coefficients_kernel(
    z,  # (count, dim)
    inverse_sigma_squared,  # (1,) float32
    vectors,  # (6, pitch) float32: log deg, log u, log r in base 2, of_log_degree, of_log_u, of_transition
    propagates,  # (pitch,) int32: 1 where left or of_transition of a node is not 0
    left,  # (pitch, width) float32
    right,  # (pitch, width) float32
    result,  # (num_rows, pitch): nodes first .. first + num_rows by nodes first .. count
    first,
    num_rows,
    count,
    dim,
    width,  # a multiple of BLOCK_K
    pitch,  # count up to a multiple of the tile
    PRECISION: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """G_ij = (M_ij + M_ji) / sigma^2, G_ii = 0, where with x_ij = z_i . z_j / sigma^2

    M_ij = T_ij (left_i . right_j - of_transition_i) + P_ij of_log_u_i + Q_ij of_log_degree_i
    T_ij = exp(x_ij - log u_j - log r_i);  P_ij = exp(x_ij - log deg_j / 2 - log u_i)
    Q_ij = exp(x_ij - log deg_i)
    """
    # Programs that run at the same time share columns, which then come from the cache.
    row_blocks = tl.cdiv(num_rows, BLOCK_M)
    row = first + tl.program_id(0) % row_blocks * BLOCK_M
    column = first + tl.program_id(0) // row_blocks * BLOCK_N
    scale = tl.load(inverse_sigma_squared)
    x = dots(z, row, column, count, dim, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION) * (scale * LOG2_E)
    store_coefficients(
        x, result, vectors, propagates, left, right, scale, row, column,
        first, count, width, pitch, BLOCK_K, VALUE_PRECISION,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_rows", "depth", "blocks_per_split"])
def product_kernel(
    coefficients,  # (num_rows, depth), or its transpose; rows as stored are pitch apart
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

    One program owns BLOCK_M rows and BLOCK_N columns of the result: no atomics, one order of summation.
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
    # Beyond the last channel the first ones are read again; dim is a multiple of 16.
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
