"""The log-sum-exp pass: log deg, log u and log r of every node."""

# ruff: noqa: N803 - what is compiled in is written in capitals, as everywhere in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import LN_2, LOG2_E, dots


@triton.jit(do_not_specialize=["first_row", "num_rows", "count", "blocks_per_split"])
def logsumexp_kernel(
    z,  # (count, dim)
    inverse_sigma_squared,  # (1,) float32
    column_bias,  # (count up to a multiple of BLOCK_N,) float32, in base 2; -inf beyond count
    result,  # (splits, num_rows) float32
    first_row,
    num_rows,
    count,
    dim,
    blocks_per_split,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """result_si = log sum over j != i, j in split s, of exp(z_i . z_j / sigma^2 + column_bias_j).

    One program owns BLOCK_M rows and walks one split of the columns, keeping each row's maximum and sum.
    The first maximum is finite, so that a tile without any neighbour is no special case.

    x is symmetric, yet every tile is computed twice: to use it for its columns too would take, beside half
    the products, a second exponential and two reductions across warps for each number, and N^2 / 256
    partial sums in memory. At d = 768 in bfloat16 that saves under a third of a pass by arithmetic, at
    d = 384 a sixth.
    """
    block_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    local_rows = block_row + tl.arange(0, BLOCK_M)
    rows = first_row + local_rows
    scale = tl.load(inverse_sigma_squared) * LOG2_E
    maximum = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    first_block = split * blocks_per_split
    last_block = tl.minimum(first_block + blocks_per_split, tl.cdiv(count, BLOCK_N))
    for index in range(first_block, last_block):
        first_column = index * BLOCK_N
        columns = first_column + tl.arange(0, BLOCK_N)
        x = scale * dots(
            z, first_row + block_row, first_column, count, dim, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
        )
        x += tl.load(column_bias + columns)[None, :]
        x = tl.where(rows[:, None] == columns[None, :], float("-inf"), x)
        new_maximum = tl.maximum(maximum, tl.max(x, axis=1))
        total *= tl.exp2(maximum - new_maximum)
        total += tl.sum(tl.exp2(x - new_maximum[:, None]), axis=1)
        maximum = new_maximum
    offsets = split.to(tl.int64) * num_rows + local_rows
    tl.store(result + offsets, (maximum + tl.log2(total)) * LN_2, mask=local_rows < num_rows)
