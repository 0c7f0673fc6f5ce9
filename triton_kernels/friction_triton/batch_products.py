"""The products of a batch over its d channels, on many multiprocessors: z z^T before the solve, G z after it.

Both kernels share the scratch memory of batch_kernel.
"""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.batch_graph import VECTORS, tile_of
from friction_triton.tiles import LOG2_E, add_product, half

SMALLEST: tl.constexpr = tl.constexpr(2.0**-126)  # smallest normal number


@triton.jit
def block_of(embeddings, rows, channels, count, dim):
    """e_ik for index tensors rows, channels that broadcast; 0 beyond count and dim."""
    mask = (rows < count) & (channels < dim)
    return tl.load(embeddings + rows * dim + channels, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def inverse_lengths(embeddings, rows, count, dim, BLOCK_D: tl.constexpr):
    """1 / |e_i|; 0 for rows of zeros and rows beyond count.

    Rows are scaled before squaring, so that none is too long or too short.
    """
    steps = tl.arange(0, BLOCK_D)[None, :]
    largest = tl.zeros((rows.shape[0],), tl.float32)
    for start in range(0, dim, BLOCK_D):
        e = block_of(embeddings, rows[:, None], start + steps, count, dim)
        largest = tl.maximum(largest, tl.max(tl.abs(e), axis=1))
    # Scale by a power of two, which is exact.
    exponent = tl.maximum(largest, SMALLEST).to(tl.int32, bitcast=True) >> 23
    scale = ((254 - tl.minimum(exponent, 253)) << 23).to(tl.float32, bitcast=True)
    squares = tl.zeros((rows.shape[0],), tl.float32)
    for start in range(0, dim, BLOCK_D):
        e = block_of(embeddings, rows[:, None], start + steps, count, dim) * scale[:, None]
        squares += tl.sum(e * e, axis=1)
    inverse = scale / tl.sqrt(tl.maximum(squares, SMALLEST))
    return tl.where(largest >= SMALLEST, inverse, 0.0)


@triton.jit(do_not_specialize=["count"])
def batch_similarities_kernel(
    embeddings,  # (count, dim)
    inverse_sigma_squared,  # (1,) float32
    scratch,  # batch.scratch_size float32: x and 1 / |e_i| are written
    count,
    dim,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x_ij = z_i . z_j / sigma^2 in base 2, -inf on the diagonal and in columns beyond count.

    z_i = e_i / |e_i|, in bfloat16 if HALF. One program computes BLOCK rows and columns.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    of_rows = inverse_lengths(embeddings, rows, count, dim, BLOCK_D)
    of_columns = inverse_lengths(embeddings, columns, count, dim, BLOCK_D)
    if tl.program_id(1) == 0:
        tl.store(scratch + rows, of_rows)
    steps = tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, dim, BLOCK_D):
        left = block_of(embeddings, rows[:, None], start + steps[None, :], count, dim)
        left *= of_rows[:, None]
        right = block_of(embeddings, columns[None, :], start + steps[:, None], count, dim)
        right *= of_columns[None, :]
        if HALF:
            sums = add_product(sums, half(left), half(right), PRECISION)
        else:
            sums = add_product(sums, left, right, PRECISION)
    absent = (rows[:, None] == columns[None, :]) | (columns >= count)[None, :]
    tile = tl.where(absent, float("-inf"), sums * (tl.load(inverse_sigma_squared) * LOG2_E))
    tl.store(scratch + VECTORS * SIZE + rows[:, None] * SIZE + columns[None, :], tile)


@triton.jit(do_not_specialize=["count"])
def batch_gradient_kernel(
    embeddings,  # (count, dim)
    grad_embeddings,  # (count, dim) float32
    scratch,  # with 1 / |e_i|, z_i . dL/dz_i, and G in place of x
    count,
    dim,
    SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dL/dz_i = sum_j G_ij z_j. dL/de_i is its part orthogonal to z_i, divided by |e_i|.

    One program computes BLOCK_M rows and BLOCK_N channels.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    channels = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for column in range(0, count, CHUNK):
        columns = column + tl.arange(0, CHUNK)
        z = block_of(embeddings, columns[:, None], channels, count, dim)
        z *= tl.load(scratch + columns)[:, None]
        g = tile_of(scratch + VECTORS * SIZE, rows, columns, SIZE)
        g = tl.where((columns < count)[None, :], g, 0.0)
        sums = add_product(sums, g, z, PRECISION)
    length = tl.load(scratch + rows)[:, None]
    along = tl.load(scratch + SIZE + rows)[:, None]
    own = block_of(embeddings, rows[:, None], channels, count, dim) * length
    tl.store(
        grad_embeddings + rows[:, None] * dim + channels,
        length * (sums - own * along),
        mask=(rows < count)[:, None] & (channels < dim),
    )
