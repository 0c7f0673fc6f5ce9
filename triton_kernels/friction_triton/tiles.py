"""One tile of the scores of queries and keys, the first step of every pass."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)  # exponents are in base 2
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)
INTERPRETED: tl.constexpr = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def add_product(sums, a, b, PRECISION: tl.constexpr):
    """sums + a b. The interpreter would multiply bfloat16 as bit patterns, so convert first."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION)


@triton.jit
def half(x):
    """Round x to bfloat16, to nearest; the interpreter's conversion would truncate."""
    if INTERPRETED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        return bits.to(tl.float32, bitcast=True)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def dots(
    queries, keys, first_row, first_column, num_queries, num_keys, dim,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """q_i . k_j for BLOCK_M rows i from first_row and BLOCK_N columns j from first_column.

    queries: (num_queries, dim), keys: (num_keys, dim), with dim a multiple of BLOCK_D, so that no tile is
    wider than the matrix. Indices beyond the last row read the last row, which is cheaper than a mask;
    callers ignore the results.
    """
    # A 64-bit start and 32-bit offsets within the tile: a matrix may exceed 2^31 elements, a tile does not.
    steps = tl.arange(0, BLOCK_D)
    rows = tl.minimum(tl.arange(0, BLOCK_M), num_queries - 1 - first_row)
    columns = tl.minimum(tl.arange(0, BLOCK_N), num_keys - 1 - first_column)
    left = queries + first_row.to(tl.int64) * dim + (rows[:, None] * dim + steps[None, :])
    right = keys + first_column.to(tl.int64) * dim + (columns[None, :] * dim + steps[:, None])
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, dim, BLOCK_D):
        sums = add_product(sums, tl.load(left + start), tl.load(right + start), PRECISION)
    return sums


@triton.jit
def halves(x):
    """The left and right half of a tile's columns: two small epilogues need fewer registers."""
    rows: tl.constexpr = x.shape[0]
    columns: tl.constexpr = x.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(x, (rows, 2, columns)), (0, 2, 1)))
