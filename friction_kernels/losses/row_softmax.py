"""The loss of a row softmax of scores against a target, neither of which is stored."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.graph.checks import check_ignore_index
from friction_kernels.graph.torch_modes import uncompiled
from friction_kernels.scores.checks import (
    check_found,
    check_ids_take_part,
    check_label_smoothing,
    check_labels_take_part,
    check_mask,
    check_operands,
    check_softcap,
)
from friction_kernels.scores.products import Mask
from friction_kernels.scores.route import (
    ROW_BACKENDS,
    Route,
    RowBackend,
    choose_route,
    warn_of_fallback,
)
from friction_kernels.scores.row_softmax import Problem, RowSoftmax, arithmetic_of
from friction_kernels.scores.targets import (
    KINDS,
    Distilled,
    Index,
    Kind,
    Options,
    Target,
    TopK,
)

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)
Statistics = Literal[False, True, "without entropy"]


class RowSoftmaxStats(NamedTuple):
    """What a row softmax loss found, without gradients but for `loss`."""

    loss: Tensor
    counted: Tensor  # (N,), whether a row counts
    lse: Tensor  # (N,), the logarithm of the sum of its exponentials
    entropy: Tensor | None  # (N,), of its softmax; None if not asked for
    route: Route  # how it was computed


@uncompiled
def row_softmax_loss(
    x: Tensor,
    w: Tensor,
    target: Target,
    *,
    kind: Kind = "ce",
    beta: float = 0.5,
    scale: float | Tensor = 1.0,
    bias: Tensor | None = None,
    mask: Mask = None,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    statistics: Statistics = False,
    validate: bool | None = None,
    backend: RowBackend = "auto",
) -> Tensor | RowSoftmaxStats:
    """The loss of a row softmax of x w^T against a target; neither exists as a whole.

    Equals, with a target's distribution q (N, M):

        z = scale * x @ w.T + bias  # softcap: softcap * (z / softcap).tanh()
        p = z.masked_fill(~mask, -inf).softmax(1)
        ce = -(q * p.log()).sum(1)
        kl = (q * (q.log() - p.log())).sum(1)
        reverse_kl = (p * (p.log() - q.log())).sum(1)
        m = beta * q + (1 - beta) * p
        q_m, p_m = (q * (q / m).log()).sum(1), (p * (p / m).log()).sum(1)
        jsd = beta * q_m + (1 - beta) * p_m
        loss = {...}[kind][counted].mean()

    On a CPU scores of as many rows as 40 MiB hold exist at a time, as many of a teacher if the target is
    one, and 2 MiB at a time are worked on; on a GPU 256 MiB, and as much of derivatives by them.
    Products of 16-bit numbers are summed in float32; on a GPU the derivatives that are multiplied have
    their dtype. A mean's or a sum's gradients are made together with it, from the same scores; those of x,
    w, bias and a tensor `scale` that need none cost nothing. With reduction="none" the backward computes
    scores again. The same inputs give the same bits. It can be differentiated once.

    Args:
        x: (N, d) rows: hidden states, queries, anchors. float16, bfloat16, float32 or float64.
        w: (M, d) columns: a vocabulary's weights, keys, candidates.
        target: Index, SameLabel, TopK, Scores or Distilled, of friction_kernels.targets.
        kind: "ce" (cross-entropy), "kl", "reverse_kl" or "jsd"; the last two with Scores (default "ce").
        beta: the target's share in the mixture of "jsd" (default 0.5).
        scale: a number, or a one-element tensor, by which scores are multiplied: 1 / temperature
            (default 1.0).
        bias: (M,), added to the scores (default None).
        mask: which columns take part in a row: a bool tensor (M,) or (N, M), "causal" for those up to the
            row's number, "diagonal" for all but that, or None for all. It holds for a teacher's scores, too
            (default None).
        softcap: the bound of capped scores (default None).
        reduction: "mean" over the rows that count, "sum", or "none" for (N,) losses, 0 where a row does not
            count (default "mean").
        ignore_index: the label, of Index and Distilled targets, of rows that do not count (default -100).
        label_smoothing: the share of an Index target that is spread over all columns (default 0.0).
        statistics: return RowSoftmaxStats(loss, counted, lse, entropy, route); "without entropy" spares a
            pass over the scores (default False).
        validate: whether labels, ids and probabilities are looked at, and NaN looked for, before a result is
            returned, for which the host waits for a GPU; None: on the CPU (default None).
        backend: "triton", "chunked" (plain torch), or "auto", which takes Triton on a GPU where it can serve
            (default "auto").

    Returns:
        the loss, in float32, or in float64 if x or w is. A row without positives or columns, or with
        ignore_index, does not count; if none does, the loss is 0 and so are its gradients.

    Raises:
        TypeError: a dtype is not one of the four; `mask` is not bool.
        ValueError: shapes, labels or options do not fit together; a mask takes a label's column out, or a
            row's scores are NaN (with `validate`).
        RuntimeError: the backend cannot serve; a second derivative is asked for (create_graph=True), or
            backward() a second time.

    Source: the outer form of supervised contrastive losses is that of arXiv 2004.11362; gradients are those
    of the equations above. Chunks are this library's choice.
    """
    check_operands(x, w, bias)
    check_mask(mask, len(x), len(w))
    if not isinstance(target, get_args(Target)):
        raise TypeError(
            f"target is {type(target).__name__}; give one of friction_kernels.targets, such as "
            "Index(labels) or Scores(x, w)"
        )
    options = Options(
        kind,
        beta,
        ignore_index,
        label_smoothing,
        entropy=statistics not in (False, "without entropy"),
    )
    check_options(options, reduction, statistics, softcap, mask, target, backend)
    checks = x.device.type == "cpu" if validate is None else validate
    target.check(len(x), len(w), options, checks)
    teacher, soft = target.teacher, target.soft if isinstance(target, Distilled) else target
    if teacher is not None and teacher.x.device != x.device:
        raise ValueError(f"the teacher is on {teacher.x.device}, and x on {x.device}")
    if checks and isinstance(target, Index | Distilled):
        check_labels_take_part(target.labels, mask, ignore_index)
    if isinstance(soft, TopK):
        if checks:
            check_ids_take_part(soft.ids, soft.logprobs, mask)
        soft = soft.without_empty_bucket(len(w))
        target = replace(target, soft=soft) if isinstance(target, Distilled) else soft
    mean = {"mean": True, "sum": False, "none": None}[reduction]
    route = choose_route(x, w, target, backend)
    warn_of_fallback(route)
    problem = Problem(target, options, mask, softcap, mean, route, torch.is_grad_enabled())
    factor = torch.as_tensor(
        scale, dtype=None if isinstance(scale, Tensor) else arithmetic_of(x, w)
    )
    if factor.numel() != 1:
        raise ValueError(f"scale must be one number, got a tensor {tuple(factor.shape)}")
    factor = factor.to(x.device).reshape(())
    found: tuple[Tensor, ...] = RowSoftmax.apply(x, w, bias, factor, problem)  # type: ignore[no-untyped-call]
    loss, counted, lse, entropy, losses = found
    if checks and not loss.isfinite().all():
        check_found(lse, losses)
    if not statistics:
        return loss
    return RowSoftmaxStats(loss, counted, lse, entropy if options.entropy else None, route)


def check_options(
    options: Options,
    reduction: str,
    statistics: Statistics,
    softcap: float | None,
    mask: Mask,
    target: Target,
    backend: str,
) -> None:
    check_choice("kind", options.kind, KINDS)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("backend", backend, ROW_BACKENDS)
    check_choice("statistics", statistics, get_args(Statistics))
    check_ignore_index(options.ignore_index)
    check_softcap(softcap)
    check_label_smoothing(options.label_smoothing)
    if options.label_smoothing and (mask is not None or not isinstance(target, Index)):
        raise ValueError("label_smoothing is for Index targets without a mask")
