"""State_dicts of copies: what is loaded into them in place does not reach the optimizer by itself."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from friction_kernels.warn import warn


class _Snapshot(NamedTuple):
    """A state_dict, and by which of its tensors one sees that something was loaded into it."""

    step: weakref.ref[Tensor]  # one of its step counts
    alias: Tensor  # of the same memory and version, which is there when the state_dict is gone
    version: int

    def is_alive(self) -> bool:
        return self.step() is not None

    def is_written(self) -> bool:
        return self.alias._version != self.version

    def seen(self) -> _Snapshot:
        """The same, as it is now."""
        return self._replace(version=self.alias._version)


class Snapshots:
    """Those that are alive. Keeps the memory of one step count of each, and nothing else."""

    def __init__(self) -> None:
        self._snapshots: list[_Snapshot] = []

    def __len__(self) -> int:
        return len(self._snapshots)

    def add(self, state_dict: Mapping[str, Any]) -> None:
        """Watch a state_dict."""
        self._snapshots = [each for each in self._snapshots if each.is_alive() or each.is_written()]
        steps = (state.get("step") for state in state_dict["state"].values())
        step = next((step for step in steps if isinstance(step, Tensor)), None)
        if step is not None and not step.is_inference():  # these have no version
            self._snapshots.append(_Snapshot(weakref.ref(step), step.detach(), step._version))

    def warn_of_written(self) -> None:
        """Warn where something was loaded into one, and load_state_dict() did not follow."""
        if self._snapshots and self._any_written():
            warn(
                "something was loaded into what state_dict() returned, and load_state_dict() did not "
                "follow. That state_dict has copies, because states were converted for it, so the "
                "optimizer has not changed: call load_state_dict(state_dict) after "
                "torch.distributed.checkpoint.load(state_dict)"
            )

    def loaded(self, states: Iterable[Mapping[str, Any]]) -> None:
        """load_state_dict() followed, and these are the new states: they may be a snapshot's own tensors."""
        self._any_written()
        taken = {state["step"].data_ptr() for state in states}
        self._snapshots = [e for e in self._snapshots if e.alias.data_ptr() not in taken]

    def _any_written(self) -> bool:
        """Whether one was written since this was last asked."""
        is_written = any(each.is_written() for each in self._snapshots)
        self._snapshots = [each.seen() for each in self._snapshots if each.is_alive()]
        return is_written
