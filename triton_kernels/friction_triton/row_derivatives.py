"""The second pass of a row softmax loss: its derivatives by the scores of some rows."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.online_softmax import log_mixture, log_softmax
from friction_triton.row_form import (
    COUNTED,
    OF_OTHERS,
    OF_SOFT,
    OF_STUDENT,
    OF_TEACHER,
    OWN,
)
from friction_triton.row_scores import student_tile, taking_part, teacher_tile
from friction_triton.row_sums import ARGUMENTS
from friction_triton.tiles import half


@triton.jit
def found_at(found, INDEX: tl.constexpr, rows, num_rows):
    """A column of what was found of rows."""
    return tl.load(found + INDEX * num_rows + rows, mask=rows < num_rows, other=0.0)[:, None]


@triton.jit
def rounded(value, TYPE: tl.constexpr):
    return half(value) if tl.bfloat16 == TYPE else value.to(TYPE)


@triton.jit
def of_labels(
    z, labels, labels_of_columns, found, smoothing, rows, columns, num_rows, num_columns,
    FORM: tl.constexpr,
):  # fmt: skip
    """p - q, where q is of a label or of the columns of one."""
    label = tl.load(labels + rows, mask=rows < num_rows, other=-1)[:, None]
    p = tl.exp(log_softmax(z, found, OF_STUDENT, rows, num_rows))
    if FORM.hard == "index":
        p -= tl.where(columns[None, :] == label, 1 - smoothing, 0.0)
        if FORM.smoothed:
            p -= smoothing / num_columns
        return p
    else:
        of_columns = tl.load(labels_of_columns + columns, mask=columns < num_columns, other=0)
        positive = (of_columns[None, :] == label) & (z != float("-inf"))
        return p - tl.where(positive, found_at(found, OWN, rows, num_rows), 0.0)


@triton.jit
def of_teacher(z, z_t, found, beta, rows, num_rows, FORM: tl.constexpr):
    """By z / temperature, from a teacher's scores or from stored log-probabilities."""
    log_p = log_softmax(z, found, OF_SOFT, rows, num_rows)
    p = tl.exp(log_p)
    if FORM.soft == "jsd" or FORM.soft == "reverse_kl":
        mean = found_at(found, OWN, rows, num_rows)
        if FORM.soft == "jsd":
            log_q = log_softmax(z_t, found, OF_TEACHER, rows, num_rows)
            apart = (1 - beta) * (log_p - log_mixture(log_p, log_q, beta) - mean)
        else:
            apart = mean - (z_t - z)
        return tl.where(p == 0, 0.0, p * apart)
    elif FORM.rest == "drop" or FORM.rest == "bucket":
        largest = found_at(found, OF_TEACHER, rows, num_rows)
        mass = tl.exp(largest + found_at(found, OF_TEACHER + 1, rows, num_rows))
        if FORM.rest == "drop":
            return mass * p - tl.exp(z_t)
        else:
            left = tl.maximum(1 - mass, 0.0)
            others = left * tl.exp(log_softmax(z, found, OF_OTHERS, rows, num_rows))
            return (mass + left) * p - tl.where(z_t == float("-inf"), others, tl.exp(z_t))
    else:
        return p - tl.exp(log_softmax(z_t, found, OF_TEACHER, rows, num_rows))


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=["mask"])
def row_derivatives_kernel(
    x, w, dim, scale, bias, softcap,
    x_teacher, w_teacher, dim_teacher, scale_teacher, bias_teacher,
    mask, row_stride, column_stride, labels, labels_of_columns,
    smoothing, inverse_temperature, hard_weight, soft_weight, beta,
    found,  # (FOUND, num_rows) float32
    factors,  # (num_rows,) float32, of the rows in the sum that is differentiated
    result,  # (num_rows, pitch)
    pitch, first_row, num_rows, num_columns,
    FORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dL/d(scale * x_i . w_j + bias_j), 0 in rows that do not count; arguments as of row_sums_kernel."""
    # Concurrent programs share columns, which are then read from the cache.
    row_blocks = tl.cdiv(num_rows, BLOCK_M)
    row = tl.program_id(0) % row_blocks * BLOCK_M
    column = tl.program_id(0) // row_blocks * BLOCK_N
    rows, columns = row + tl.arange(0, BLOCK_M), column + tl.arange(0, BLOCK_N)
    present = taking_part(
        mask, row_stride, column_stride, first_row, rows, columns, num_rows, num_columns, FORM
    )
    z, slope = student_tile(
        x, w, dim, scale, bias, softcap, present, row, column, num_rows, num_columns,
        BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
    )  # fmt: skip
    g = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if FORM.hard != "none":
        g += hard_weight * of_labels(
            z, labels, labels_of_columns, found, smoothing, rows, columns, num_rows, num_columns, FORM
        )  # fmt: skip
    if FORM.soft != "none":
        z_t = teacher_tile(
            x_teacher, w_teacher, dim_teacher, scale_teacher, bias_teacher, present, row, column,
            num_rows, num_columns, FORM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        g += soft_weight * of_teacher(
            z * inverse_temperature, z_t, found, beta, rows, num_rows, FORM
        )
    g *= slope
    if factors is not None:
        g *= tl.load(factors + rows, mask=rows < num_rows, other=0.0)[:, None]
    g = tl.where(found_at(found, COUNTED, rows, num_rows) > 0, g, 0.0)
    offsets = rows[:, None].to(tl.int64) * pitch + columns[None, :]
    inside = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
    tl.store(result + offsets, rounded(g, result.dtype.element_ty), mask=inside)
