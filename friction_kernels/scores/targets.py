"""What a row softmax of scores is compared with: a distribution q over the columns for each row.

Each target turns a tile of scores z, whole rows of it, into the rows' losses and, in place, into dL/dz.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.scores.checks import check_beta, check_distillation, check_operands
from friction_kernels.scores.products import mask_

Kind = Literal["ce", "kl", "reverse_kl", "jsd"]
KINDS = get_args(Kind)
Rest = Literal["drop", "renormalise", "bucket"]
RESTS = get_args(Rest)


class Options(NamedTuple):
    """How rows are compared with their targets."""

    kind: Kind
    beta: float = 0.5
    ignore_index: int = -100
    label_smoothing: float = 0.0
    entropy: bool = False  # whether the rows' entropies are asked for


class Tile(NamedTuple):
    """Rows of scores."""

    z: Tensor  # (r, M); becomes dL/dz
    rows: slice  # which
    teacher: Tensor | None = None  # (r, M), may be written
    masked: bool = False  # whether scores may be -inf, an excluded diagonal's apart


class Rows(NamedTuple):
    """What came of a tile's rows."""

    loss: Tensor  # (r,); 0 where not counted
    counted: Tensor  # (r,), bool
    lse: Tensor  # (r,)
    entropy: Tensor | None  # (r,)


class Softmax(NamedTuple):
    """p = softmax(z) of rows, which took the place of z."""

    p: Tensor
    lse: Tensor  # (r,); -inf for a row without columns
    entropy: Tensor | None

    @classmethod
    def of(cls, z: Tensor, entropy: bool = False) -> Softmax:
        largest = z.amax(1)
        first = z[:, 0]  # of a row without columns, which would become NaN
        first.copy_(torch.where(largest == -torch.inf, 0, first))
        torch.softmax(z, 1, out=z)
        lse = largest - z.amax(1).log()
        return cls(z, lse, torch.special.entr(z).sum(1) if entropy else None)

    def rows(self, loss: Tensor, counted: Tensor | None = None) -> Rows:
        """With p, which has become dL/dz, set to zero where a row does not count, or has no column."""
        some = self.lse != -torch.inf  # NaN counts, and shows
        counted = some if counted is None else counted & some
        clear_(self.p, ~counted)
        return Rows(loss.where(counted, 0), counted, self.lse, self.entropy)


def clear_(matrix: Tensor, rows: Tensor) -> None:
    """Set rows to zero, whatever they hold: a few at their cost, unless a GPU would have to tell how many."""
    if matrix.is_cpu:
        matrix[rows] = 0
    else:
        matrix.masked_fill_(rows[:, None], 0)


def expected(p: Tensor, values: Tensor) -> Tensor:
    """sum_j p_ij values_ij, to which a value adds nothing where p is 0, also if it is not finite."""
    products = (p * values).nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)
    return products.sum(1) + 0 * p[:, 0]  # NaN, if the row's probabilities are


def entropy_of_smoothed(smoothing: float, columns: int) -> float:
    """Of a label's distribution, a share of which is spread over all columns."""
    rest = smoothing / columns
    hit = 1 - smoothing + rest
    return -(hit * math.log(hit) + (columns - 1) * rest * math.log(rest))


