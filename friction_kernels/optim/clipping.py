"""Gradient clipping outside the step: torch's own, extended to several meshes and flattened parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from friction_kernels.shards import (
    all_reduce,
    device_of_sums,
    is_dtensor,
    name_of,
    processes_of,
    summed_over,
    why_no_sum,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@torch.no_grad()
def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    process_group: ProcessGroup | str | None = None,
) -> Tensor:
    """Scale gradients in place so that their total norm is at most max_norm.

    Calls torch.nn.utils.clip_grad_norm_ and returns the same bits. In addition it supports DTensors on
    several meshes, DTensors mixed with plain tensors, for which torch raises, and parameters of
    FullyShardedDataParallel (FSDP1), whose local shard torch mistakes for the whole. It reads the gradients
    twice and writes them once; the optimizers' own `max_grad_norm` never writes them.

    Args:
        parameters: a tensor or several, of any shape and device, whose `.grad` is scaled; parameters
            without gradient are ignored.
        max_norm: the largest norm, in the gradients' unit.
        norm_type: the order of the norm; math.inf for the largest absolute value (default 2.0).
        error_if_nonfinite: raise RuntimeError if the norm is infinite or NaN, instead of scaling by
            it (default False).
        foreach: use torch's foreach operators; None uses them where available (default None).
        process_group: the processes over which the parameters are sharded, with different parameters or
            different shards on each, if torch does not record it (default None).

    Returns:
        the norm before scaling, a scalar tensor on the first gradient's device; a DTensor if all gradients
        are DTensors of one mesh, 0 if there are no gradients.

    Raises:
        RuntimeError: the norm is not finite and error_if_nonfinite is set; or the processes that hold the
            other shards of a parameter cannot be found.
        ValueError: norm_type is not above 0 for a sum over processes; process_group is not one of this
            process.
    """
    params = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    name = name_of(process_group)
    others = processes_of(name)
    plain: list[Tensor] = []
    meshes: dict[DeviceMesh, list[Tensor]] = {}
    parts: dict[tuple[ProcessGroup, ...], list[Tensor]] = {others: []} if others else {}
    for index, param in enumerate(params):
        problem = why_no_sum(param, name)
        if problem is not None:
            raise RuntimeError(f"the norm of parameter {index} is not known: {problem}")
        if is_dtensor(param.grad):
            meshes.setdefault(param.grad.device_mesh, []).append(param)
        elif is_dtensor(param) or not (processes := summed_over(param, others)):
            plain.append(param)
        else:
            parts.setdefault(processes, []).append(param)
    plain = [param for param in plain if param.grad is not None]
    if not parts and len(meshes) + bool(plain) < 2:
        return torch.nn.utils.clip_grad_norm_(
            params or parameters,  # torch warns if a generator is exhausted
            max_norm,
            norm_type,
            error_if_nonfinite,
            foreach,
        )
    norms = []
    for members in (*([plain] if plain else []), *meshes.values()):
        norm = get_total_norm(_gradients(members), norm_type, foreach=foreach)
        norms.append(norm.full_tensor() if is_dtensor(norm) else norm)
    for processes, members in parts.items():
        norms.append(_norm_of_parts(members, norm_type, processes, foreach))
    total = get_total_norm(norms, norm_type, error_if_nonfinite)
    for members in (plain, *meshes.values(), *parts.values()):
        clip_grads_with_norm_(members, max_norm, total, foreach)
    return total


def _gradients(params: list[Tensor]) -> list[Tensor]:
    return [param.grad for param in params if param.grad is not None]


def _norm_of_parts(
    params: list[Tensor],
    norm_type: float,
    processes: tuple[ProcessGroup, ...],
    foreach: bool | None,
) -> Tensor:
    """Norm over the shards of all processes, even if this one has no gradient; summed in float64."""
    if not norm_type > 0:
        raise ValueError(f"norm_type must be above 0 for a sum over processes, got {norm_type!r}")
    grads = _gradients(params)
    device = params[0].device if params else device_of_sums(processes)
    norm = torch.zeros((), dtype=torch.float64, device=device)
    if grads:
        norm = get_total_norm(grads, norm_type, foreach=foreach).to(device, torch.float64)
    if norm_type == math.inf:
        norm = all_reduce(norm, processes, "MAX")
    else:
        norm = all_reduce(norm**norm_type, processes) ** (1 / norm_type)
    is_wide = any(param.dtype in (torch.float64, torch.complex128) for param in params)
    return norm if is_wide else norm.float()
