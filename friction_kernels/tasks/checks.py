"""What tasks cannot take, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.lists.operands import Operand, check_tensor
from friction_kernels.shards import local, mismatch
from friction_kernels.tasks.keeping import KEEPS, Keep


def check_parameters(parameters: Sequence[Tensor], keep: Keep) -> None:
    check_choice("keep", keep, KEEPS)
    if not parameters:
        raise ValueError("there are no shared parameters; give those that several tasks train")
    seen: dict[int, int] = {}
    for index, parameter in enumerate(parameters):
        if not isinstance(parameter, Tensor):
            raise TypeError(f"shared parameter {index} is {parameter!r}, and no tensor")
        if (first := seen.setdefault(id(parameter), index)) != index:
            raise ValueError(
                f"shared parameters {first} and {index} are the same tensor; give it once"
            )
        if keep != "dtype" and parameter.is_complex():
            raise ValueError(
                f"shared parameter {index} is complex, and keep={keep!r} is for real ones; use 'dtype'"
            )


def check_no_gradients(parameters: Sequence[Tensor], where: str) -> None:
    for index, parameter in enumerate(parameters):
        if parameter.grad is not None:
            raise RuntimeError(
                f"before {where}, shared parameter {index} has a gradient that is no task's; call "
                "zero_grad(set_to_none=True), and make every backward() in a task"
            )


def check_gradients(
    number: int, parameters: Sequence[Tensor], gradients: Operand, kept: Mapping[int, Operand]
) -> None:
    """Raise if the gradients of a task cannot be kept, beside those of the tasks that are."""
    if all(gradient is None for gradient in gradients):
        raise RuntimeError(
            f"task {number} left no gradient on any shared parameter; call backward() in its block, on a "
            "loss that depends on one, and do not release gradients"
        )
    for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        if gradient is None:
            continue
        what = f"task {number}'s gradient of shared parameter {index}"
        check_tensor(gradient, what)
        if problem := mismatch(parameter, gradient):
            raise RuntimeError(f"{what} is not placed as the parameter: {problem}")
        for other, its in kept.items():
            if _shares_memory(gradient, its[index]):
                raise RuntimeError(
                    f"{what} is in the memory of task {other}'s; switch off what reuses the memory of "
                    "gradients, such as gradient_as_bucket_view of DistributedDataParallel"
                )


def _shares_memory(gradient: Tensor, kept: Tensor | None) -> bool:
    if kept is None:
        return False
    address = local(gradient).data_ptr()
    return address != 0 and address == local(kept).data_ptr()
