"""Gradient clipping outside of the step, as torch.nn.utils.clip_grad_norm_ does it."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale gradients in place so that together they have a norm of at most max_norm.

    In the place of torch.nn.utils.clip_grad_norm_: same arguments, same result, to the bit. It reads the
    gradients twice and writes them once; the optimizers' own `max_grad_norm` writes none.

    Args:
        parameters: a tensor or several, whose `.grad` is scaled; those without are passed by.
        max_norm: the largest norm.
        norm_type: which norm; math.inf for the largest absolute value (default 2.0).
        error_if_nonfinite: raise RuntimeError where the norm is infinite or NaN, instead of scaling by
            it (default False).
        foreach: use torch's foreach operators; None where there are any (default None).

    Returns the norm before scaling, a scalar tensor on the first gradient's device; a DTensor where
    gradients are DTensors, 0 where there is no gradient.
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    else:
        is_generator = isinstance(parameters, types.GeneratorType)
        parameters = list(parameters)
        if is_generator and not parameters:
            warnings.warn(
                "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=3
            )
    grads = [param.grad for param in parameters if param.grad is not None]
    total = _norm(grads, norm_type, error_if_nonfinite, foreach)
    clip_grads_with_norm_(parameters, max_norm, total, foreach)
    return total


def _norm(
    grads: list[Tensor], norm_type: float, error_if_nonfinite: bool, foreach: bool | None
) -> Tensor:
    """The norm of all gradients: the place for a native kernel that serves norm_type 2 of some lists."""
    return get_total_norm(grads, norm_type, error_if_nonfinite, foreach)
