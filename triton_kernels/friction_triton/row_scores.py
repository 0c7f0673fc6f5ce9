"""A tile of the scores of a row softmax loss: computed, or loaded where a product has stored them."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.tiles import dots


@triton.jit
def raw_scores(
    x, w, dim, row, column, num_rows, num_columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """x_i . w_j; without w, x has these products, in rows of which each starts dim after the one before."""
    if w is not None:
        return dots(
            x, w, row, column, num_rows, num_columns, dim, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
        )
    else:
        rows, columns = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
        present = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        return tl.load(
            x + rows[:, None].to(tl.int64) * dim + columns[None, :], mask=present, other=0.0
        )


@triton.jit
def with_bias(z, bias, columns, num_columns):
    if bias is not None:
        z += tl.load(bias + columns, mask=columns < num_columns, other=0.0)[None, :]
    return z


@triton.jit
def taking_part(
    mask, row_stride, column_stride, first_row, rows, columns, num_rows, num_columns,
    FORM: tl.constexpr,
):  # fmt: skip
    """Which columns take part in which rows; row 0 of these is first_row of all."""
    present = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    everywhere = first_row + rows
    if FORM.mask == "causal":
        present = present & (columns[None, :] <= everywhere[:, None])
    if FORM.mask == "diagonal" or FORM.excludes_diagonal:
        present = present & (columns[None, :] != everywhere[:, None])
    if FORM.mask == "stored":
        offsets = rows[:, None].to(tl.int64) * row_stride
        offsets += columns[None, :].to(tl.int64) * column_stride
        present = present & (tl.load(mask + offsets, mask=present, other=0) != 0)
    return present


@triton.jit
def tanh(y):
    """From an exponential, and near 0, where that would cancel, from the series."""
    square = y * y
    series = y * (1 + square * (-1 / 3 + square * (2 / 15 - square * (17 / 315))))
    return tl.where(tl.abs(y) < 0.1, series, 1 - 2 / (1 + tl.exp(2 * y)))


@triton.jit
def capped(z, softcap):
    """The capped scores, and their derivative by the scores."""
    if softcap is not None:
        bounded = tanh(z / softcap)
        return softcap * bounded, 1 - bounded * bounded
    else:
        return z, tl.full(z.shape, 1.0, tl.float32)


@triton.jit
def student_tile(
    x, w, dim, scale, bias, softcap, present, row, column, num_rows, num_columns,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """scale * x_i . w_j + bias_j, capped, -inf where a column takes no part; and the cap's derivative."""
    columns = column + tl.arange(0, BLOCK_N)
    z = tl.load(scale) * raw_scores(
        x, w, dim, row, column, num_rows, num_columns, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    z, slope = capped(with_bias(z, bias, columns, num_columns), softcap)
    return tl.where(present, z, float("-inf")), slope


@triton.jit
def teacher_tile(
    x, w, dim, scale, bias, present, row, column, num_rows, num_columns, FORM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A teacher's scores, -inf where a column takes no part, or its stored log-probabilities."""
    columns = column + tl.arange(0, BLOCK_N)
    z = scale * raw_scores(
        x, w, dim, row, column, num_rows, num_columns, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION
    )
    z = with_bias(z, bias, columns, num_columns)
    if FORM.rest != "scores":  # a mask is the student's
        present = tl.broadcast_to((columns < num_columns)[None, :], z.shape)
    return tl.where(present, z, float("-inf"))
