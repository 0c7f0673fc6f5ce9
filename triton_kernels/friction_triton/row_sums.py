"""The first pass of a row softmax loss: sums over columns, and what they make of a row."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.online_softmax import (
    log_mixture,
    log_softmax,
    log_sum,
    no_softmax,
    store_normaliser,
    store_softmax,
    weighted,
    with_split,
    with_tile,
    with_weighted,
)
from friction_triton.row_form import (
    CHOSEN,
    COUNTED,
    ENTROPY,
    LOSS,
    LSE,
    NUMBER,
    OF_OTHERS,
    OF_SOFT,
    OF_STUDENT,
    OF_TEACHER,
    OTHERS,
    OWN,
    SOFT,
    STUDENT,
    SUMS,
    TEACHER,
)
from friction_triton.row_scores import student_tile, taking_part, teacher_tile

ARGUMENTS = [  # that are not specialised
    "first_row", "num_rows", "num_columns", "row_stride", "column_stride", "blocks_per_split",
]  # fmt: skip


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=["mask"])
def row_sums_kernel(
    x,  # (num_rows, dim); without w, the stored products
    w,  # (num_columns, dim)
    dim,
    scale,  # (1,) float32
    bias,  # (num_columns,) float32
    softcap,
    x_teacher,
    w_teacher,
    dim_teacher,
    scale_teacher,
    bias_teacher,
    mask,  # (num_rows, num_columns) uint8
    row_stride,
    column_stride,
    labels,  # (num_rows,) int64
    labels_of_columns,  # (num_columns,) int64
    inverse_temperature,
    result,  # (splits, SUMS, num_rows) float32
    first_row,
    num_rows,
    num_columns,
    blocks_per_split,
    FORM: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """What each split of the columns contributes to BLOCK_M rows: softmaxes and the target's sums."""
    row, split = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    rows = row + tl.arange(0, BLOCK_M)
    student, soft = no_softmax(BLOCK_M), no_softmax(BLOCK_M)
    teacher, others = no_softmax(BLOCK_M), no_softmax(BLOCK_M)
    chosen, number = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    if FORM.hard != "none":
        label = tl.load(labels + rows, mask=rows < num_rows, other=-1)
    first_block = split * blocks_per_split
    last_block = tl.minimum(first_block + blocks_per_split, tl.cdiv(num_columns, BLOCK_N))
    for block in range(first_block, last_block):
        column = block * BLOCK_N
        columns = column + tl.arange(0, BLOCK_N)
        present = taking_part(
            mask, row_stride, column_stride, first_row, rows, columns, num_rows, num_columns, FORM
        )
        z, _ = student_tile(
            x, w, dim, scale, bias, softcap, present, row, column, num_rows, num_columns,
            BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        student, p = with_tile(student, z, FORM.entropy)
        if FORM.hard == "index":
            hit = columns[None, :] == label[:, None]
            chosen += tl.sum(tl.where(hit, z, 0.0), axis=1)
            if FORM.smoothed:
                number += tl.sum(tl.where(present, z, 0.0), axis=1)
        if FORM.hard == "labels":
            of_columns = tl.load(labels_of_columns + columns, mask=columns < num_columns, other=0)
            positive = (of_columns[None, :] == label[:, None]) & (z != float("-inf"))
            chosen += tl.sum(tl.where(positive, z, 0.0), axis=1)
            number += tl.sum(positive.to(tl.float32), axis=1)
        if FORM.soft != "none":
            z_t = teacher_tile(
                x_teacher, w_teacher, dim_teacher, scale_teacher, bias_teacher, present, row, column,
                num_rows, num_columns, FORM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
            )  # fmt: skip
            teacher, q = with_tile(teacher, z_t)
            if FORM.tempered:
                z *= inverse_temperature
                soft, p = with_tile(soft, z)
            if FORM.soft == "ce":
                teacher = with_weighted(teacher, q, -z)
            if FORM.soft == "kl":
                teacher = with_weighted(teacher, q, z_t - z)
            if FORM.soft == "reverse_kl":
                if FORM.tempered:
                    soft = with_weighted(soft, p, z_t - z)
                else:
                    student = with_weighted(student, p, z_t - z)
            if FORM.rest == "bucket":
                others, _ = with_tile(others, tl.where(z_t == float("-inf"), z, float("-inf")))
    mask_rows = rows < num_rows
    result += split.to(tl.int64) * SUMS * num_rows + rows
    store_softmax(result + STUDENT * num_rows, num_rows, student, mask_rows)
    if FORM.tempered:
        store_softmax(result + SOFT * num_rows, num_rows, soft, mask_rows)
    if FORM.soft != "none":
        store_softmax(result + TEACHER * num_rows, num_rows, teacher, mask_rows)
    if FORM.rest == "bucket":
        store_softmax(result + OTHERS * num_rows, num_rows, others, mask_rows)
    if FORM.hard != "none":
        tl.store(result + CHOSEN * num_rows, chosen, mask=mask_rows)
        tl.store(result + NUMBER * num_rows, number, mask=mask_rows)


@triton.jit
def soft_loss(soft, teacher, others, FORM: tl.constexpr):
    """The divergence from a teacher, and the mean that its derivative subtracts."""
    soft_lse, teacher_lse, others_lse = log_sum(soft), log_sum(teacher), log_sum(others)
    mean = tl.zeros(soft_lse.shape, tl.float32)
    if FORM.soft == "jsd":  # its mixture takes normalised probabilities: another pass
        return mean, mean
    elif FORM.soft == "reverse_kl":
        mean = soft[3] / soft[1]
        return (teacher_lse - soft_lse) - mean, mean
    else:
        loss = teacher[3] / teacher[1] + soft_lse
        if FORM.rest == "drop" or FORM.rest == "bucket":
            mass = tl.exp(teacher_lse)
            loss = tl.where(mass > 0, mass * loss, 0.0)
            if FORM.rest == "bucket":
                left = tl.maximum(1 - mass, 0.0)
                of_others = left * (soft_lse - others_lse)
                if FORM.soft == "kl":
                    of_others += left * tl.log(left)
                loss += tl.where(left > 0, of_others, 0.0)
        elif FORM.soft == "kl":
            loss -= teacher_lse
        return loss, mean


@triton.jit(do_not_specialize=["num_rows", "num_splits", "num_columns", "ignore_index"])
def row_losses_kernel(
    sums,  # (splits, SUMS, num_rows) float32
    labels,  # (num_rows,) int64
    result,  # (FOUND, num_rows) float32
    num_rows,
    num_splits,
    num_columns,
    ignore_index,
    smoothing,
    constant,  # that the loss of a label is higher by
    inverse_temperature,
    hard_weight,
    soft_weight,  # of the derivative
    FORM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The splits' sums in order, and what a row's loss and its derivatives need of them."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = rows < num_rows
    student, soft = no_softmax(BLOCK), no_softmax(BLOCK)
    teacher, others = no_softmax(BLOCK), no_softmax(BLOCK)
    chosen, number = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    sums += rows
    for _ in range(num_splits):
        student = with_split(student, sums + STUDENT * num_rows, num_rows, mask)
        if FORM.tempered:
            soft = with_split(soft, sums + SOFT * num_rows, num_rows, mask)
        if FORM.soft != "none":
            teacher = with_split(teacher, sums + TEACHER * num_rows, num_rows, mask)
        if FORM.rest == "bucket":
            others = with_split(others, sums + OTHERS * num_rows, num_rows, mask)
        if FORM.hard != "none":
            chosen += tl.load(sums + CHOSEN * num_rows, mask=mask, other=0.0)
            number += tl.load(sums + NUMBER * num_rows, mask=mask, other=0.0)
        sums += SUMS * num_rows
    lse = log_sum(student)
    counted = lse != float("-inf")  # NaN counts, and shows
    loss = tl.zeros((BLOCK,), tl.float32)
    own = tl.zeros((BLOCK,), tl.float32)
    if FORM.hard == "index":
        label = tl.load(labels + rows, mask=mask, other=0)
        counted = counted & (label != ignore_index)
        of_label = lse - (1 - smoothing) * chosen + constant
        if FORM.smoothed:
            of_label -= smoothing * (number / num_columns)
        loss += tl.where(hard_weight > 0, hard_weight * of_label, 0.0)
    if FORM.hard == "labels":
        counted = counted & (number > 0)
        own = 1 / tl.maximum(number, 1.0)
        loss += lse - own * chosen
        if FORM.kl:
            loss += tl.log(own)
    if FORM.soft != "none":
        if not FORM.tempered:
            soft = student
        of_soft, own = soft_loss(soft, teacher, others, FORM)
        loss += soft_weight / inverse_temperature * of_soft
    result += rows
    tl.store(result + LOSS * num_rows, tl.where(counted, loss, 0.0), mask=mask)
    tl.store(result + LSE * num_rows, lse, mask=mask)
    if FORM.entropy:
        entropy = tl.log(student[1]) - student[2] / student[1]
        entropy = tl.where(lse == float("-inf"), 0.0, entropy)
        tl.store(result + ENTROPY * num_rows, entropy, mask=mask)
    tl.store(result + COUNTED * num_rows, counted.to(tl.float32), mask=mask)
    tl.store(result + OWN * num_rows, own, mask=mask)
    store_normaliser(result + OF_STUDENT * num_rows, num_rows, student, mask)
    store_normaliser(result + OF_SOFT * num_rows, num_rows, soft, mask)
    store_normaliser(result + OF_TEACHER * num_rows, num_rows, teacher, mask)
    store_normaliser(result + OF_OTHERS * num_rows, num_rows, others, mask)


@triton.jit(do_not_specialize=ARGUMENTS, do_not_specialize_on_alignment=["mask"])
def row_mixture_kernel(
    x, w, dim, scale, bias, softcap,
    x_teacher, w_teacher, dim_teacher, scale_teacher, bias_teacher,
    mask, row_stride, column_stride, inverse_temperature, beta,
    found,  # (FOUND, num_rows) float32
    result,  # (splits, 2, num_rows) float32
    first_row, num_rows, num_columns, blocks_per_split,
    FORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """KL(p, m) and KL(q, m) of each split, with the mixture m; other arguments as of row_sums_kernel."""
    row, split = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    rows = row + tl.arange(0, BLOCK_M)
    of_p, of_q = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M,), tl.float32)
    first_block = split * blocks_per_split
    last_block = tl.minimum(first_block + blocks_per_split, tl.cdiv(num_columns, BLOCK_N))
    for block in range(first_block, last_block):
        column = block * BLOCK_N
        columns = column + tl.arange(0, BLOCK_N)
        present = taking_part(
            mask, row_stride, column_stride, first_row, rows, columns, num_rows, num_columns, FORM
        )
        z, _ = student_tile(
            x, w, dim, scale, bias, softcap, present, row, column, num_rows, num_columns,
            BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        z_t = teacher_tile(
            x_teacher, w_teacher, dim_teacher, scale_teacher, bias_teacher, present, row, column,
            num_rows, num_columns, FORM, BLOCK_M, BLOCK_N, BLOCK_D, PRECISION,
        )  # fmt: skip
        log_p = log_softmax(z * inverse_temperature, found, OF_SOFT, rows, num_rows)
        log_q = log_softmax(z_t, found, OF_TEACHER, rows, num_rows)
        log_m = log_mixture(log_p, log_q, beta)
        of_p += weighted(tl.exp(log_p), log_p - log_m)
        of_q += weighted(tl.exp(log_q), log_q - log_m)
    result += split.to(tl.int64) * 2 * num_rows + rows
    tl.store(result, of_p, mask=rows < num_rows)
    tl.store(result + num_rows, of_q, mask=rows < num_rows)
