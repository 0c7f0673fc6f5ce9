"""Parameters that are spread over processes: which part is here, and what to sum.

A step works on local tensors: DTensors are unwrapped where they come in, and states wrapped where they
leave in a state_dict. torch.distributed is not imported before a DTensor is met.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def dtensor_type() -> type[DTensor] | None:
    """torch's DTensor; None where nothing has imported it, so that no tensor can be one."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def is_dtensor(tensor: object) -> TypeIs[DTensor]:
    kind = dtensor_type()
    return kind is not None and isinstance(tensor, kind)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a DTensor; another tensor as it is."""
    if not is_dtensor(tensor):
        return tensor
    part: Tensor = tensor._local_tensor
    return part.wait() if hasattr(part, "wait") else part  # a collective that is still under way


def wrap(part: Tensor, like: Tensor) -> Tensor:
    """A local tensor of the local shape as a DTensor spread as `like` is; where that is none, as it is."""
    if not is_dtensor(like):
        return part
    return type(like).from_local(
        part,
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def unwrap(whole: Tensor, like: Tensor) -> Tensor:
    """The local part of a tensor that is loaded for `like`, which may be spread otherwise or not at all."""
    if not is_dtensor(like):
        return whole.full_tensor() if is_dtensor(whole) else whole
    if is_dtensor(whole) and whole.device_mesh != like.device_mesh:
        whole = whole.full_tensor()  # torch does not move parts from one mesh to another
    if not is_dtensor(whole):
        from torch.distributed.tensor import distribute_tensor

        # Every process has the whole, and cuts its part from it.
        whole = whole.to(like.device)
        whole = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    if whole.placements != like.placements:
        whole = whole.redistribute(placements=like.placements)
    return local(whole)


def mismatch(param: Tensor, grad: Tensor) -> str | None:
    """Why a gradient does not belong to a parameter's parts; None where it does."""
    if not is_dtensor(param):
        return (
            "its gradient is a DTensor and it is not; give it gradient.to_local()"
            if is_dtensor(grad)
            else None
        )
    if not is_dtensor(grad):
        return "it is a DTensor and its gradient is not; make it one with distribute_tensor()"
    if any(placement.is_partial() for placement in param.placements):
        return f"it is spread as {param.placements}, a sum that has not been taken; redistribute it"
    if grad.device_mesh != param.device_mesh or grad.placements != param.placements:
        return (
            f"it is spread as {param.placements} over {param.device_mesh}, and its gradient as "
            f"{grad.placements} over {grad.device_mesh}; redistribute the gradient"
        )
    return None


def sharding_groups(param: Tensor, dims: Iterable[int] | None = None) -> tuple[ProcessGroup, ...]:
    """The process groups over which a sum over a parameter's parts is taken, in the mesh's order.

    dims: only those of parts along these dimensions; all by default. Parts that are equal are not summed.
    """
    if not is_dtensor(param):
        return ()
    wanted = None if dims is None else set(dims)
    return tuple(
        param.device_mesh.get_group(mesh_dim)
        for mesh_dim, placement in enumerate(param.placements)
        if hasattr(placement, "dim")  # a Shard, strided or not
        and (wanted is None or placement.dim in wanted)
        and param.device_mesh.size(mesh_dim) > 1
    )


def all_reduce(tensor: Tensor, groups: tuple[ProcessGroup, ...], op: str = "SUM") -> Tensor:
    """Reduce in place over each of the groups."""
    for group in groups:
        torch.distributed.all_reduce(
            tensor, op=getattr(torch.distributed.ReduceOp, op), group=group
        )
    return tensor
