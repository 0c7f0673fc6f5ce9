"""What row softmax losses cannot take, by name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from friction_kernels.scores.products import Mask

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_operands(
    x: Tensor, w: Tensor, bias: Tensor | None, names: tuple[str, str] = ("x", "w")
) -> None:
    """Raise unless x (N, d), w (M, d) and bias (M,) make scores."""
    rows, columns = names
    for name, tensor in zip(names, (x, w), strict=True):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is {type(tensor).__name__}, and no tensor; give its weight")
        if tensor.dtype not in DTYPES:
            raise TypeError(
                f"{name} is {tensor.dtype}; scores are of float16, bfloat16, float32 or float64"
            )
        if tensor.dim() != 2 or 0 in tensor.shape:
            raise ValueError(
                f"{name} must be a matrix that is not empty, got {tuple(tensor.shape)}"
            )
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device}, and {rows} on {x.device}")
    if x.shape[1] != w.shape[1]:
        raise ValueError(
            f"{rows} has {x.shape[1]} columns, and {columns} {w.shape[1]}; they must have the same"
        )
    if bias is None:
        return
    if not isinstance(bias, Tensor) or not bias.is_floating_point():
        got = bias.dtype if isinstance(bias, Tensor) else type(bias).__name__
        raise TypeError(f"bias must be a floating-point tensor, got {got}")
    if bias.shape != (len(w),):
        raise ValueError(
            f"bias must be ({len(w)},), one for each row of {columns}, got {tuple(bias.shape)}"
        )
    if bias.device != x.device:
        raise ValueError(f"bias is on {bias.device}, and {rows} on {x.device}")


def check_mask(mask: Mask, num_rows: int, num_columns: int) -> None:
    if isinstance(mask, Tensor):
        if mask.dtype != torch.bool:
            raise TypeError(
                f"mask is {mask.dtype}; it must be bool, True where a column takes part"
            )
        if mask.shape not in ((num_columns,), (num_rows, num_columns)):
            raise ValueError(
                f"mask must be ({num_columns},) or ({num_rows}, {num_columns}), got {tuple(mask.shape)}"
            )
    elif mask not in (None, "causal", "diagonal"):
        raise ValueError(f"mask must be a bool tensor, 'causal', 'diagonal' or None, got {mask!r}")


def check_softcap(softcap: float | None) -> None:
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap must be above 0 and finite, or None, got {softcap}")


def check_label_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be from 0 to below 1, got {label_smoothing}")


def check_beta(beta: float) -> None:
    if not 0 < beta < 1:
        raise ValueError(f"beta must be between 0 and 1, got {beta}")


def check_distillation(alpha: float, temperature: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")


def check_labels_take_part(labels: Tensor, mask: Mask, ignore_index: int) -> None:
    """Raise for a label whose column the mask takes out, so that its loss would be infinite."""
    labels = labels.long()[:, None]
    row = _first_without_part(labels, labels != ignore_index, mask)
    if row is not None:
        raise ValueError(
            f"label {int(labels[row])} of row {row} is a column that mask takes out; give the row "
            f"ignore_index ({ignore_index}), or let the column take part"
        )


def check_ids_take_part(ids: Tensor, logprobs: Tensor, mask: Mask) -> None:
    """The same of a stored top k."""
    row = _first_without_part(ids.long(), logprobs > -math.inf, mask)
    if row is not None:
        raise ValueError(
            f"ids of row {row} have a column that mask takes out, and a probability for it; let it take "
            "part, or set its log-probability to -inf"
        )


def _first_without_part(columns: Tensor, counted: Tensor, mask: Mask) -> int | None:
    """The first row of columns (N, k), of those that count, of which the mask takes one out."""
    if mask is None:
        return None
    columns = columns.where(counted, 0)
    rows = torch.arange(len(columns), device=columns.device)[:, None]
    if isinstance(mask, Tensor):
        takes_part = mask[columns] if mask.dim() == 1 else mask.gather(1, columns)
    else:
        takes_part = columns <= rows if mask == "causal" else columns != rows
    wrong = (counted & ~takes_part).any(1)
    return int(wrong.nonzero()[0]) if wrong.any() else None


def check_found(lse: Tensor, losses: Tensor) -> None:
    """Raise for scores that are not numbers, of the student or else of what it is compared with."""
    for wrong, whose, look_at in (
        (lse.isnan(), "scores", "x, w, bias and scale"),
        (losses.isnan(), "the teacher's scores or logprobs", "them"),
    ):
        if wrong.any():
            rows = wrong.nonzero().flatten().tolist()
            shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
            raise ValueError(f"{whose} of {len(rows)} rows are NaN: {shown}; look at {look_at}")