@dataclass(frozen=True, eq=False)
class Index:
    """One column for each row: cross-entropy over a vocabulary, or a contrastive loss with one positive.

    Args:
        labels: (N,) integers from 0 to M - 1, or ignore_index, for rows that do not count.
    """

    labels: Tensor
    excludes_diagonal = False
    teacher = None

    def check(self, rows: int, columns: int, options: Options, validate: bool) -> None:
        if self.labels.shape != (rows,) or self.labels.is_floating_point():
            raise ValueError(
                f"labels must be {rows} integers, one a row, got {self.labels.dtype} "
                f"{tuple(self.labels.shape)}"
            )
        if options.kind not in ("ce", "kl"):
            raise ValueError(
                f"kind {options.kind!r} compares with the logarithm of the target, which is -inf for all "
                "columns but one; use 'ce'"
            )
        if validate:
            labels = self.labels.long()  # 8 bits may have no number for so many columns
            wrong = (labels < 0) | (labels >= columns)
            wrong &= labels != options.ignore_index
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"label {int(self.labels[row])} of row {row} is none of {columns} columns; labels are "
                    f"0 to {columns - 1}, or ignore_index ({options.ignore_index}) for rows without"
                )

    def rows(self, tile: Tile, options: Options) -> Rows:
        labels = self.labels[tile.rows].long()
        counted = labels != options.ignore_index
        at = labels.where(counted, 0)[:, None]
        chosen = tile.z.gather(1, at)[:, 0]
        smoothing = options.label_smoothing
        mean = tile.z.mean(1) if smoothing else None
        softmax = Softmax.of(tile.z, options.entropy)
        loss = (
            softmax.lse - (1 - smoothing) * chosen
        )  # inf where a mask takes the label out, as in torch
        if smoothing:
            assert mean is not None
            loss = loss - smoothing * mean
        if options.kind == "kl" and smoothing:
            loss = loss - entropy_of_smoothed(smoothing, tile.z.shape[1])
        softmax.p.scatter_add_(1, at, torch.full_like(at, smoothing - 1, dtype=tile.z.dtype))
        if smoothing:
            softmax.p.sub_(smoothing / tile.z.shape[1])
        return softmax.rows(loss, counted)


@dataclass(frozen=True, eq=False)
class SameLabel:
    """All columns of the row's label, alike: supervised contrastive (arXiv 2004.11362, the outer form).

    Args:
        rows_of: (N,) labels of the rows, integers.
        columns_of: (M,) labels of the columns (default None: those of the rows).
        exclude_self: row i is not compared with column i, neither as a positive nor in its softmax (default
            False).
    """

    rows_of: Tensor
    columns_of: Tensor | None = None
    exclude_self: bool = False
    teacher = None

    @property
    def excludes_diagonal(self) -> bool:
        return self.exclude_self

    def check(self, rows: int, columns: int, options: Options, validate: bool) -> None:
        of_columns = self.rows_of if self.columns_of is None else self.columns_of
        for name, labels, count in (("rows", self.rows_of, rows), ("columns", of_columns, columns)):
            if labels.shape != (count,) or labels.is_floating_point():
                raise ValueError(
                    f"labels of {name} must be {count} integers, got {labels.dtype} {tuple(labels.shape)}"
                )
        if options.kind not in ("ce", "kl"):
            raise ValueError(
                f"kind {options.kind!r} compares with the logarithm of the target, which is -inf for "
                "columns of other labels; use 'ce'"
            )

    def rows(self, tile: Tile, options: Options) -> Rows:
        of_columns = self.rows_of if self.columns_of is None else self.columns_of
        # Numbers rather than bools, which torch's operators on CPUs are slow with.
        positive = torch.empty_like(tile.z)
        torch.eq(self.rows_of[tile.rows, None].long(), of_columns.long(), out=positive)
        if tile.masked:  # a column that takes no part is no positive
            positive.masked_fill_(tile.z == -math.inf, 0)
        elif self.exclude_self:
            mask_(positive, "diagonal", tile.rows, 0)
        number = positive.sum(1)
        share = 1 / number.clamp_min(1)
        finite = tile.z.clamp_min(torch.finfo(tile.z.dtype).min)
        chosen = finite.mul_(positive).sum(1) * share
        counted = number > 0
        softmax = Softmax.of(tile.z, options.entropy)
        loss = softmax.lse - chosen
        if options.kind == "kl":
            loss = loss + share.log()
        softmax.p.addcmul_(positive, share[:, None], value=-1)
        return softmax.rows(loss, counted)


