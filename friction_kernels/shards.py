"""Sharded parameters: which part is local, and which processes to sum over.

A step works on local tensors: DTensors are unwrapped on input, and states are wrapped again in a
state_dict. torch.distributed is not imported before a DTensor appears. DTensors and FSDP1's parameters know
their processes; for others, the param group's process_group names them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from friction_kernels.flattened import is_flattened, stretch_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor
    from typing_extensions import TypeIs


def dtensor_type() -> type[DTensor] | None:
    """Return torch's DTensor class, or None if it was never imported, so that no tensor can be one."""
    module = sys.modules.get("torch.distributed.tensor")
    return None if module is None else module.DTensor


def is_dtensor(tensor: object) -> TypeIs[DTensor]:
    kind = dtensor_type()
    return kind is not None and isinstance(tensor, kind)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor; other tensors are returned unchanged."""
    if not is_dtensor(tensor):
        return tensor
    part: Tensor = tensor._local_tensor
    return part.wait() if hasattr(part, "wait") else part  # an unfinished collective


def wrap(part: Tensor, like: Tensor) -> Tensor:
    """Wrap a local tensor as a DTensor placed like `like`; return it unchanged if `like` is not a DTensor."""
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
    """The local part, for `like`, of a loaded tensor, which may be sharded differently or not at all."""
    if not is_dtensor(like):
        return whole.full_tensor() if is_dtensor(whole) else whole
    if is_dtensor(whole) and whole.device_mesh != like.device_mesh:
        whole = whole.full_tensor()  # torch cannot redistribute across meshes
    if not is_dtensor(whole):
        from torch.distributed.tensor import distribute_tensor

        # Every process holds the whole tensor and slices its own part.
        whole = whole.to(like.device)
        whole = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    if whole.placements != like.placements:
        whole = whole.redistribute(placements=like.placements)
    return local(whole)


def mismatch(param: Tensor, grad: Tensor) -> str | None:
    """Why a gradient is placed differently from its parameter, or None if they match."""
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
    """The process groups over which to sum a parameter's parts, in mesh order.

    dims: sum only over shards of these dimensions; None includes all. Replicas are never summed.
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


def name_of(process_group: ProcessGroup | str | None) -> str | None:
    """The name of a process group, which unlike the group can be copied and pickled in param groups."""
    if process_group is None or isinstance(process_group, str):
        return process_group
    name = getattr(process_group, "group_name", None)
    if not isinstance(name, str):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup that this process is in, or None, "
            f"got {process_group!r}"
        )
    return name


def processes_of(name: str | None) -> tuple[ProcessGroup, ...]:
    """The process group of that name, or () if there is none or it has no other member."""
    if name is None:
        return ()
    found = None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        c10d: Any = torch.distributed.distributed_c10d
        with suppress(RuntimeError):
            found = c10d._resolve_process_group(name)
    if found is None:
        raise ValueError(
            f"process_group {name!r} is none of this process; give one that torch.distributed made here, "
            "or None"
        )
    return (found,) if found.size() > 1 else ()


def summed_over(param: Tensor, others: tuple[ProcessGroup, ...]) -> tuple[ProcessGroup, ...]:
    """The process groups over which to sum a parameter's parts.

    others: the groups to use if the parameter itself does not record any.
    """
    if is_dtensor(param):
        return sharding_groups(param)
    stretch = stretch_of(param) if is_flattened(param) else None
    return others if stretch is None else stretch.processes


def why_no_sum(param: Tensor, process_group: str | None) -> str | None:
    """Why a parameter's parts cannot be summed, or None if they can."""
    if is_dtensor(param) or not is_flattened(param):
        return None
    stretch = stretch_of(param)
    if stretch is None and process_group is None:
        return (
            "it is a part of FullyShardedDataParallel's, whose processes are not to be found; give the "
            "optimizer process_group=model.process_group for a norm or a check of all parts"
        )
    if stretch is not None and stretch.is_extended:
        return (
            "FullyShardedDataParallel flattened what tensor parallelism had spread, and a norm or a check "
            "over both is not taken; use torch.distributed.fsdp.fully_shard"
        )
    return None


def spreads_of(
    groups: Sequence[Mapping[str, Any]],
) -> dict[tuple[ProcessGroup, ...], list[bool]]:
    """Map each set of process groups to sum over to a mask of the groups' parameters that it covers.

    The order is the same on all processes, even those without parameters of a group: others wait for them.
    """
    count = sum(len(group["params"]) for group in groups)
    spreads: dict[tuple[ProcessGroup, ...], list[bool]] = {}
    index = 0
    for group in groups:
        others = processes_of(group["process_group"])
        if others:
            spreads.setdefault(others, [False] * count)
        for param in group["params"]:
            spreads.setdefault(summed_over(param, others), [False] * count)[index] = True
            index += 1
    return spreads or {(): []}


def device_of_sums(processes: tuple[ProcessGroup, ...]) -> torch.device:
    """The device on which to exchange sums if this process holds no tensor of its own."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None or not processes:
        return torch.device("cpu")
    config = torch.distributed.get_backend_config(processes[0])  # such as "cpu:gloo,cuda:nccl"
    backends = dict(item.split(":") for item in config.split(","))
    if backends.get(accelerator.type, "gloo") == "gloo":
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def all_reduce(tensor: Tensor, groups: tuple[ProcessGroup, ...], op: str = "SUM") -> Tensor:
    """Reduce in place over each of the groups."""
    for group in groups:
        torch.distributed.all_reduce(
            tensor, op=getattr(torch.distributed.ReduceOp, op), group=group
        )
    return tensor
