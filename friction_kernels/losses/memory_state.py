"""Validate the state of a GraphMemory before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

RING = "_extra_state"


def faults_of(state: Mapping[str, Any], buffers: Mapping[str, Tensor], prefix: str) -> list[str]:
    """Why a memory with these buffers cannot load a state containing RING. prefix: of the state's keys."""
    faults: list[str] = []
    for name, buffer in buffers.items():
        if name not in state:
            continue
        found = state[name]
        if not isinstance(found, Tensor) or (found.is_meta and not buffer.is_meta):
            got = "one on meta" if isinstance(found, Tensor) else type(found).__name__
            faults.append(f"{prefix}{name} must be a tensor with values, and the state has {got}")
        elif found.shape != buffer.shape:
            faults.append(
                f"size mismatch for {prefix}{name}: the state has {tuple(found.shape)}, and this memory "
                f"{tuple(buffer.shape)}; load it into a GraphMemory of its own capacity and dim, and "
                "add() the rows to this one"
            )
        elif not torch.can_cast(found.dtype, buffer.dtype):
            faults.append(f"{prefix}{name} must be {buffer.dtype}, and the state has {found.dtype}")
    capacity = len(buffers["ids"])
    if not _is_place(state[RING], capacity):
        faults.append(f"{prefix}{RING} has {state[RING]}, which is no place in {capacity} rows")
    return faults


def _is_place(ring: object, capacity: int) -> bool:
    if not isinstance(ring, Mapping):
        return False
    filled, following = ring.get("filled"), ring.get("next")
    return (
        isinstance(filled, int)
        and isinstance(following, int)
        and 0 <= filled <= capacity
        and 0 <= following < capacity
    )