@dataclass(frozen=True, eq=False)
class TopK:
    """The largest probabilities of a stored teacher.

    Args:
        ids: (N, k) columns, all different in a row.
        logprobs: (N, k) logarithms of the teacher's probabilities of these columns.
        rest: what becomes of the rest of the teacher's mass: "drop" leaves it out, "renormalise" divides
            the probabilities by their sum, "bucket" compares it with what the student gives to all other
            columns (default "renormalise").
    """

    ids: Tensor
    logprobs: Tensor
    rest: Rest = "renormalise"
    excludes_diagonal = False
    teacher = None

    def check(self, rows: int, columns: int, options: Options, validate: bool) -> None:
        check_choice("rest", self.rest, RESTS)
        if self.ids.dim() != 2 or len(self.ids) != rows or self.ids.shape != self.logprobs.shape:
            raise ValueError(
                f"ids and logprobs must be ({rows}, k), got {tuple(self.ids.shape)} and "
                f"{tuple(self.logprobs.shape)}"
            )
        if self.ids.is_floating_point() or not self.logprobs.is_floating_point():
            raise TypeError(
                f"ids must be integers and logprobs floating-point, got {self.ids.dtype} and "
                f"{self.logprobs.dtype}"
            )
        if options.kind not in ("ce", "kl"):
            raise ValueError(
                f"kind {options.kind!r} needs the teacher's probability of every column, and TopK has k of "
                "them; use 'kl'"
            )
        if not validate:
            return
        ids = self.ids.long()
        if (wrong := ((ids < 0) | (ids >= columns)).any(1)).any():
            raise ValueError(
                f"ids of row {int(wrong.nonzero()[0])} must be 0 to {columns - 1}, one of the columns"
            )
        ordered = ids.sort(1).values
        if (repeated := (ordered[:, 1:] == ordered[:, :-1]).any(1)).any():
            raise ValueError(f"ids of row {int(repeated.nonzero()[0])} are not all different")
        if (wrong := ~(self.logprobs <= 0).all(1)).any():
            raise ValueError(
                f"logprobs of row {int(wrong.nonzero()[0])} must be logarithms of probabilities, at most 0"
            )
        if self.rest == "renormalise" and (wrong := (self.logprobs == -math.inf).all(1)).any():
            raise ValueError(
                f"logprobs of row {int(wrong.nonzero()[0])} are all -inf, which cannot be renormalised"
            )
        mass = self.logprobs.double().exp().sum(1)
        tolerance = (
            1e-3 + 4 * torch.finfo(self.logprobs.dtype).eps
        )  # what storing in 16 bits rounds
        if (mass > 1 + tolerance).any():
            raise ValueError(
                f"probabilities of row {int(mass.argmax())} add up to {mass.max().item():.6g}, more than 1"
            )

    def without_empty_bucket(self, columns: int) -> TopK:
        """A bucket of no columns holds nothing, whatever rounding leaves of the mass."""
        empty = self.rest == "bucket" and self.ids.shape[1] >= columns
        return replace(self, rest="drop") if empty else self

    def rows(self, tile: Tile, options: Options) -> Rows:
        ids, z = self.ids[tile.rows].long(), tile.z
        log_q = self.logprobs[tile.rows].to(z.dtype)
        if self.rest == "renormalise":
            log_q = log_q.log_softmax(1)
        q = log_q.exp()
        chosen = z.gather(1, ids)
        bucket = self.rest == "bucket"
        others = 1 - q.sum(1)
        left = others.clamp_min(0) if bucket else torch.zeros_like(others)
        if bucket:
            z.scatter_(1, ids, -math.inf)
            largest = z.amax(1).clamp_min_(torch.finfo(z.dtype).min)
            of_others = torch.exp(z - largest[:, None])
            total = of_others.sum(1)
            z.scatter_(1, ids, chosen)
        softmax = Softmax.of(z, options.entropy)
        mass = q.sum(1) + left
        loss = mass * softmax.lse - expected(q, chosen)
        p = softmax.p.mul_(mass[:, None])
        if bucket:
            loss = loss - torch.where(left > 0, left * (total.log() + largest), 0)
            share = torch.where(left > 0, left / total, 0)
            p.addcmul_(of_others, share[:, None], value=-1)
        p.scatter_add_(1, ids, -q)
        if options.kind == "kl":
            loss = loss + torch.xlogy(q, q).sum(1) + torch.xlogy(left, left)
        return softmax.rows(loss)


