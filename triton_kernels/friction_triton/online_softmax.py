"""Online softmaxes: of rows whose columns come tile by tile, or split by split."""

# ruff: noqa: N803 - constexpr arguments are in capitals, as is usual in Triton

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def no_softmax(COUNT: tl.constexpr):
    """(maximum m, sum of e = exp(z - m), of e (z - m), of e times something) of rows without columns."""
    zeros = tl.zeros((COUNT,), tl.float32)
    return tl.full((COUNT,), float("-inf"), tl.float32), zeros, zeros, zeros


@triton.jit
def lowered(softmax, maximum):
    """A softmax below a maximum at least as large, which stays finite where there are no columns."""
    finite = tl.where(maximum == float("-inf"), 0.0, maximum)
    kept, total = tl.exp(softmax[0] - finite), softmax[1]
    moment = softmax[2] + tl.where(total == 0, 0.0, total * (softmax[0] - finite))
    return (maximum, total * kept, moment * kept, softmax[3] * kept), finite


@triton.jit
def weighted(weights, values):
    """sum_j weights_ij values_ij, where a weight of zero counts for nothing, even times infinity."""
    return tl.sum(tl.where(weights == 0, 0.0, weights * values), axis=1)


@triton.jit
def with_tile(softmax, z, MOMENT: tl.constexpr = False):
    """A softmax with a tile of columns, and their exponentials below its maximum."""
    softmax, finite = lowered(softmax, tl.maximum(softmax[0], tl.max(z, axis=1)))
    weights = tl.exp(z - finite[:, None])
    moment = softmax[2]
    if MOMENT:
        moment += weighted(weights, z - finite[:, None])
    return (softmax[0], softmax[1] + tl.sum(weights, axis=1), moment, softmax[3]), weights


@triton.jit
def with_weighted(softmax, weights, values):
    return softmax[0], softmax[1], softmax[2], softmax[3] + weighted(weights, values)


@triton.jit
def log_sum(softmax):
    return softmax[0] + tl.log(softmax[1])


@triton.jit
def store_softmax(to, pitch, softmax, mask):
    for part in tl.static_range(4):
        tl.store(to + part * pitch, softmax[part], mask=mask)


@triton.jit
def with_split(softmax, of_split, pitch, mask):
    """A softmax with that of a split of the columns."""
    maximum = tl.load(of_split, mask=mask, other=0.0)
    total = tl.load(of_split + pitch, mask=mask, other=0.0)
    first = tl.load(of_split + 2 * pitch, mask=mask, other=0.0)
    second = tl.load(of_split + 3 * pitch, mask=mask, other=0.0)
    larger = tl.maximum(softmax[0], maximum)
    a, _ = lowered(softmax, larger)
    b, _ = lowered((maximum, total, first, second), larger)
    return larger, a[1] + b[1], a[2] + b[2], a[3] + b[3]


@triton.jit
def store_normaliser(to, pitch, softmax, mask):
    tl.store(to, softmax[0], mask=mask)
    tl.store(to + pitch, tl.log(softmax[1]), mask=mask)


@triton.jit
def log_softmax(z, found, SOFTMAX: tl.constexpr, rows, num_rows):
    """Of a tile of scores, by what was found of its rows."""
    found += SOFTMAX * num_rows + rows
    maximum = tl.load(found, mask=rows < num_rows, other=0.0)
    log_total = tl.load(found + num_rows, mask=rows < num_rows, other=0.0)
    return (z - maximum[:, None]) - log_total[:, None]


@triton.jit
def log_mixture(log_p, log_q, beta):
    """log(beta q + (1 - beta) p)"""
    a, b = log_q + tl.log(beta), log_p + tl.log(1 - beta)
    larger = tl.maximum(a, b)
    return larger + tl.log(1 + tl.exp(tl.minimum(a, b) - larger))
