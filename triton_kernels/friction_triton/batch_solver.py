"""v = A v + b inside one program: conjugate gradients, then plain propagation.

A_ij = exp(x_ij + row_bias_i + column_bias_j) is T_UU or its transpose, self-adjoint in the inner product
with the weights pi (T_UU) or 1 / pi. friction_kernels/graph/solvers.py explains the method: the unknowns do
not overflow for any sigma, and the error is measured without weights.
"""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_kernels.graph import constants
from friction_triton.batch_graph import applied, array_of, set_array

ROUNDING: tl.constexpr = tl.constexpr(constants.ROUNDING * 2.0**-23)
STALLED_AFTER: tl.constexpr = tl.constexpr(constants.STALLED_AFTER)
MASS_TOLERANCE: tl.constexpr = tl.constexpr(constants.MASS_TOLERANCE)


@triton.jit
def add_error(worst, column_sums, residual, values, unknown):
    """Add a strip of rows to both errors: the largest row of F's residual, and the adjoint's column sums."""
    mass = tl.abs(tl.sum(values, axis=1) - 1) / MASS_TOLERANCE
    rows = tl.maximum(tl.sum(tl.abs(residual), axis=1), mass)
    worst = tl.maximum(worst, tl.max(tl.where(unknown > 0, rows, 0.0)))
    return worst, column_sums + tl.sum(tl.abs(residual), axis=0)