@dataclass(frozen=True, eq=False)
class Scores:
    """The softmax of other scores, x_t w_t^T: a teacher's outputs, or its attention.

    Args:
        x: (N, d_t) the teacher's rows.
        w: (M, d_t) its columns, as many as the student's.
        scale: by which its scores are multiplied (default 1.0).
        bias: (M,), added to its scores (default None).
    """

    x: Tensor
    w: Tensor
    scale: float = 1.0
    bias: Tensor | None = None
    excludes_diagonal = False

    @property
    def teacher(self) -> Scores:
        return self

    def check(self, rows: int, columns: int, options: Options, validate: bool) -> None:
        check_operands(self.x, self.w, self.bias, names=("the teacher's x", "the teacher's w"))
        if len(self.x) != rows:
            raise ValueError(f"the teacher has {len(self.x)} rows, and the student {rows}")
        if len(self.w) != columns:
            raise ValueError(
                f"the teacher has {len(self.w)} columns, and the student {columns}: vocabularies must be "
                "the same"
            )
        if options.kind == "jsd":
            check_beta(options.beta)

    def rows(self, tile: Tile, options: Options) -> Rows:
        assert tile.teacher is not None
        if options.kind == "jsd":
            return self._jsd(tile.z, tile.teacher, options)
        # Their difference is that of logarithms, but for the rows' lse. NaN is in these, too.
        apart = -tile.z if options.kind == "ce" else tile.teacher - tile.z
        student, teacher = Softmax.of(tile.z, options.entropy), Softmax.of(tile.teacher)
        p, q = student.p, teacher.p
        if options.kind == "ce":
            loss = expected(q, apart) + student.lse
            p.sub_(q)
        elif options.kind == "kl":
            loss = expected(q, apart) + (student.lse - teacher.lse)
            p.sub_(q)
        else:
            mean = expected(p, apart)
            loss = (teacher.lse - student.lse) - mean
            p.mul_(apart.nan_to_num_().neg_().add_(mean[:, None]))
        return student.rows(loss)

    def _jsd(self, z: Tensor, z_t: Tensor, options: Options) -> Rows:
        beta, log_p, log_q = options.beta, z.clone(), z_t.clone()
        student, teacher = Softmax.of(z, options.entropy), Softmax.of(z_t)
        log_p.sub_(student.lse[:, None])
        log_q.sub_(teacher.lse[:, None])
        log_mix = torch.logaddexp(log_q + math.log(beta), log_p + math.log1p(-beta))
        ratio = log_p.sub_(log_mix)
        of_p = expected(student.p, ratio)
        loss = beta * expected(teacher.p, log_q.sub_(log_mix)) + (1 - beta) * of_p
        student.p.mul_(ratio.nan_to_num_().sub_(of_p[:, None])).mul_(1 - beta)
        return student.rows(loss)


@dataclass(frozen=True, eq=False)
class Distilled:
    """Labels and a teacher, from the same scores: (1 - alpha) * hard + alpha * temperature^2 * soft.

    Args:
        labels: (N,) integers, as of Index; hard is the cross-entropy of softmax(z) with them.
        soft: Scores of a teacher, or TopK with its probabilities at this temperature; softmax(z /
            temperature) is compared with softmax(scores / temperature), or with these.
        alpha: the share of the teacher, from 0 to 1 (default 0.5).
        temperature: by which scores are divided, above 0; its square keeps the soft gradients' size
            (default 2.0).
    """

    labels: Tensor
    soft: Scores | TopK
    alpha: float = 0.5
    temperature: float = 2.0
    excludes_diagonal = False

    @property
    def teacher(self) -> Scores | None:
        if isinstance(self.soft, TopK):
            return None
        bias = None if self.soft.bias is None else self.soft.bias / self.temperature
        return replace(self.soft, scale=self.soft.scale / self.temperature, bias=bias)

    def check(self, rows: int, columns: int, options: Options, validate: bool) -> None:
        check_distillation(self.alpha, self.temperature)
        self.soft.check(rows, columns, options, validate)
        Index(self.labels).check(rows, columns, options._replace(kind="ce"), validate)

    def rows(self, tile: Tile, options: Options) -> Rows:
        of_soft = tile.z / self.temperature
        soft = self.soft.rows(tile._replace(z=of_soft), options._replace(entropy=False))
        hard = Index(self.labels).rows(tile, options._replace(kind="ce"))
        counted = hard.counted & soft.counted
        tile.z.mul_(1 - self.alpha).add_(of_soft, alpha=self.alpha * self.temperature)
        clear_(tile.z, ~counted)
        loss = self.alpha * self.temperature**2 * soft.loss
        if self.alpha < 1:  # else a label of no probability would count
            loss = loss + (1 - self.alpha) * hard.loss
        return Rows(loss.where(counted, 0), counted, hard.lse, hard.entropy)


Target = Index | SameLabel | TopK | Scores | Distilled
