"""A rule: what a step does to one tensor, and which states it keeps. It knows no optimizer."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from torch import Tensor


class StateKind(NamedTuple):
    """How a state is kept."""

    at_least_float32: bool  # otherwise in the parameter's type, as what is copied may be
    non_negative: bool


_KINDS = {
    "average": StateKind(at_least_float32=True, non_negative=False),
    "square": StateKind(at_least_float32=True, non_negative=True),
    "copy": StateKind(at_least_float32=False, non_negative=False),
}


@cache
def _states() -> dict[str, dict[str, StateKind]]:
    """By rule and name: the table that the native rules are made from, too."""
    table: dict[str, dict[str, StateKind]] = {}
    text = Path(__file__).with_name("states.def").read_text()
    for rule, state, kind in re.findall(r"^STATE\((\w+), (\w+), (\w+)\)$", text, re.MULTILINE):
        table.setdefault(rule, {})[state] = _KINDS[kind]
    return table


class Operands(NamedTuple):
    """What a rule sees of one tensor at a step: real numbers, in float32 at least."""

    param: Tensor
    grad: Tensor
    states: Mapping[str, Tensor]
    step: float
    is_matrix: bool  # whether the parameter, as the user has it, has several dimensions


class Rule(ABC):
    """The mathematics of an optimizer, its options given as a parameter group's."""

    name: ClassVar[str]  # of the native plan
    states_of: ClassVar[str]  # whose states in states.def
    projects_rows: ClassVar[bool] = False  # whether a second phase needs whole rows

    @property
    def states(self) -> Mapping[str, StateKind]:
        """Of each tensor, beside `step`."""
        return _states()[self.states_of]

    @abstractmethod
    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raise for settings that are out of range."""

    @abstractmethod
    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        """The group's numbers and flags by the native rule's names."""

    @abstractmethod
    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        """Advance parameter and states in place, by the equations."""

    def identity(self) -> dict[str, Any]:
        """What tells the rule from others with the same states; a state_dict's groups say it."""
        return {}

    def understood(self, state_dict: dict[str, Any], class_name: str) -> dict[str, Any]:
        """A state_dict in this rule's terms; raise where there are none."""
        return state_dict


class MeasuredRule(Rule):
    """A rule with a quantity that `statistics` are of."""

    @abstractmethod
    def statistic(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        """Of each element in the step that a gradient would make. Changes nothing."""


class ProjectedRule(Rule):
    """A rule whose direction AdamP's projection may change before it is applied."""

    projects_rows = True

    @abstractmethod
    def direction(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        """Advance the states; return the update before it is projected."""