@triton.jit
def conjugate_gradients(
    x, row_bias, column_bias, weight, unknown, b, v, best, r, p, q, scale, is_adjoint, tol, max_iter, count,
    SIZE: tl.constexpr, STRIP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the best v found to `best`, and return the number of iterations.

    b, v, best, r, p, q: (SIZE, WIDTH); weight, unknown: (SIZE,), 0 at nodes that are not unknown.
    is_adjoint, and scale, the adjoint's reference for its error, are run-time arguments, so that the code is
    compiled only once. A column with zero residual stops changing.
    """
    squared = tl.zeros((WIDTH,), tl.float32)
    worst, sums = 0.0, tl.zeros((WIDTH,), tl.float32)
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        of_b = array_of(b, rows, WIDTH)
        nothing = tl.zeros_like(of_b)
        set_array(v, rows, nothing, WIDTH)
        set_array(best, rows, nothing, WIDTH)
        set_array(r, rows, of_b, WIDTH)
        set_array(p, rows, of_b, WIDTH)
        squared += tl.sum(tl.load(weight + rows)[:, None] * of_b * of_b, axis=0)
        worst, sums = add_error(worst, sums, of_b, nothing, tl.load(unknown + rows))
    tl.debug_barrier()
    error = tl.where(is_adjoint, tl.max(sums) / scale, worst)
    best_error = error
    iteration = tl.cast(0, tl.int32)
    best_iteration = tl.cast(0, tl.int32)
    while (error > tol) & (iteration < max_iter) & (iteration < best_iteration + STALLED_AFTER):
        curvature = tl.zeros((WIDTH,), tl.float32)
        for first in range(0, count, STRIP):
            rows = first + tl.arange(0, STRIP)
            of_p = array_of(p, rows, WIDTH)
            image = of_p - applied(
                x, rows, row_bias, column_bias, p, count, SIZE, WIDTH, CHUNK, PRECISION
            )
            set_array(q, rows, image, WIDTH)
            curvature += tl.sum(tl.load(weight + rows)[:, None] * of_p * image, axis=0)
        step = tl.where(curvature > 0, squared / curvature, 0.0)
        previous = squared
        squared = tl.zeros((WIDTH,), tl.float32)
        worst, sums = 0.0, tl.zeros((WIDTH,), tl.float32)
        tl.debug_barrier()
        for first in range(0, count, STRIP):
            rows = first + tl.arange(0, STRIP)
            of_v = array_of(v, rows, WIDTH) + step[None, :] * array_of(p, rows, WIDTH)
            of_r = array_of(r, rows, WIDTH) - step[None, :] * array_of(q, rows, WIDTH)
            set_array(v, rows, of_v, WIDTH)
            set_array(r, rows, of_r, WIDTH)
            squared += tl.sum(tl.load(weight + rows)[:, None] * of_r * of_r, axis=0)
            worst, sums = add_error(worst, sums, of_r, of_v, tl.load(unknown + rows))
        error = tl.where(is_adjoint, tl.max(sums) / scale, worst)
        iteration += 1
        onwards = tl.where(previous > 0, squared / previous, 0.0)
        tl.debug_barrier()
        for first in range(0, count, STRIP):
            rows = first + tl.arange(0, STRIP)
            turned = array_of(r, rows, WIDTH) + onwards[None, :] * array_of(p, rows, WIDTH)
            set_array(p, rows, turned, WIDTH)
            if error < best_error:
                set_array(best, rows, array_of(v, rows, WIDTH), WIDTH)
        best_iteration = tl.where(error < best_error, iteration, best_iteration)
        best_error = tl.minimum(error, best_error)
        tl.debug_barrier()
    return iteration


@triton.jit
def leave_out_unreached(
    x, to_unlabelled, from_unlabelled, weight, unknown, measured, log_u, log_r, b, reached, count,
    SIZE: tl.constexpr, STRIP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Remove nodes without inflow from labels from the system; return their number.

    reached: scratch array, set to 1 in the rows of reached nodes and to 0 in others.
    """
    everyone = tl.arange(0, SIZE)
    num_reached = 0.0
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        inflow = tl.sum(array_of(b, rows, WIDTH), axis=1)
        flag = tl.where((inflow > ROUNDING) & (tl.load(unknown + rows) > 0), 1.0, 0.0)
        set_array(reached, rows, tl.zeros((STRIP, WIDTH), tl.float32) + flag[:, None], WIDTH)
        num_reached += tl.sum(flag)
    tl.debug_barrier()
    before = -1.0
    while num_reached > before:
        before = num_reached
        num_reached = 0.0
        for first in range(0, count, STRIP):
            rows = first + tl.arange(0, STRIP)
            onto = applied(
                x,
                rows,
                to_unlabelled,
                from_unlabelled,
                reached,
                count,
                SIZE,
                WIDTH,
                CHUNK,
                PRECISION,
            )
            inflow = tl.max(onto, axis=1)
            inflow += tl.sum(array_of(b, rows, WIDTH), axis=1)
            flag = tl.max(array_of(reached, rows, WIDTH), axis=1)
            flag = tl.where((inflow > ROUNDING) & (tl.load(unknown + rows) > 0), 1.0, flag)
            num_reached += tl.sum(flag)
            tl.debug_barrier()
            set_array(reached, rows, tl.zeros((STRIP, WIDTH), tl.float32) + flag[:, None], WIDTH)
            tl.debug_barrier()
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        flag = tl.max(array_of(reached, rows, WIDTH), axis=1) > 0
        set_array(b, rows, tl.where(flag[:, None], array_of(b, rows, WIDTH), 0.0), WIDTH)
        row_bias, column_bias = tl.load(to_unlabelled + rows), tl.load(from_unlabelled + rows)
        tl.debug_barrier()
        tl.store(to_unlabelled + rows, tl.where(flag, row_bias, float("-inf")))
        tl.store(from_unlabelled + rows, tl.where(flag, column_bias, float("-inf")))
        tl.store(measured + rows, flag.to(tl.float32))
    num_unknown = tl.sum(tl.load(unknown + everyone))
    tl.debug_barrier()
    log_weight = tl.load(log_r + everyone) - tl.load(log_u + everyone)
    log_weight = tl.where(tl.load(measured + everyone) > 0, log_weight, float("-inf"))
    heaviest = tl.maximum(tl.max(log_weight), -1e30)
    tl.store(weight + everyone, tl.exp2(log_weight - heaviest))
    tl.debug_barrier()
    return num_unknown - num_reached


@triton.jit
def solve(
    x, row_bias, column_bias, weight, unknown, b, v, image, work, scale, is_adjoint, tol, max_iter, count,
    SIZE: tl.constexpr, STRIP: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write v and image = A v + b; return iterations, error, and the largest row sum of |image - v|.

    work: scratch memory for three more arrays.
    """
    array: tl.constexpr = SIZE * WIDTH
    iteration = conjugate_gradients(
        x, row_bias, column_bias, weight, unknown, b, image, v, work, work + array, work + 2 * array,
        scale, is_adjoint, tol, max_iter, count, SIZE, STRIP, WIDTH, CHUNK, PRECISION,
    )  # fmt: skip
    error = tol
    furthest = 0.0
    unfinished = tl.cast(1, tl.int32)
    while unfinished > 0:
        worst, sums = 0.0, tl.zeros((WIDTH,), tl.float32)
        change = 0.0
        largest = 0.0
        furthest = 0.0
        for first in range(0, count, STRIP):
            rows = first + tl.arange(0, STRIP)
            of_v = array_of(v, rows, WIDTH)
            of_image = applied(
                x, rows, row_bias, column_bias, v, count, SIZE, WIDTH, CHUNK, PRECISION
            )
            of_image += array_of(b, rows, WIDTH)
            set_array(image, rows, of_image, WIDTH)
            residual = of_image - of_v
            change = tl.maximum(change, tl.max(tl.abs(residual)))
            largest = tl.maximum(largest, tl.max(tl.abs(of_v)))
            furthest = tl.maximum(furthest, tl.max(tl.sum(tl.abs(residual), axis=1)))
            worst, sums = add_error(worst, sums, residual, of_v, tl.load(unknown + rows))
        error = tl.where(is_adjoint, tl.max(sums) / scale, worst)
        unfinished = ((error > tol) & (iteration < max_iter) & (change > ROUNDING * largest)).to(
            tl.int32
        )
        tl.debug_barrier()
        if unfinished > 0:
            iteration += 1
            for first in range(0, count, STRIP):
                rows = first + tl.arange(0, STRIP)
                set_array(v, rows, array_of(image, rows, WIDTH), WIDTH)
        tl.debug_barrier()
    return iteration, error, furthest
