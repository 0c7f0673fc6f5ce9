"""Gradient clipping outside of the step: torch's own, also over several meshes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from friction_kernels.shards import is_dtensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale gradients in place so that together they have a norm of at most max_norm.

    This is torch.nn.utils.clip_grad_norm_, to the bit, which it calls. Beyond that it takes DTensors of
    several meshes, and DTensors beside plain tensors, where torch raises. It reads the gradients twice and
    writes them once; the optimizers' own `max_grad_norm` writes none.

    Args:
        parameters: a tensor or several, of any shape and device, whose `.grad` is scaled; those without
            are passed by.
        max_norm: the largest norm, in the gradients' unit.
        norm_type: which norm; math.inf for the largest absolute value (default 2.0).
        error_if_nonfinite: raise RuntimeError where the norm is infinite or NaN, instead of scaling by
            it (default False).
        foreach: use torch's foreach operators; None where there are any (default None).

    Returns:
        the norm before scaling, a scalar tensor on the first gradient's device; a DTensor where gradients
        are DTensors of one mesh, 0 where there is no gradient.

    Raises:
        RuntimeError: the norm is not finite, and error_if_nonfinite.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    meshes: dict[DeviceMesh | None, list[Tensor]] = {}
    for param in params:
        if param.grad is not None:
            mesh = param.grad.device_mesh if is_dtensor(param.grad) else None
            meshes.setdefault(mesh, []).append(param)
    if len(meshes) < 2:
        return torch.nn.utils.clip_grad_norm_(
            params or parameters,  # torch warns of a generator that is used up
            max_norm,
            norm_type,
            error_if_nonfinite,
            foreach,
        )
    norms = []
    for members in meshes.values():
        grads = [param.grad for param in members if param.grad is not None]
        norm = get_total_norm(grads, norm_type, foreach=foreach)
        norms.append(norm.full_tensor() if is_dtensor(norm) else norm)
    total = get_total_norm(norms, norm_type, error_if_nonfinite)
    for members in meshes.values():
        clip_grads_with_norm_(members, max_norm, total, foreach)
    return total
