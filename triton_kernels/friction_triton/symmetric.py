"""The log-sum-exp pass over symmetric scores, which computes each tile once for its columns and its rows."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import LN_2, LOG2_E, dots, halves


@triton.jit
def add_to_columns(x, bias_i, maximum, total):
    """Add a tile's rows i to its columns' sums, each of which is divided among a column of threads.

    Rows i and i + 8 of a tensor core's tile lie in one thread, so that no number goes to another one.
    """
    x = tl.reshape(x + bias_i[:, None], (x.shape[0] // 16, 2, 8, x.shape[1]))
    new_maximum = tl.maximum(maximum, tl.max(x, axis=1))
    total *= tl.exp2(maximum - new_maximum)
    return new_maximum, total + tl.sum(tl.exp2(x - new_maximum[:, None]), axis=1)


@triton.jit
def add_to_rows(x, bias_j, maximum, total):
    x += bias_j[None, :]
    new_maximum = tl.maximum(maximum, tl.max(x, axis=1))
    total *= tl.exp2(maximum - new_maximum)
    return new_maximum, total + tl.sum(tl.exp2(x - new_maximum[:, None]), axis=1)


@triton.jit
def log_sum(maximum, total):
    """The log-sums of columns that add_to_columns has divided among threads."""
    largest = tl.max(tl.max(maximum, axis=1), axis=0)
    total *= tl.exp2(maximum - largest[None, None, :])
    return (largest + tl.log2(tl.sum(tl.sum(total, axis=1), axis=0))) * LN_2


@triton.jit(do_not_specialize=["first_node", "num_nodes"])
def symmetric_logsumexp_kernel(
    z,  # (num_nodes, dim)
    scale,  # (1,) float32
    bias,  # (num_nodes rounded up to BLOCK_N,) float32, in base 2; -inf beyond num_nodes
    of_columns,  # (chunks, column blocks * BLOCK_N) float32
    of_rows,  # (column blocks, num_nodes - first_node) float32
    first_node,
    num_nodes,
    dim,
    MASK_DIAGONAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILES: tl.constexpr,  # of a chunk
):
    """Parts of log sum_j exp(scale z_i . z_j + bias_j), as in logsumexp_kernel.

    One program processes the BLOCK_N nodes of a tile's columns and a chunk of the rows from the first of
    these nodes on. It adds the chunk up for its columns, and each tile for its rows. Rows that are among the
    columns have their sum there: it writes none for them, nor for earlier ones.
    """
    column = first_node + tl.program_id(0) * BLOCK_N
    half: tl.constexpr = BLOCK_N // 2
    left_columns = column + tl.arange(0, half)
    factor = tl.load(scale) * LOG2_E
    left_maximum = tl.full((BLOCK_M // 16, 8, half), -1e30, tl.float32)
    left_total = tl.zeros((BLOCK_M // 16, 8, half), tl.float32)
    right_maximum, right_total = left_maximum, left_total
    of_rows += tl.program_id(0).to(tl.int64) * (num_nodes - first_node) - first_node
    first_tile = tl.program_id(1) * TILES
    last_tile = tl.minimum(first_tile + TILES, tl.cdiv(num_nodes - column, BLOCK_M))
    for tile in range(first_tile, last_tile):
        row = column + tile * BLOCK_M
        rows = row + tl.arange(0, BLOCK_M)
        x = factor * dots(
            z, z, row, column, num_nodes, num_nodes, dim, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
        )
        if MASK_DIAGONAL:
            columns = column + tl.arange(0, BLOCK_N)
            x = tl.where(rows[:, None] == columns[None, :], float("-inf"), x)
        left, right = halves(x)
        bias_i = tl.load(bias + rows)
        maximum = tl.full((BLOCK_M,), -1e30, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        left_maximum, left_total = add_to_columns(left, bias_i, left_maximum, left_total)
        maximum, total = add_to_rows(left, tl.load(bias + left_columns), maximum, total)
        right_maximum, right_total = add_to_columns(right, bias_i, right_maximum, right_total)
        maximum, total = add_to_rows(right, tl.load(bias + left_columns + half), maximum, total)
        sums = (maximum + tl.log2(total)) * LN_2
        tl.store(of_rows + rows, sums, mask=(rows >= column + BLOCK_N) & (rows < num_nodes))
    of_columns += tl.program_id(1) * tl.num_programs(0) * BLOCK_N - first_node + left_columns
    tl.store(of_columns, log_sum(left_maximum, left_total))
    tl.store(of_columns + half, log_sum(right_maximum, right_total))
