"""Tokens' hidden states and labels, with any leading dimensions, as rows."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from friction_kernels.scores.checks import check_operands


def rows_of(name: str, tensor: Tensor) -> Tensor:
    """(..., d) as (N, d)."""
    if tensor.dim() == 0:
        raise ValueError(f"{name} must be (..., d), got a number")
    return tensor.reshape(-1, tensor.shape[-1])


def rows_of_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(N, d) of the hidden states that a linear layer takes; raises for what does not fit it."""
    rows = rows_of("hidden", hidden)
    check_operands(rows, weight, bias, names=("hidden", "weight"))
    return rows


def labels_of_rows(hidden: Tensor, labels: Tensor, shift: bool, ignore_index: int) -> Tensor:
    """(N,) labels of hidden states (..., d); with `shift` each position has the next one's, the last none."""
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f"labels must be {tuple(hidden.shape[:-1])}, one for each hidden state, got "
            f"{tuple(labels.shape)}"
        )
    if not labels.is_floating_point():
        labels = labels.long()
    if shift:
        labels = functional.pad(labels[..., 1:], (0, 1), value=ignore_index)
    return labels.reshape(-1)
