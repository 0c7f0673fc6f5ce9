"""Losses of a row softmax of scores x w^T, of which only some rows exist at a time."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from friction_kernels.scores.derivatives import refuse_second_derivative
from friction_kernels.scores.products import Mask, columns_of, mask_, scores_of, spans
from friction_kernels.scores.route import Route
from friction_kernels.scores.targets import Options, Rows, Target, Tile

TILE_BYTES = 40 << 20  # of scores that exist at once, the teacher's apart
BLOCK_BYTES = 2 << 20  # of them that a CPU works on at once, in a cache
GPU_TILE_BYTES = 128 << 20  # worked on at once, in temporaries as large


class Problem(NamedTuple):
    """Rows of the scores z = scale * x w^T + bias, capped and masked, and their targets."""

    target: Target
    options: Options
    mask: Mask  # True: takes part
    softcap: float | None
    mean: bool | None  # over counted rows; False: the sum; None: each row's loss
    route: Route
    differentiated: bool  # whether gradients may be asked for


class Wanted(NamedTuple):
    """Whose gradients are."""

    x: bool
    w: bool
    bias: bool
    scale: bool


class Found(NamedTuple):
    loss: Tensor  # (N,)
    counted: Tensor  # (N,)
    lse: Tensor  # (N,)
    entropy: Tensor | None  # (N,)
    gradients: list[Tensor | None]  # of the sum of losses, as in Wanted


def arithmetic_of(*tensors: Tensor) -> torch.dtype:
    wide = any(tensor.dtype == torch.float64 for tensor in tensors)
    return torch.float64 if wide else torch.float32


@torch.no_grad()
def evaluate(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    problem: Problem,
    wanted: Wanted,
    factors: Tensor | None = None,
) -> Found:
    """The losses of all rows, and the gradients that are wanted, by the problem's route.

    factors: (N,), of the rows in the sum whose gradients are made; None: all 1.
    """
    with torch.autocast(x.device.type, enabled=False):
        if problem.route.name == "chunked":
            return chunked(x, w, bias, scale, problem, wanted, factors)
        from friction_triton import row_softmax

        computed = problem.route.name == "tiles"
        found: Found = row_softmax.evaluate(
            x, w, bias, scale, problem, wanted, factors, computed=computed
        )
        return found


def chunked(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    problem: Problem,
    wanted: Wanted,
    factors: Tensor | None,
) -> Found:
    """In plain torch: losses and gradients from the same scores."""
    dtype, teachers = arithmetic_of(x, w), problem.target.teacher
    scale, bias = scale.to(dtype), None if bias is None else bias.to(dtype)
    loss, lse = x.new_zeros(len(x), dtype=dtype), x.new_zeros(len(x), dtype=dtype)
    counted = x.new_zeros(len(x), dtype=torch.bool)
    entropy = torch.zeros_like(loss) if problem.options.entropy else None
    dx = x.new_empty(x.shape, dtype=dtype) if wanted.x or wanted.scale else None
    dw = w.new_zeros(w.shape, dtype=dtype) if wanted.w else None
    dbias = w.new_zeros(len(w), dtype=dtype) if wanted.bias else None
    row_bytes = len(w) * dtype.itemsize
    most = max(1, min(len(x), (TILE_BYTES if x.is_cpu else GPU_TILE_BYTES) // row_bytes))
    few = max(1, BLOCK_BYTES // row_bytes) if x.is_cpu else most
    tile = x.new_empty(most, len(w), dtype=dtype)
    of_teacher = None if teachers is None else torch.empty_like(tile)
    for rows in spans(len(x), most):
        z = scores_of(x[rows], w, scale, bias, tile[: rows.stop - rows.start])
        teacher = None
        if teachers is not None and of_teacher is not None:
            theirs = teachers.x[rows], teachers.w, teachers.scale, teachers.bias
            teacher = scores_of(*theirs, of_teacher[: len(z)])
        for block in spans(len(z), few):
            here = slice(rows.start + block.start, rows.start + block.stop)
            of_block = None if teacher is None else teacher[block]
            masked = problem.mask is not None or bias is not None
            found = _block(Tile(z[block], here, of_block, masked), problem)
            loss[here], counted[here], lse[here] = found.loss, found.counted, found.lse
            if entropy is not None and found.entropy is not None:
                entropy[here] = found.entropy
            if factors is not None:
                z[block].mul_(factors[here].where(found.counted, 0)[:, None])
        if dx is not None:
            dx[rows] = 0
            for columns, right in columns_of(w, dtype):
                dx[rows].addmm_(z[:, columns], right)
        if dw is not None:
            dw.addmm_(z.T, x[rows].to(dtype) * scale)
        if dbias is not None:
            dbias += z.sum(0)
    dscale = (x.to(dtype) * dx).sum() if wanted.scale and dx is not None else None
    dx = dx.mul_(scale) if wanted.x and dx is not None else None
    return Found(loss, counted, lse, entropy, [dx, dw, dbias, dscale])


def _block(tile: Tile, problem: Problem) -> Rows:
    """The losses of a few rows; their scores become dL/d(scale * x w^T + bias)."""
    z, slope = tile.z, None
    if problem.softcap is not None:
        z.div_(problem.softcap).tanh_()
        slope = 1 - z.square()
        z.mul_(problem.softcap)
    for scores in (z, tile.teacher):
        if scores is not None:
            mask_(scores, problem.mask, tile.rows)
    if problem.target.excludes_diagonal:
        mask_(z, "diagonal", tile.rows)
    found = problem.target.rows(tile, problem.options)
    if slope is not None:
        z.mul_(slope)
    return found


def versions_of(problem: Problem) -> list[int]:
    """How often the tensors of its target and its mask were changed; of those that count it."""
    given, found = [problem.target, problem.mask], []
    while given:
        value = given.pop()
        if is_dataclass(value):
            given += (getattr(value, field.name) for field in fields(value))
        elif isinstance(value, Tensor) and not value.is_inference():
            found.append(value._version)
    return found


class RowSoftmax(torch.autograd.Function):
    """The loss, and of each row whether it counts, its logsumexp, its entropy and its loss.

    The gradients of a sum are made with it, and multiplied in backward(). Those of single rows need their
    factors, so the scores are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, scale: Tensor, problem: Problem
    ) -> tuple[Tensor, ...]:
        ctx.dtypes = [None if t is None else t.dtype for t in (x, w, bias, scale)]
        ctx.problem, ctx.used = problem, False
        at_once = problem.mean is not None
        now = at_once and problem.differentiated  # which needs_input_grad does not know
        wanted = Wanted(*ctx.needs_input_grad[:4]) if now else Wanted(*4 * [False])
        found = evaluate(x, w, bias, scale, problem, wanted)
        entropy = found.lse.new_empty(0) if found.entropy is None else found.entropy
        of_rows = found.counted, found.lse, entropy, found.loss.detach()
        ctx.mark_non_differentiable(*of_rows)
        if not at_once:
            ctx.save_for_backward(x, w, bias, scale)
            ctx.versions = versions_of(problem)
            return found.loss, *of_rows
        number = found.counted.sum().clamp_min(1) if problem.mean else found.loss.new_ones(())
        ctx.save_for_backward(number, *found.gradients)
        return found.loss.sum() / number, *of_rows

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("a row softmax loss")
        if ctx.problem.mean is None:
            x, w, bias, scale = ctx.saved_tensors
            if versions_of(ctx.problem) != ctx.versions:
                raise RuntimeError(
                    "the target or the mask of a row softmax loss was changed in place before backward(), "
                    "which computes the scores again; give the loss a clone"
                )
            wanted = Wanted(*ctx.needs_input_grad[:4])
            gradients = evaluate(x, w, bias, scale, ctx.problem, wanted, grad).gradients
        else:
            if ctx.used:
                raise RuntimeError(
                    "backward() was called twice for a row softmax loss, whose gradients are made once; "
                    "call the loss again"
                )
            ctx.used = True
            number, *gradients = ctx.saved_tensors
            factor = grad / number
            gradients = [None if g is None else g.mul_(factor) for g in gradients]
        of_given = (
            None if g is None else g.to(dtype)
            for g, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return *of_given, None
