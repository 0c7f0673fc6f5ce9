"""The graph of one batch, inside one program: similarities in scratch memory, and passes over them.

All N x N and N x C arrays are in scratch memory, which stays in the L2 cache. They are traversed in strips of
rows, by chunks of columns, so registers hold no more than that. Logarithms are in base 2. Functions end with
a barrier if other threads read what they wrote.
"""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import LOG2_E, add_product, half

SMALLEST: tl.constexpr = tl.constexpr(2.0**-126)  # smallest normal number


@triton.jit
def inverse_lengths(embeddings, result, count, dim, STRIP: tl.constexpr, BLOCK_D: tl.constexpr):
    """result_i = 1 / |e_i|; 0 for rows of zeros and rows beyond count.

    Rows are scaled before squaring, so that none is too long or too short.
    """
    steps = tl.arange(0, BLOCK_D)
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        largest = tl.zeros((STRIP,), tl.float32)
        for start in range(0, dim, BLOCK_D):
            e = block_of(embeddings, rows, start + steps, count, dim)
            largest = tl.maximum(largest, tl.max(tl.abs(e), axis=1))
        # Scale by a power of two, which is exact.
        exponent = tl.maximum(largest, SMALLEST).to(tl.int32, bitcast=True) >> 23
        scale = ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)
        squares = tl.zeros((STRIP,), tl.float32)
        for start in range(0, dim, BLOCK_D):
            e = block_of(embeddings, rows, start + steps, count, dim) * scale[:, None]
            squares += tl.sum(e * e, axis=1)
        inverse = scale / tl.sqrt(tl.maximum(squares, SMALLEST))
        tl.store(result + rows, tl.where(largest >= SMALLEST, inverse, 0.0))
    tl.debug_barrier()


@triton.jit
def block_of(embeddings, rows, channels, count, dim):
    mask = (rows < count)[:, None] & (channels < dim)[None, :]
    offsets = rows[:, None] * dim + channels[None, :]
    return tl.load(embeddings + offsets, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def directions(embeddings, inverse_length, rows, channels, count, dim, HALF: tl.constexpr):
    """z_ik = e_ik / |e_i| for index tensors rows, channels that broadcast; bfloat16 if HALF."""
    mask = (rows < count) & (channels < dim)
    e = tl.load(embeddings + rows * dim + channels, mask=mask, other=0.0).to(tl.float32)
    z = e * tl.load(inverse_length + rows)
    return half(z) if HALF else z


@triton.jit
def similarities(
    embeddings, inverse_length, inverse_sigma_squared, x, count, dim,
    SIZE: tl.constexpr, STRIP: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    HALF: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x_ij = z_i . z_j / sigma^2 in base 2, -inf on the diagonal and in columns beyond count."""
    steps = tl.arange(0, BLOCK_D)
    scale = tl.load(inverse_sigma_squared) * LOG2_E
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        for column in range(0, count, BLOCK_N):
            columns = column + tl.arange(0, BLOCK_N)
            sums = tl.zeros((STRIP, BLOCK_N), tl.float32)
            for start in range(0, dim, BLOCK_D):
                left = directions(
                    embeddings, inverse_length, rows[:, None], start + steps[None, :],
                    count, dim, HALF,
                )  # fmt: skip
                right = directions(
                    embeddings, inverse_length, columns[None, :], start + steps[:, None],
                    count, dim, HALF,
                )  # fmt: skip
                sums = add_product(sums, left, right, PRECISION)
            absent = (rows[:, None] == columns[None, :]) | (columns >= count)[None, :]
            tile = tl.where(absent, float("-inf"), sums * scale)
            tl.store(x + rows[:, None] * SIZE + columns[None, :], tile)
    tl.debug_barrier()


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
