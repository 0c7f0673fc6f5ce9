"""Bindings defined in csrc/bindings.cpp."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

compiler: str
cuda_architectures: tuple[str, ...]

def cuda_unavailable_reason(device: int) -> str: ...
def probe_cuda(device: int) -> None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def thread_source() -> str: ...
def launch_counts() -> dict[str, int]: ...
def gram(
    reader: TensorReader,
    lists: list[list[Tensor | None]],
    segments: list[int],
    segment_count: int,
    results: Callable[[int], Tensor],
    threads: int,
    allocate: Callable[[int, int], Tensor],
    keep: list[Tensor],
) -> list[Tensor] | tuple[int, int]: ...
def combine(
    reader: TensorReader,
    lists: list[list[Tensor | None]],
    weights: list[float] | Callable[[int], Tensor],
    check: Callable[[int], None],
    threads: int,
    allocate: Callable[[int, int], Tensor],
    keep: list[Tensor],
) -> tuple[int, int] | None: ...

class TensorReader:
    def __init__(self, tensor: type, parameter: type) -> None: ...
    def allow(self, subclass: type) -> None: ...
    def unwrap(self, dtensor: type) -> None: ...

class Plan:
    @property
    def updated(self) -> list[Tensor]: ...

# Context manager over a plan; entering returns the first problem found, or None.
class Reading:
    def __init__(
        self, plan: Plan, state: dict[Tensor, Any], param_groups: list[dict[str, Any]]
    ) -> None: ...
    def __enter__(self) -> tuple[int, str] | None: ...
    def __exit__(self, *args: object) -> None: ...

_Scaling = list[tuple[int, Tensor | None, Tensor | None, Tensor | None, bool]]

class _RulePlan(Plan):
    settings: ClassVar[tuple[str, ...]]
    def __init__(
        self,
        reader: TensorReader,
        entries: list[tuple[object, ...]],
        allocate: Callable[[int, int], Tensor],
        keep: list[Tensor],
    ) -> None: ...
    def step(
        self, settings: list[list[float | Tensor]], threads: int, scaling: _Scaling = ...
    ) -> tuple[int, str] | None: ...
    def squared_norm(
        self, counted: list[bool], targets: list[tuple[int, Tensor]], threads: int
    ) -> tuple[int, str] | None: ...

class _FrictionPlan(_RulePlan):
    def statistics(
        self, settings: list[list[float | Tensor]], threads: int, scaling: _Scaling = ...
    ) -> tuple[list[tuple[int, float, float]], tuple[int, str] | None]: ...

# One plan class per rule, under the rule's name.
class adam(_RulePlan): ...  # noqa: N801
class adamp(_RulePlan): ...  # noqa: N801
class friction_adam(_FrictionPlan): ...  # noqa: N801
class friction_adamp(_FrictionPlan): ...  # noqa: N801
class sgd(_RulePlan): ...  # noqa: N801
