"""State_dicts that hold copies: tensors loaded into them in place do not reach the optimizer."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from friction_kernels.warn import warn


class _Snapshot(NamedTuple):
    """A state_dict, with one of its tensors observed to detect that something was loaded into it."""

    step: weakref.ref[Tensor]  # one of its step counts
    alias: Tensor  # shares its memory and version, and outlives the state_dict
    version: int

    def is_alive(self) -> bool:
        return self.step() is not None

    def is_written(self) -> bool:
        return self.alias._version != self.version

    def seen(self) -> _Snapshot:
        """The snapshot with its current version recorded."""
        return self._replace(version=self.alias._version)


class Snapshots:
    """The state_dicts that are alive. Keeps one step count of each in memory, and nothing else."""

    def __init__(self) -> None:
        self._snapshots: list[_Snapshot] = []

    def __len__(self) -> int:
        return len(self._snapshots)

    def add(self, state_dict: Mapping[str, Any]) -> None:
        """Start watching a state_dict."""
        self._snapshots = [each for each in self._snapshots if each.is_alive() or each.is_written()]
        steps = (state.get("step") for state in state_dict["state"].values())
        step = next((step for step in steps if isinstance(step, Tensor)), None)
        if step is not None and not step.is_inference():  # inference tensors have no version
            self._snapshots.append(_Snapshot(weakref.ref(step), step.detach(), step._version))

    def warn_of_written(self) -> None:
        """Warn if something was loaded into a state_dict without a load_state_dict() afterwards."""
        if self._snapshots and self._any_written():
            warn(
                "something was loaded into what state_dict() returned, and load_state_dict() did not "
                "follow. That state_dict has copies, because states were converted for it, so the "
                "optimizer has not changed: call load_state_dict(state_dict) after "
                "torch.distributed.checkpoint.load(state_dict)"
            )

    def loaded(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Called after load_state_dict() with the new states, which may share a snapshot's tensors."""
        self._any_written()
        taken = {state["step"].data_ptr() for state in states}
        self._snapshots = [e for e in self._snapshots if e.alias.data_ptr() not in taken]

    def _any_written(self) -> bool:
        """Whether a snapshot was written since the last call."""
        is_written = any(each.is_written() for each in self._snapshots)
        self._snapshots = [each.seen() for each in self._snapshots if each.is_alive()]
        return is_written
