"""How a task's gradients are kept until all tasks have theirs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from friction_kernels.optim.blockwise import BLOCK, dequantize, quantize
from friction_kernels.shards import local, wrap

Keep = Literal["dtype", "bfloat16", "8bit"]
KEEPS = ("dtype", "bfloat16", "8bit")


def stored(gradient: Tensor, keep: Keep) -> Tensor:
    """The gradient as it is kept; the same tensor if its dtype stays."""
    if keep == "dtype":
        return gradient
    if keep == "bfloat16":
        return gradient.to(torch.bfloat16)
    part = local(gradient)
    if part.numel() < BLOCK:  # nothing to save
        return gradient
    return quantize(part.reshape(-1).float(), signed=True)


def decoded(kept: Tensor, parameter: Tensor) -> Tensor:
    """The gradient in a floating dtype."""
    if kept.dtype != torch.uint8:
        return kept
    part = local(parameter)
    values = dequantize(kept, part.numel(), signed=True)
    return wrap(values.view(part.shape), parameter)
