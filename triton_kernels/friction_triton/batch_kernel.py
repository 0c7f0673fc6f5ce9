"""G-Loss of one batch and dL/dx in one program."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_triton.batch_graph import (
    VECTORS,
    applied,
    array_of,
    log_sums,
    set_array,
    tile_of,
)
from friction_triton.batch_loss import loss_and_slopes
from friction_triton.batch_solver import leave_out_unreached, solve
from friction_triton.tiles import LN_2, add_product


@triton.jit(do_not_specialize=["count", "num_classes", "tol", "max_iter", "ignore_index"])
def batch_kernel(
    labels,  # (count,) int64
    labelled,  # (count,) bool
    class_weight,  # (num_classes,) float32, read if WEIGHTED
    inverse_sigma_squared,  # (1,) float32
    results,  # (9,) float32: loss, dL/d(1/sigma^2), and the statistics of batch.batch_gloss
    propagated,  # (count, num_classes) float32, written if WANTED
    scratch,  # batch.scratch_size float32, with x; z_i . dL/dz_i and G in place of x are written
    count,
    num_classes,
    tol,
    max_iter,
    ignore_index,
    SIZE: tl.constexpr,  # a power of two, at least count
    WIDTH: tl.constexpr,  # a power of two, at least num_classes
    STRIP: tl.constexpr,
    CHUNK: tl.constexpr,
    LOG_FORM: tl.constexpr,
    WEIGHTED: tl.constexpr,
    WANTED: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
):
    """F_U = (I - T_UU)^(-1) T_UL Y_L;  L = mean_i w_yi nll(F_i, y_i) over i in U;  dL/de, dL/d(1/sigma^2).

    T_ij = exp(x_ij - log u_j - log r_i) with x_ij = z_i . z_j / sigma^2; see friction_kernels/graph for the
    equations. Nodes are not reordered: U and L are masks, encoded as -inf in the biases.
    """
    along = scratch + SIZE  # scratch itself has 1 / |e_i|
    log_degree = along + SIZE
    log_u = log_degree + SIZE
    log_r = log_u + SIZE
    minus_log_u = log_r + SIZE
    from_labelled = minus_log_u + SIZE  # column biases of T: -log u_j, or -inf
    to_unlabelled = from_labelled + SIZE  # row biases of T: -log r_i, or -inf
    from_unlabelled = to_unlabelled + SIZE
    weight = from_unlabelled + SIZE  # of the inner product in which T_UU or T_UU^T is self-adjoint
    unknown = weight + SIZE  # 1 in U, else 0
    delta = unknown + SIZE
    of_log_u = delta + SIZE
    of_log_degree = of_log_u + SIZE
    measured = of_log_degree + SIZE  # 1 in U, except for nodes that no label reaches
    x = scratch + VECTORS * SIZE
    array: tl.constexpr = SIZE * WIDTH
    f = x + SIZE * SIZE
    image = f + array  # T F, followed by the same for the adjoint
    b = image + 2 * array
    solution = b + array  # F_U, later the adjoint
    work = solution + array

    everyone = tl.arange(0, SIZE)
    classes = tl.arange(0, WIDTH)
    exists = everyone < count
    is_labelled = exists & (tl.load(labelled + everyone, mask=exists, other=0) != 0)
    is_unknown = exists & (tl.load(labelled + everyone, mask=exists, other=1) == 0)

    # The graph's three normalisers.
    log_sums(x, log_degree, 0, log_degree, count, SIZE, STRIP, CHUNK)
    log_sums(x, log_degree, -0.5, log_u, count, SIZE, STRIP, CHUNK)
    log_sums(x, log_u, -1, log_r, count, SIZE, STRIP, CHUNK)
    u, r = tl.load(log_u + everyone), tl.load(log_r + everyone)
    log_weight = tl.where(is_unknown, r - u, float("-inf"))
    tl.store(minus_log_u + everyone, tl.where(exists, -u, float("-inf")))
    tl.store(from_unlabelled + everyone, tl.where(is_unknown, -u, float("-inf")))
    tl.store(from_labelled + everyone, tl.where(is_labelled, -u, float("-inf")))
    tl.store(to_unlabelled + everyone, tl.where(is_unknown, -r, float("-inf")))
    tl.store(weight + everyone, tl.exp2(log_weight - tl.max(log_weight)))
    tl.store(unknown + everyone, is_unknown.to(tl.float32))
    tl.store(measured + everyone, is_unknown.to(tl.float32))
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        row_exists = rows < count
        known = tl.load(labelled + rows, mask=row_exists, other=0) != 0
        its = tl.load(labels + rows, mask=row_exists, other=0)
        one_hot = (its[:, None] == classes[None, :]) & known[:, None]
        set_array(f, rows, one_hot.to(tl.float32), WIDTH)
    tl.debug_barrier()

    # b = T_UL Y_L, then F_U = T_UU F_U + b.
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        known = applied(
            x, rows, to_unlabelled, from_labelled, f, count, SIZE, WIDTH, CHUNK, VALUE_PRECISION
        )
        set_array(b, rows, known, WIDTH)
    tl.debug_barrier()
    scale = 1.0
    num_left_out = 0.0
    for phase in range(3):
        # F_U = T_UU F_U + b; again without the nodes that no label reaches, if these prevented convergence;
        # then the adjoint l = T_UU^T l + dL/dF.
        adjoint = phase // 2
        if (phase != 1) | (num_left_out > 0):
            iterations, error, residual = solve(
                x, to_unlabelled + adjoint * SIZE, from_unlabelled - adjoint * SIZE, weight, measured,
                b, solution, image + adjoint * array, work, scale, phase == 2, tol, max_iter, count,
                SIZE, STRIP, WIDTH, CHUNK, VALUE_PRECISION,
            )  # fmt: skip
            if phase == 2:
                tl.store(results + 8, error)
            else:
                tl.store(results + 2, iterations.to(tl.float32))
                tl.store(results + 3, residual)
                tl.store(results + 7, error)
                if (phase == 0) & (error > tol):
                    num_left_out = leave_out_unreached(
                        x, to_unlabelled, from_unlabelled, weight, unknown, measured, log_u, log_r, b,
                        work, count, SIZE, STRIP, WIDTH, CHUNK, VALUE_PRECISION,
                    )  # fmt: skip
        if phase == 1:
            scale = loss_and_slopes(
                labels, class_weight, results, propagated, solution, f, b,
                log_u, log_r, from_unlabelled, weight, unknown, count, num_classes, ignore_index,
                SIZE, STRIP, WIDTH, LOG_FORM, WEIGHTED, WANTED,
            )  # fmt: skip

    # dL/dlog u_j = (T^T delta)_j - F_j . (T^T l)_j with delta_i = l_i . (T F)_i.
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        product = array_of(solution, rows, WIDTH) * array_of(image, rows, WIDTH)
        tl.store(delta + rows, tl.sum(product, axis=1))
    tl.debug_barrier()
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        pulled = applied(
            x, rows, minus_log_u, to_unlabelled, solution, count,
            SIZE, WIDTH, CHUNK, VALUE_PRECISION,
        )  # fmt: skip
        bias = tl.load(minus_log_u + rows)[:, None]
        slope = -tl.sum(array_of(f, rows, WIDTH) * pulled, axis=1)
        for column in range(0, count, CHUNK):
            columns = column + tl.arange(0, CHUNK)
            weights = tl.exp2(
                tile_of(x, rows, columns, SIZE) + (bias + tl.load(to_unlabelled + columns)[None, :])
            )
            slope += tl.sum(weights * tl.load(delta + columns)[None, :], axis=1)
        tl.store(of_log_u + rows, tl.where(rows < count, slope, 0.0))
    tl.debug_barrier()
    # dL/dlog deg_j = -1/2 sum_i P_ij dL/dlog u_i.
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        bias = -0.5 * tl.load(log_degree + rows)[:, None]
        slope = tl.zeros((STRIP,), tl.float32)
        for column in range(0, count, CHUNK):
            columns = column + tl.arange(0, CHUNK)
            weights = tl.exp2(
                tile_of(x, rows, columns, SIZE) + (bias + tl.load(minus_log_u + columns)[None, :])
            )
            slope += tl.sum(weights * tl.load(of_log_u + columns)[None, :], axis=1)
        tl.store(of_log_degree + rows, tl.where(rows < count, -0.5 * slope, 0.0))
    tl.debug_barrier()

    # Overwrite x with G, and sum z_i . dL/dz_i = sum_j G_ij z_i . z_j, which gives dL/d(1/sigma^2).
    inverse = tl.load(inverse_sigma_squared)
    along_sum = 0.0
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        along_rows = tl.zeros((STRIP,), tl.float32)
        degree_i, u_i = tl.load(log_degree + rows)[:, None], tl.load(log_u + rows)[:, None]
        r_i, delta_i = tl.load(log_r + rows)[:, None], tl.load(delta + rows)[:, None]
        of_degree_i = tl.load(of_log_degree + rows)[:, None]
        of_u_i = tl.load(of_log_u + rows)[:, None]
        adjoint_i, f_i = array_of(solution, rows, WIDTH), array_of(f, rows, WIDTH)
        for column in range(0, count, CHUNK):
            columns = column + tl.arange(0, CHUNK)
            tile = tile_of(x, rows, columns, SIZE)
            degree_j = tl.load(log_degree + columns)[None, :]
            u_j = tl.load(log_u + columns)[None, :]
            g = tl.exp2(tile - degree_i) * of_degree_i
            g += tl.exp2(tile - degree_j) * tl.load(of_log_degree + columns)[None, :]
            g += tl.exp2(tile - (0.5 * degree_j + u_i)) * of_u_i
            g += tl.exp2(tile - (0.5 * degree_i + u_j)) * tl.load(of_log_u + columns)[None, :]
            nothing = tl.zeros((STRIP, CHUNK), tl.float32)
            f_j = tl.trans(array_of(f, columns, WIDTH))
            inner = add_product(nothing, adjoint_i, f_j, VALUE_PRECISION) - delta_i
            g += tl.exp2(tile - (u_j + r_i)) * inner
            adjoint_j = tl.trans(array_of(solution, columns, WIDTH))
            inner = add_product(nothing, f_i, adjoint_j, VALUE_PRECISION)
            inner -= tl.load(delta + columns)[None, :]
            g += tl.exp2(tile - (u_i + tl.load(log_r + columns)[None, :])) * inner
            present = (tile > float("-inf")) & (rows < count)[:, None]
            along_rows += tl.sum(tl.where(present, g * tile, 0.0), axis=1)
            g = tl.where(present, g, 0.0) * inverse
            tl.store(x + rows[:, None] * SIZE + columns[None, :], g)
        along_rows *= LN_2
        tl.store(along + rows, along_rows)
        along_sum += tl.sum(along_rows)
    tl.store(results + 1, along_sum / (2 * inverse))
