"""A rule: how a step updates one tensor, and which states it has. It is independent of the optimizer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor


class StateKind(NamedTuple):
    """How a state is stored."""

    at_least_float32: bool  # otherwise in the parameter's dtype, which suffices for copies
    non_negative: bool


_KINDS = {
    "average": StateKind(at_least_float32=True, non_negative=False),
    "square": StateKind(at_least_float32=True, non_negative=True),
    "copy": StateKind(at_least_float32=False, non_negative=False),
}


@cache
def _states() -> dict[str, dict[str, StateKind]]:
    """Parse the states by rule and name from states.def, which also defines the native rules."""
    table: dict[str, dict[str, StateKind]] = {}
    text = Path(__file__).with_name("states.def").read_text()
    for rule, state, kind in re.findall(r"^STATE\((\w+), (\w+), (\w+)\)$", text, re.MULTILINE):
        table.setdefault(rule, {})[state] = _KINDS[kind]
    return table


def every_state() -> frozenset[str]:
    """The names of all rules' states."""
    return frozenset(name for states in _states().values() for name in states)


class Operands(NamedTuple):
    """The inputs of a rule for one tensor at a step: real numbers, in at least float32."""

    param: Tensor
    grad: Tensor
    states: Mapping[str, Tensor]
    step: float
    is_matrix: bool  # whether the user's parameter has several dimensions


class Rule(ABC):
    """The mathematics of an optimizer, with options from a parameter group."""

    name: ClassVar[str]  # of the native plan
    states_of: ClassVar[str]  # the rule in states.def that lists the states
    projects_rows: ClassVar[bool] = False  # whether a second phase needs whole rows
    # Options of some of the classes whose state_dicts it goes on from: loading drops those that it lacks.
    optional: ClassVar[tuple[str, ...]] = ()

    @property
    def states(self) -> Mapping[str, StateKind]:
        """The states of each tensor, besides `step`."""
        return _states()[self.states_of]

    @abstractmethod
    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise for settings that are out of range."""

    @abstractmethod
    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The group's numbers and flags under the native rule's names."""

    @abstractmethod
    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        """Advance parameter and states in place with the equations."""

    def identity(self) -> dict[str, Any]:
        """Entries of a state_dict's groups that distinguish rules with the same states."""
        return {}

    def understood(self, state_dict: dict[str, Any], class_name: str) -> dict[str, Any]:
        """Convert a state_dict to this rule's conventions; raise if that is impossible."""
        return state_dict


class MeasuredRule(Rule):
    """A rule with a quantity that `statistics` summarizes."""

    @abstractmethod
    def statistic(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        """The quantity for each element in the step that a gradient would make. Has no side effects."""


class ProjectedRule(Rule):
    """A rule whose direction AdamP's projection may change before it is applied."""

    projects_rows = True

    @abstractmethod
    def direction(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        """Advance the states; return the update before it is projected."""
