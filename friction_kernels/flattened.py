"""Parameters of FullyShardedDataParallel (FSDP1): flattened tensors, of which each process holds one slice.

torch marks these parameters but keeps no reference from them to the handle that knows the processes. The
handle is found among the live objects, with one search for all parameters of a model.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Stretch(NamedTuple):
    """The slice of a flattened parameter that this process holds, in memory order."""

    processes: tuple[ProcessGroup, ...]  # which hold the other slices; () if this is the whole
    start: int  # index of the slice's first element
    dims: int  # the largest number of dimensions of any original tensor
    is_extended: bool  # the original tensors were already sharded (by tensor parallelism)


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def is_flattened(param: Tensor) -> bool:
    """Whether FSDP1 created a parameter, or (use_orig_params) made it a view into its own."""
    return bool(getattr(param, "_fsdp_flattened", False))


def stretch_of(param: Tensor) -> Stretch | None:
    """Return the slice of a flattened parameter, or None if its handle cannot be found."""
    if param not in _known:
        for handle in _handles():
            _known.update(_stretches(handle))
    found: Stretch | None = _known.get(param)
    return found


def _handles() -> list[Any]:
    module = sys.modules.get("torch.distributed.fsdp._flat_param")
    if module is None:
        return []
    return [thing for thing in gc.get_objects() if type(thing) is module.FlatParamHandle]


def _stretches(handle: Any) -> list[tuple[Tensor, Stretch]]:
    """Slices of the flat parameter and, with use_orig_params, of the original ones."""
    flat = handle.flat_param
    is_cut = handle.uses_sharded_strategy and handle.world_size > 1
    processes = (handle.process_group,) if is_cut else ()
    start = handle.rank * flat._sharded_size.numel() if is_cut else 0
    dims = max(map(len, flat._shapes))
    extended = [extension is not None for extension in flat._param_extensions]
    found = [(flat, Stretch(processes, start, dims, any(extended)))]
    if flat._params is None:
        return found
    for param, info, shape, is_extended in zip(
        flat._params, flat._shard_param_infos, flat._shapes, extended, strict=True
    ):
        start = (info.intra_param_start_idx or 0) if is_cut else 0
        found.append((param, Stretch(processes, start, len(shape), is_extended)))
    return found
