"""The log-sum-exp pass: the normalisers of a row softmax of scores."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import LN_2, LOG2_E, dots


@triton.jit(
    do_not_specialize=["first_row", "num_rows", "num_queries", "num_keys", "blocks_per_split"]
)
def logsumexp_kernel(
    queries,  # (num_queries, dim)
    keys,  # (num_keys, dim)
    scale,  # (1,) float32
    column_bias,  # (num_keys rounded up to BLOCK_N,) float32, in base 2; -inf beyond num_keys
    result,  # (splits, num_rows) float32
    first_row,
    num_rows,
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
    """result_si = log sum over j in split s of exp(scale q_i . k_j + column_bias_j), j != i if masked.

    One program processes BLOCK_M rows and one split of the columns, tracking each row's maximum and sum.
    The maximum starts at a finite value, so that a tile without any score needs no special case.
    """
    block_row = tl.program_id(0) * BLOCK_M
    split = tl.program_id(1)
    local_rows = block_row + tl.arange(0, BLOCK_M)
    rows = first_row + local_rows
    factor = tl.load(scale) * LOG2_E
    maximum = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    first_block = split * blocks_per_split
    last_block = tl.minimum(first_block + blocks_per_split, tl.cdiv(num_keys, BLOCK_N))
    for index in range(first_block, last_block):
        first_column = index * BLOCK_N
        columns = first_column + tl.arange(0, BLOCK_N)
        x = factor * dots(
            queries, keys, first_row + block_row, first_column, num_queries, num_keys, dim,
            BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        x += tl.load(column_bias + columns)[None, :]
        if MASK_DIAGONAL:
            x = tl.where(rows[:, None] == columns[None, :], float("-inf"), x)
        new_maximum = tl.maximum(maximum, tl.max(x, axis=1))
        total *= tl.exp2(maximum - new_maximum)
        total += tl.sum(tl.exp2(x - new_maximum[:, None]), axis=1)
        maximum = new_maximum
    offsets = split.to(tl.int64) * num_rows + local_rows
    tl.store(result + offsets, (maximum + tl.log2(total)) * LN_2, mask=local_rows < num_rows)
