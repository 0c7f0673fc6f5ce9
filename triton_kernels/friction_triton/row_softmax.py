"""Losses of a row softmax on a GPU: `friction_kernels.scores.row_softmax.chunked` in fused passes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from friction_kernels.scores.products import spans
from friction_kernels.scores.route import product_dtype
from friction_kernels.scores.row_softmax import Found, Problem, Wanted
from friction_triton.configurations import (
    BLOCK_D,
    DOT_PRECISION,
    Tile,
    architecture,
    splits,
    tile,
    tuned,
)
from friction_triton.launches import launch
from friction_triton.row_derivatives import row_derivatives_kernel
from friction_triton.row_form import COUNTED, ENTROPY, FOUND, LOSS, LSE, OWN, SUMS
from friction_triton.row_sums import row_losses_kernel, row_mixture_kernel, row_sums_kernel
from friction_triton.row_target import comparison_of, form_of

STRIPE_BYTES = 256 << 20  # of derivatives at a time, in the dtype of the products
# Of stored scores at a time, in float32, a teacher's apart. A product with fewer rows waits for w.
CHUNK_BYTES = 256 << 20
ROWS = 128  # of a program that adds splits; of the smallest stripe whose scores are computed
ABSENT = -1e30  # a stored log-probability of -inf: its column is not among the others


class Side(NamedTuple):
    """Rows and columns of a student's or a teacher's scores, in the dtype of the products."""

    x: Tensor
    w: Tensor
    scale: Tensor | float
    bias: Tensor | None

    @classmethod
    def of(cls, x: Tensor, w: Tensor, scale: Tensor | float, bias: Tensor | None) -> Side:
        dtype = product_dtype(x, w)
        bias = None if bias is None else bias.detach().float().contiguous()
        return cls(x.detach().to(dtype), w.detach().to(dtype), scale, bias)

    def padded(self) -> Side:
        """For tiles that are no wider than the matrices."""
        multiple = BLOCK_D[precision_of(self.x.dtype)]
        x, w = (pad(t, (0, -t.shape[1] % multiple)).contiguous() for t in (self.x, self.w))
        return self._replace(x=x, w=w)

    def computed(self, rows: slice) -> list:
        return [self.x[rows], self.w, self.x.shape[1], self.scale, self.bias]

    def stored(self, rows: slice) -> list:
        scores = matrix(rows.stop - rows.start, len(self.w), self.x.device, torch.float32)
        product(self.x[rows], self.w.T, scores)
        return [scores, None, scores.stride(0), self.scale, self.bias]


def precision_of(dtype: torch.dtype) -> str:
    if dtype != torch.float32:
        return "bf16"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "fp32"


def matrix(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Memory for it, whose rows start where products and kernels are fast."""
    pitch = triton.cdiv(columns, 16) * 16
    return torch.empty((rows, pitch), device=device, dtype=dtype)[:, :columns]


def product(a: Tensor, b: Tensor, out: Tensor, *, add: bool = False) -> None:
    """out (+)= a b; float32 sums of 16-bit numbers."""
    if a.dtype == out.dtype or not a.is_cuda:  # on a CPU, interpreted: torch has no such sums there
        a, b = a.to(out.dtype), b.to(out.dtype)
        torch.addmm(out, a, b, out=out) if add else torch.mm(a, b, out=out)
    elif add:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        torch.mm(a, b, out_dtype=out.dtype, out=out)


