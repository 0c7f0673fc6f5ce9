"""Distillation of hidden states: the mean squared error from a teacher's, after a projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn


class FeatureAlignment(nn.Module):
    """The mean squared error of a student's projected hidden states from a teacher's. Plain torch.

        # The mean is over tokens with mask, and teacher_dim.
        loss = ((projection(hidden) - teacher) ** 2).mean()

    The projection is trained with the student: pass this module's parameters to the optimizer, too. The
    teacher gets no gradient.

    Call: loss = loss_fn(hidden, teacher, mask=None), see `forward`.

    Source: TinyBERT, arXiv 1909.10351, its loss of hidden states. It projects even where widths are equal.

    Args:
        student_dim: d of the student's hidden states.
        teacher_dim: d_t of the teacher's; if it is the same, there is no projection.

    Raises:
        ValueError: shapes do not fit together.
        TypeError: `mask` is not bool.
    """

    def __init__(self, student_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.student_dim, self.teacher_dim = student_dim, teacher_dim
        self.projection = (
            nn.Identity()
            if student_dim == teacher_dim
            else nn.Linear(student_dim, teacher_dim, bias=False)
        )

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(
            self, hidden: Tensor, teacher: Tensor, mask: Tensor | None = None
        ) -> Tensor: ...

    def forward(self, hidden: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """The loss, in float32 at least; 0, with a zero gradient, if no token counts.

        Args:
            hidden: (..., d) the student's hidden states.
            teacher: (..., d_t) the teacher's of the same tokens.
            mask: (...) bool, True at tokens that count; None: all (default None).
        """
        self._check(hidden, teacher, mask)
        if mask is not None:  # what does not count may be anything
            hidden, teacher = (t.where(mask[..., None], 0) for t in (hidden, teacher))
        projected: Tensor = self.projection(hidden)
        wide = torch.promote_types(projected.dtype, torch.float32)
        errors = (projected.to(wide) - teacher.detach().to(wide)).square().mean(-1)
        if mask is None:
            return errors.sum() / max(errors.numel(), 1)
        return torch.where(mask, errors, 0).sum() / mask.sum().clamp_min(1)

    def _check(self, hidden: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
        tokens = hidden.shape[:-1]
        for who, tensor, dim in (
            ("student", hidden, self.student_dim),
            ("teacher", teacher, self.teacher_dim),
        ):
            if tensor.dim() == 0 or tensor.shape != (*tokens, dim):
                raise ValueError(
                    f"hidden states of the {who} must be {(*tokens, dim)}, got {tuple(tensor.shape)}"
                )
        if mask is not None:
            if mask.dtype != torch.bool:
                raise TypeError(f"mask is {mask.dtype}; it must be bool, True at tokens that count")
            if mask.shape != tokens:
                raise ValueError(f"mask must be {tuple(tokens)}, got {tuple(mask.shape)}")
