"""Parameters of FullyShardedDataParallel (FSDP1): tensors in a row, of which each process has one stretch.

torch marks them, and keeps no way from one to the handle that knows the processes. It is looked for among the
objects that are alive, once for all of a model's.
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
    """What of a whole a process has, by the whole's memory."""

    processes: tuple[ProcessGroup, ...]  # which have the others; () where this is all
    start: int  # its first element's place
    dims: int  # the most dimensions of any tensor in the whole
    is_extended: bool  # parts of tensors that something else (tensor parallel) has spread before


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def is_flattened(param: Tensor) -> bool:
    """Whether FSDP1 made a parameter, or made it (use_orig_params) a view into its own."""
    return bool(getattr(param, "_fsdp_flattened", False))


def stretch_of(param: Tensor) -> Stretch | None:
    """None where the handle of a flattened parameter is not to be found."""
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
    """Of the flat parameter, and of the original ones where use_orig_params keeps them."""
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
