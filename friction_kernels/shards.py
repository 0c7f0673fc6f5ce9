"""Parameters that are spread over processes: which part is here, and what to sum.

A step works on local tensors: DTensors are unwrapped where they come in, and states wrapped where they
leave in a state_dict. torch.distributed is not imported before a DTensor is met. Over which processes to sum
is known of DTensors and of FSDP1's parameters; of others a group's process_group says it.
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


def name_of(process_group: ProcessGroup | str | None) -> str | None:
    """The name of a process group, which can be copied and pickled as groups of parameters are."""
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
    """The process group of that name; () where there is none, or nobody else in it."""
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
    """The process groups over which a sum over a parameter's parts is taken.

    others: where the parameter itself does not say it.
    """
    if is_dtensor(param):
        return sharding_groups(param)
    stretch = stretch_of(param) if is_flattened(param) else None
    return others if stretch is None else stretch.processes


def why_no_sum(param: Tensor, process_group: str | None) -> str | None:
    """Why there is no sum over a parameter's parts; None where there is."""
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
    """Over which processes sums are taken, and of which of the groups' parameters.

    In the same order on all processes, also on those that have no parameter of a group: others wait for them.
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
    """Where processes send numbers of which this one has no tensor."""
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
