"""Apply weights to columns of values. Weights are computed tile by tile and never stored."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import LOG2_E, add_product, dots, half, halves


@triton.jit
def weights_of(
    x, rows, row_bias, column_bias, first_key, first_column, MASK_DIAGONAL: tl.constexpr
):  # fmt: skip
    """exp(x + biases), for the columns of x, which start at first_column, and these columns."""
    columns = first_column + tl.arange(0, x.shape[1])
    weights = tl.exp2(x + (row_bias[:, None] + tl.load(column_bias + columns)[None, :]))
    if MASK_DIAGONAL:
        weights = tl.where(rows[:, None] == first_key + columns[None, :], 0.0, weights)
    return weights, columns


@triton.jit
def add_weighted(
    sums, x, rows, row_bias, column_bias, values, pitch, first_key, first_column,
    MASK_DIAGONAL: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sums + exp(x + biases) values.

    Values in bfloat16 are exact. Three numbers in bfloat16 add up to a weight but for float32's rounding, and
    take half the time of the TF32 numbers that a weight and a value in float32 are split into.
    """
    weights, columns = weights_of(
        x, rows, row_bias, column_bias, first_key, first_column, MASK_DIAGONAL
    )
    taken = tl.load(
        values + (tl.arange(0, BLOCK_K).to(tl.int64) * pitch)[None, :] + columns[:, None]
    )
    if values.dtype.element_ty == tl.bfloat16:
        for _ in tl.static_range(3):
            part = half(weights)
            sums = add_product(sums, part, taken, PRECISION)
            weights -= part.to(tl.float32)
        return sums
    else:
        return add_product(sums, weights, taken, PRECISION)


# Arguments that are not specialised: there are too many ranges to compile for each.
RANGES = [
    "first_row",
    "num_rows",
    "first_column",
    "num_columns",
    "num_queries",
    "num_keys",
    "width",
]


@triton.jit(do_not_specialize=[*RANGES, "blocks_per_split"])
def apply_kernel(
    queries,  # (num_queries, dim)
    keys,  # (num_keys, dim)
    scale,  # (1,) float32
    row_bias,  # (num_rows rounded up to a multiple of BLOCK_M,) float32, in base 2
    column_bias,  # (pitch,) float32, in base 2; -inf beyond num_columns
    values,  # (width rounded up to BLOCK_K, pitch), transposed; float32, or bfloat16; 0 beyond num_columns
    result,  # (splits, num_rows, width) float32
    first_row,
    num_rows,
    first_column,
    num_columns,
    num_queries,
    num_keys,
    dim,
    width,
    pitch,  # num_columns rounded up to a multiple of BLOCK_N
    blocks_per_split,
    MASK_DIAGONAL: tl.constexpr,
    PRECISION: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IN_HALVES: tl.constexpr,
):
    """result_sik = sum over j in split s of exp(scale q_i . k_j + row_bias_i + column_bias_j) values_jk.

    With MASK_DIAGONAL, j != i. One program computes BLOCK_M rows and BLOCK_K columns of the result.
    """
    block_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    local_rows = block_row + tl.arange(0, BLOCK_M)
    rows = first_row + local_rows
    channels = tl.program_id(2) * BLOCK_K + tl.arange(0, BLOCK_K)
    values += tl.program_id(2).to(tl.int64) * BLOCK_K * pitch
    factor = tl.load(scale) * LOG2_E
    biases = tl.load(row_bias + local_rows)
    sums = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    first_block = split * blocks_per_split
    last_block = tl.minimum(first_block + blocks_per_split, tl.cdiv(num_columns, BLOCK_N))
    for index in range(first_block, last_block):
        column = index * BLOCK_N
        x = factor * dots(
            queries, keys, first_row + block_row, first_column + column, num_queries, num_keys, dim,
            BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        if IN_HALVES:
            left, right = halves(x)
            sums = add_weighted(
                sums, left, rows, biases, column_bias, values, pitch, first_column, column,
                MASK_DIAGONAL, BLOCK_K, VALUE_PRECISION,
            )  # fmt: skip
            sums = add_weighted(
                sums, right, rows, biases, column_bias, values, pitch, first_column,
                column + BLOCK_N // 2, MASK_DIAGONAL, BLOCK_K, VALUE_PRECISION,
            )  # fmt: skip
        else:
            sums = add_weighted(
                sums, x, rows, biases, column_bias, values, pitch, first_column, column,
                MASK_DIAGONAL, BLOCK_K, VALUE_PRECISION,
            )  # fmt: skip
    offsets = (split.to(tl.int64) * num_rows + local_rows)[:, None] * width + channels[None, :]
    mask = (local_rows < num_rows)[:, None] & (channels < width)[None, :]
    tl.store(result + offsets, sums, mask=mask)


@triton.jit(do_not_specialize=[*RANGES, "blocks_per_split"])
def apply_vector_kernel(
    queries,
    keys,
    scale,
    row_bias,
    column_bias,
    values,  # (pitch,) float32; 0 beyond num_columns
    result,  # (splits, num_rows) float32
    first_row,
    num_rows,
    first_column,
    num_columns,
    num_queries,
    num_keys,
    dim,
    blocks_per_split,
    MASK_DIAGONAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """apply_kernel for a single column of values, where a product would be padded to sixteen."""
    block_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    local_rows = block_row + tl.arange(0, BLOCK_M)
    factor = tl.load(scale) * LOG2_E
    biases = tl.load(row_bias + local_rows)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    first_block = split * blocks_per_split
    last_block = tl.minimum(first_block + blocks_per_split, tl.cdiv(num_columns, BLOCK_N))
    for index in range(first_block, last_block):
        column = index * BLOCK_N
        x = factor * dots(
            queries, keys, first_row + block_row, first_column + column, num_queries, num_keys, dim,
            BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        weights, columns = weights_of(
            x, first_row + local_rows, biases, column_bias, first_column, column, MASK_DIAGONAL
        )
        sums += tl.sum(weights * tl.load(values + columns)[None, :], axis=1)
    offsets = split.to(tl.int64) * num_rows + local_rows
    tl.store(result + offsets, sums, mask=local_rows < num_rows)
