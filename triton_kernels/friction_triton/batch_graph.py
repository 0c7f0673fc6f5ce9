"""Passes over the similarities of one batch, inside one program.

All N x N and N x C arrays are in scratch memory, which stays in the L2 cache. They are traversed in strips of
rows, by chunks of columns, so registers hold no more than that. Logarithms are in base 2. Functions end with
a barrier if other threads read what they wrote.
"""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import add_product

VECTORS: tl.constexpr = tl.constexpr(15)  # scratch arrays of N numbers
ARRAYS: tl.constexpr = tl.constexpr(8)  # scratch arrays of N x WIDTH numbers


@triton.jit
def tile_of(x, rows, columns, SIZE: tl.constexpr):
    return tl.load(x + rows[:, None] * SIZE + columns[None, :])


@triton.jit
def log_sums(
    x, bias, FACTOR: tl.constexpr, result, count,
    SIZE: tl.constexpr, STRIP: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """result_i = log sum_j exp(x_ij + FACTOR bias_j)."""
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        maximum = tl.full((STRIP,), -1e30, tl.float32)
        total = tl.zeros((STRIP,), tl.float32)
        for column in range(0, count, CHUNK):
            columns = column + tl.arange(0, CHUNK)
            tile = tile_of(x, rows, columns, SIZE)
            if FACTOR != 0:
                tile += FACTOR * tl.load(bias + columns)[None, :]
            new_maximum = tl.maximum(maximum, tl.max(tile, axis=1))
            total *= tl.exp2(maximum - new_maximum)
            total += tl.sum(tl.exp2(tile - new_maximum[:, None]), axis=1)
            maximum = new_maximum
        tl.store(result + rows, maximum + tl.log2(total))
    tl.debug_barrier()


@triton.jit
def array_of(array, rows, WIDTH: tl.constexpr):
    """Rows of an (N, WIDTH) array."""
    return tl.load(array + rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :])


@triton.jit
def set_array(array, rows, values, WIDTH: tl.constexpr):
    tl.store(array + rows[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :], values)


@triton.jit
def applied(
    x, rows, row_bias, column_bias, values, count,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """sum_j exp(x_ij + row_bias_i + column_bias_j) values_j for a strip of rows."""
    bias = tl.load(row_bias + rows)
    sums = tl.zeros((rows.shape[0], WIDTH), tl.float32)
    for column in range(0, count, CHUNK):
        columns = column + tl.arange(0, CHUNK)
        exponents = bias[:, None] + tl.load(column_bias + columns)[None, :]
        weights = tl.exp2(tile_of(x, rows, columns, SIZE) + exponents)
        sums = add_product(sums, weights, array_of(values, columns, WIDTH), PRECISION)
    return sums
