"""What csrc/bindings.cpp binds."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

compiler: str
cuda_architectures: tuple[str, ...]

def why_not_cuda(device: int) -> str: ...
def probe_cuda(device: int) -> None: ...
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def thread_source() -> str: ...
def launch_counts() -> dict[str, int]: ...

class TensorReader:
    def __init__(self, tensor: type, parameter: type) -> None: ...
    def allow(self, subclass: type) -> None: ...
    def unwrap(self, dtensor: type) -> None: ...

class Plan:
    @property
    def updated(self) -> list[Tensor]: ...

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
        self,
        state: dict[Tensor, Any],
        param_groups: list[dict[str, Any]],
        settings: list[list[float | Tensor]],
        threads: int,
        guards: list[tuple[int, Tensor | None, Tensor | None, Tensor | None, bool]] = ...,
    ) -> tuple[int, str] | None: ...
    def squared_norm(
        self,
        state: dict[Tensor, Any],
        param_groups: list[dict[str, Any]],
        counted: list[bool],
        targets: list[tuple[int, Tensor]],
        threads: int,
    ) -> tuple[int, str] | None: ...

class _FrictionPlan(_RulePlan):
    def observations(self, groups: int) -> list[tuple[int, float, float]]: ...

# By the names of the rules.
class friction_adam(_FrictionPlan): ...  # noqa: N801
class friction_adamp(_FrictionPlan): ...  # noqa: N801
class rsgdm(_RulePlan): ...  # noqa: N801
