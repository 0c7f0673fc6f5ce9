"""The loss of the propagated labels and its derivatives, inside one program."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl

from friction_kernels.graph.constants import PROBABILITY_FLOOR
from friction_triton.batch_graph import array_of, set_array

FLOOR: tl.constexpr = tl.constexpr(PROBABILITY_FLOOR)


@triton.jit
def loss_and_slopes(
    labels, class_weight, results, propagated, solution, f, b,
    log_u, log_r, from_unlabelled, weight, unknown, count, num_classes, ignore_index,
    SIZE: tl.constexpr, STRIP: tl.constexpr, WIDTH: tl.constexpr,
    LOG_FORM: tl.constexpr, WEIGHTED: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """Write F to f and dL/dF to b, store loss and counts, and return max_c sum_i |dL/dF_ic|.

    Nodes that no label reaches become uniform and are cleared in `unknown`, so that no gradient flows through
    them. weight becomes that of the inner product in which T_UU^T is self-adjoint.
    """
    everyone = tl.arange(0, SIZE)
    classes = tl.arange(0, WIDTH)
    label = tl.load(labels + everyone, mask=everyone < count, other=ignore_index)
    counts = (tl.load(unknown + everyone) > 0) & (label != ignore_index)
    node_weight = counts.to(tl.float32)
    if WEIGHTED:
        node_weight = tl.load(class_weight + label, mask=counts, other=0.0)
    total_weight = tl.sum(node_weight)
    # Every thread must have read `unknown` before it changes.
    tl.debug_barrier()
    loss = 0.0
    correct = 0.0
    lost_count = 0.0
    scale = tl.zeros((WIDTH,), tl.float32)
    for first in range(0, count, STRIP):
        rows = first + tl.arange(0, STRIP)
        row_exists = rows < count
        is_u = tl.load(unknown + rows) > 0
        its = tl.load(labels + rows, mask=row_exists, other=ignore_index)
        scored = is_u & (its != ignore_index)
        class_exists = (classes < num_classes)[None, :]
        solved = array_of(solution, rows, WIDTH)
        # A row's exact sum is one. If its sum is far from one, no label reaches the node.
        lost = is_u & ~(tl.abs(tl.sum(solved, axis=1) - 1) < 0.5)
        values = tl.where(lost[:, None], 1.0 / num_classes, solved)
        values = tl.where(class_exists, values, float("-inf"))
        own = its[:, None] == classes[None, :]
        of_own = tl.sum(tl.where(own, values, 0.0), axis=1)
        row_weight = scored.to(tl.float32)
        if WEIGHTED:
            row_weight = tl.load(class_weight + its, mask=scored, other=0.0)
        row_weight /= total_weight
        largest = tl.max(values, axis=1)
        if LOG_FORM:
            nll = -tl.log(tl.minimum(tl.maximum(of_own, FLOOR), 1.0))
            slope = tl.where((of_own >= FLOOR) & (of_own <= 1), -1 / of_own, 0.0)
            slopes = tl.where(own, slope[:, None], 0.0)
        else:
            powers = tl.exp(values - largest[:, None])
            total = tl.sum(powers, axis=1)
            nll = largest + tl.log(total) - of_own
            slopes = powers / total[:, None] - own.to(tl.float32)
        loss += tl.sum(tl.where(scored, row_weight * nll, 0.0))
        right = scored & (tl.argmax(values, axis=1) == its)
        correct += tl.sum(right.to(tl.float32))
        lost_count += tl.sum(lost.to(tl.float32))
        flows = (scored & ~lost)[:, None] & class_exists
        slopes = tl.where(flows, row_weight[:, None] * slopes, 0.0)
        scale += tl.sum(tl.abs(slopes), axis=0)
        set_array(b, rows, slopes, WIDTH)
        of_f = tl.where(is_u[:, None], solved, array_of(f, rows, WIDTH))
        set_array(f, rows, of_f, WIDTH)
        if WANTED:
            of_f = tl.where(is_u[:, None], values, of_f)
            offsets = rows[:, None] * num_classes + classes[None, :]
            tl.store(propagated + offsets, of_f, mask=row_exists[:, None] & class_exists)
        remains = is_u & ~lost
        tl.debug_barrier()  # several threads may read the same number of `unknown`
        tl.store(unknown + rows, remains.to(tl.float32))
        minus_u = -tl.load(log_u + rows)
        tl.store(from_unlabelled + rows, tl.where(remains, minus_u, float("-inf")))
        of_weight = tl.where(remains, -tl.load(log_r + rows) - minus_u, float("-inf"))
        tl.store(weight + rows, of_weight)
    tl.debug_barrier()
    log_weight = tl.where(
        tl.load(unknown + everyone) > 0, tl.load(weight + everyone), float("-inf")
    )
    tl.debug_barrier()
    heaviest = tl.maximum(tl.max(log_weight), -1e30)
    tl.store(weight + everyone, tl.exp2(log_weight - heaviest))
    tl.debug_barrier()
    tl.store(results, loss)
    tl.store(results + 4, correct)
    tl.store(results + 5, tl.sum(counts.to(tl.float32)))
    tl.store(results + 6, lost_count)
    return tl.maximum(tl.max(scale), 1e-37)
