"""Distillation of attention: the maps of student and teacher are compared, and none is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from friction_kernels.choices import check_choice
from friction_kernels.losses.row_softmax import row_softmax_loss
from friction_kernels.scores.row_softmax import arithmetic_of
from friction_kernels.scores.targets import KINDS, Kind, Scores


class AttentionAlignment(nn.Module):
    """Divergence of a student's attention maps from a teacher's, head by head.

    Equals, with the teacher's head h_t for the student's head h:

        p = (q[b, h] @ k[b, h].T / d_k**0.5).softmax(-1)  # under the masks
        p_t = (q_teacher[b, h_t] @ k_teacher[b, h_t].T / d_t**0.5).softmax(-1)
        loss = KL(p_t, p)  # of each row; mean over batch, heads and real rows

    Queries and keys are all it needs, so attention itself may run in any kernel. Scores of a few rows of one
    head exist at a time. The teacher gets no gradient.

    Call: loss = loss_fn(q, k, q_teacher, k_teacher, padding=None), see `forward`.

    Source: that attention is distilled, from TinyBERT, arXiv 1909.10351, which takes the mean squared
    error of scores before their softmax. The divergence of the maps, and which heads, are this library's
    choice.

    Args:
        kind: "kl" is KL(p_t, p), "reverse_kl" KL(p, p_t), "jsd" half of both with their mean (default "kl").
        causal: rows see the columns up to their own (default False).
        heads: the teacher's head for each of the student's; None: one each if both have as many, and evenly
            spaced ones otherwise (default None).

    Raises:
        ValueError: shapes or heads do not fit together, or scores are NaN.
        TypeError: a dtype is not float16, bfloat16, float32 or float64, or `padding` is not bool.
    """

    def __init__(
        self,
        kind: Kind = "kl",
        causal: bool = False,
        heads: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        self.kind: Kind = kind
        self.causal = causal
        self.heads = None if heads is None else tuple(heads)

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(
            self,
            q: Tensor,
            k: Tensor,
            q_teacher: Tensor,
            k_teacher: Tensor,
            padding: Tensor | None = None,
        ) -> Tensor: ...

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        q_teacher: Tensor,
        k_teacher: Tensor,
        padding: Tensor | None = None,
    ) -> Tensor:
        """The loss, in float32, or in float64 if q or k are; 0, with zero gradients, if no row is real.

        Args:
            q: (B, H, S, d_k) the student's queries, after any rotation.
            k: (B, H, S, d_k) its keys; keys that several heads share are repeated.
            q_teacher: (B, H_t, S, d_t) the teacher's queries.
            k_teacher: (B, H_t, S, d_t) its keys.
            padding: (B, S) bool, True at real tokens; others are neither rows nor columns. With it the host
                waits for a GPU (default None).
        """
        self._check(q, k, q_teacher, k_teacher, padding)
        heads = self.heads or evenly_spaced(q.shape[1], q_teacher.shape[1])
        scales = [t.shape[-1] ** -0.5 for t in (q, q_teacher)]
        total, rows = nothing_of(q, k), 0
        of_batch = (sequences(t, padding) for t in (q, k, q_teacher, k_teacher))
        for queries, keys, of_teacher, to_teacher in zip(*of_batch, strict=True):
            if (length := queries.shape[1]) == 0:
                continue
            rows += length * len(heads)
            for x, w, head in zip(queries.unbind(0), keys.unbind(0), heads, strict=True):
                total = total + cast(
                    Tensor,
                    row_softmax_loss(
                        x,
                        w,
                        Scores(of_teacher[head], to_teacher[head], scale=scales[1]),
                        kind=self.kind,
                        scale=scales[0],
                        mask="causal" if self.causal else None,
                        reduction="sum",
                    ),
                )
        return total / max(rows, 1)

    def _check(
        self, q: Tensor, k: Tensor, q_teacher: Tensor, k_teacher: Tensor, padding: Tensor | None
    ) -> None:
        for who, queries, keys in (("student", q, k), ("teacher", q_teacher, k_teacher)):
            if queries.dim() != 4 or queries.shape != keys.shape:
                raise ValueError(
                    f"queries and keys of the {who} must both be (B, H, S, d), got "
                    f"{tuple(queries.shape)} and {tuple(keys.shape)}; repeat keys that heads share"
                )
        (batch, count, length, _), (*others, _) = q.shape, q_teacher.shape
        if [batch, length] != [others[0], others[2]]:
            raise ValueError(
                f"the student has {batch} sequences of {length} tokens, and the teacher {others[0]} of "
                f"{others[2]}; they must read the same tokens"
            )
        if self.heads is not None:
            if len(self.heads) != count:
                raise ValueError(
                    f"heads names {len(self.heads)} heads, and the student has {count}"
                )
            if not all(0 <= head < others[1] for head in self.heads):
                raise ValueError(f"heads must be 0 to {others[1] - 1}, those of the teacher")
        if padding is not None:
            if padding.dtype != torch.bool:
                raise TypeError(f"padding is {padding.dtype}; it must be bool, True at real tokens")
            if padding.shape != (batch, length):
                raise ValueError(f"padding must be ({batch}, {length}), got {tuple(padding.shape)}")

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}, causal={self.causal}, heads={self.heads}"


def evenly_spaced(count: int, others: int) -> tuple[int, ...]:
    return tuple(head * others // count for head in range(count))


def nothing_of(*tensors: Tensor) -> Tensor:
    """0, in the dtype of their loss, of which they are part."""
    nothing = torch.stack([t.flatten()[:0].sum().float() for t in tensors]).sum()
    return nothing.to(arithmetic_of(*tensors))


def sequences(tensor: Tensor, padding: Tensor | None) -> Iterator[Tensor]:
    """The (H, S, d) of each of a batch, real tokens only: without the others no mask is needed."""
    if padding is None:
        yield from tensor.unbind(0)
        return
    for of_one, real in zip(tensor.unbind(0), padding, strict=True):
        yield of_one[:, real]