def evaluate(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    problem: Problem,
    wanted: Wanted,
    factors: Tensor | None = None,
    *,
    computed: bool,
) -> Found:
    """The losses of all rows, and the gradients that are wanted; the host never waits.

    Of a stripe of rows, dL/dz is stored in the dtype of the products, and dL/dx and dL/dw are products with
    it. Its scores are computed in the passes that need them, or stored for a chunk of its rows at a time.
    """
    student = Side.of(x, w, scale.detach().float().reshape(1), bias)
    teacher = problem.target.teacher
    of_teacher = None
    if teacher is not None:
        of_teacher = Side.of(teacher.x, teacher.w, float(teacher.scale), teacher.bias)
    x, w = student.x, student.w  # in the dtype of the products
    factors, unit = within_range(factors, x.dtype)
    passes = Passes(problem, student, of_teacher, factors, computed)
    found = torch.empty((FOUND.value, len(x)), dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x, dtype=torch.float32) if wanted.x or wanted.scale else None
    dw = torch.empty_like(w, dtype=torch.float32) if wanted.w else None
    dbias = found.new_zeros(len(w)) if wanted.bias else None
    if not any(wanted):
        passes.over(slice(0, len(x)), found, None)
    else:
        height = max(ROWS, STRIPE_BYTES // (len(w) * x.element_size()) // ROWS * ROWS)
        stripe = matrix(min(height, len(x)), len(w), x.device, x.dtype)
        for rows in spans(len(x), height):
            dz = stripe[: rows.stop - rows.start]
            passes.over(rows, found, dz)
            if dx is not None:
                product(dz, w, dx[rows])
            if dw is not None:
                product(dz.T, x[rows], dw, add=rows.start > 0)
            if dbias is not None:
                dbias += dz.sum(0, dtype=torch.float32)
    dscale = (x * dx).sum() if wanted.scale and dx is not None else None
    dx = dx.mul_(student.scale) if wanted.x and dx is not None else None
    dw = None if dw is None else dw.mul_(student.scale)
    gradients = [g if g is None or unit is None else g * unit for g in (dx, dw, dbias, dscale)]
    entropy = found[ENTROPY.value] if problem.options.entropy else None
    return Found(found[LOSS.value], found[COUNTED.value] > 0, found[LSE.value], entropy, gradients)


def within_range(factors: Tensor | None, dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Factors that may be multiplied in float16, whose range a loss scale leaves, and their unit."""
    if factors is None or dtype != torch.float16:
        return factors, None
    largest = factors.abs().amax()
    unit = largest.where(largest > 0, 1.0)
    return factors / unit, unit


class Passes:
    """The passes over some rows: their sums, their losses and dL/dz."""

    def __init__(
        self,
        problem: Problem,
        student: Side,
        teacher: Side | None,
        factors: Tensor | None,
        computed: bool,
    ) -> None:
        self.problem, self.computed, self.factors = problem, computed, factors
        self.student = student.padded() if computed else student
        self.teacher = teacher.padded() if computed and teacher is not None else teacher
        self.device, self.num_columns = student.x.device, len(student.w)
        self.softcap = None if problem.softcap is None else float(problem.softcap)
        self.comparison = comparison_of(problem, self.num_columns)
        self.form = form_of(problem)
        self.mask = None
        if isinstance(problem.mask, Tensor):
            self.mask = problem.mask.view(torch.uint8).expand(len(student.x), self.num_columns)

    def over(self, rows: slice, found: Tensor, dz: Tensor | None) -> None:
        """Rows' columns of `found`, and their dz if there is one."""
        for part in self._parts(rows):
            here = slice(part.start - rows.start, part.stop - rows.start)
            found[:, part] = self._part(part, None if dz is None else dz[here])

    def _parts(self, rows: slice) -> Iterator[slice]:
        """The rows whose scores are stored at a time."""
        count = most = rows.stop - rows.start
        if not self.computed:
            parts = triton.cdiv(4 * count * self.num_columns, CHUNK_BYTES)
            most = triton.cdiv(triton.cdiv(count, parts), 16) * 16
        for part in spans(count, most):
            yield slice(rows.start + part.start, rows.start + part.stop)

    def _part(self, rows: slice, dz: Tensor | None) -> Tensor:
        """(FOUND, rows)"""
        count, num_columns = rows.stop - rows.start, self.num_columns
        told, of_labels = self.comparison, self.comparison.of(rows)
        inverse, beta = 1 / told.temperature, float(self.problem.options.beta)
        scores = [*self._scores(self.student, rows), self.softcap, *self._teachers_scores(rows)]
        mask = None if self.mask is None else self.mask[rows]
        scores += [mask, *((0, 0) if mask is None else mask.stride())]
        sizes = self._tile()
        row_blocks = triton.cdiv(count, sizes["BLOCK_M"])
        blocks = triton.cdiv(num_columns, sizes["BLOCK_N"])
        per_split = triton.cdiv(blocks, splits(row_blocks, blocks, self.device))
        num_splits = triton.cdiv(blocks, per_split)
        grid, extent = (row_blocks, num_splits), (rows.start, count, num_columns)
        sums = self._empty(num_splits, SUMS.value, count)
        found = self._empty(FOUND.value, count)
        self._launch(
            row_sums_kernel, sizes, grid, *scores, *of_labels, inverse, sums, *extent, per_split
        )
        launch(
            row_losses_kernel, (triton.cdiv(count, ROWS),), self.device, sums, of_labels[0], found,
            count, num_splits, num_columns, self.problem.options.ignore_index, told.smoothing,
            told.constant, inverse, told.hard_weight, told.soft_weight,
            FORM=self.form, BLOCK=ROWS, num_warps=4,
        )  # fmt: skip
        if self.form.soft == "jsd":
            parts = self._empty(num_splits, 2, count)
            self._launch(
                row_mixture_kernel, sizes, grid, *scores, inverse, beta, found, parts, *extent, per_split
            )  # fmt: skip
            of_p, of_q = parts.sum(0)
            loss = told.soft_weight * told.temperature * (beta * of_q + (1 - beta) * of_p)
            found[LOSS.value] += loss.where(found[COUNTED.value] > 0, 0)
            found[OWN.value] = of_p
        if dz is not None:
            factors = None if self.factors is None else self.factors[rows]
            self._launch(
                row_derivatives_kernel, sizes, (row_blocks * blocks,), *scores, *of_labels,
                told.smoothing, inverse, told.hard_weight, told.soft_weight, beta, found, factors, dz,
                dz.stride(0), *extent,
            )  # fmt: skip
        return found

    def _scores(self, side: Side, rows: slice) -> list:
        return side.computed(rows) if self.computed else side.stored(rows)

    def _teachers_scores(self, rows: slice) -> list:
        """As of the student; stored log-probabilities are scores, and -inf where there is none."""
        stored = self.comparison.stored
        if stored is not None:
            ids, logprobs = (t[rows] for t in (stored.ids, stored.logprobs))
            scores = matrix(len(ids), self.num_columns, self.device, torch.float32)
            scores.fill_(-math.inf).scatter_(1, ids.long(), logprobs.float().clamp_min(ABSENT))
            return [scores, None, scores.stride(0), 1.0, None]
        if self.teacher is None:
            return [None, None, 0, 1.0, None]
        return self._scores(self.teacher, rows)

    def _tile(self) -> Tile:
        kernel = "rows_alone" if self.teacher is None else "rows_and_teacher"
        precision = precision_of(self.student.x.dtype)
        return tile(
            kernel if self.computed else "rows_stored", precision, architecture(self.device)
        )

    def _launch(self, kernel, sizes: Tile, grid: tuple[int, ...], *args) -> None:
        precision = DOT_PRECISION[precision_of(self.student.x.dtype)]
        launch(tuned(kernel, sizes), grid, self.device, *args, FORM=self.form, PRECISION=precision)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)
