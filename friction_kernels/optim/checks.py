"""Validate input before anything is changed; errors name the input and the remedy."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from friction_kernels.backends import BACKENDS, NATIVE_DTYPES, is_plain, native_unavailable_reason
from friction_kernels.choices import check_choice

NO_MEMORY = "has no memory for its elements; bring its storage back, or clone() a zero tensor"


def as_float(name: str, value: object) -> float | None:
    """The value of a number or one-element tensor, or None for anything else.

    Raises ValueError for a tensor without memory, which cannot even be printed.
    """
    if isinstance(value, Tensor) and lacks_memory(value):
        raise ValueError(f"{name} is a tensor that {NO_MEMORY}")
    if isinstance(value, Tensor) and value.requires_grad:
        value = value.detach()  # torch warns when reading a tensor that requires grad
    complex_tensor = isinstance(value, Tensor) and value.is_complex()
    if isinstance(value, str) or complex_tensor:  # float() would parse it, or drop a part
        return None
    try:
        return float(value)  # type: ignore[arg-type]  # raises if it cannot be converted
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def check_number(
    name: str, value: float | Tensor, low: float = 0.0, below: float = math.inf
) -> None:
    """Raise ValueError unless low <= value < below (a one-element tensor counts as its value)."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
    number = as_float(name, value)
    if number is not None and low <= number < below:
        return
    bounds = f"at least {low:g} and " + (f"below {below:g}" if below < math.inf else "finite")
    if number is None:
        raise TypeError(f"{name} must be {bounds}, got {value!r}")
    raise ValueError(f"{name} must be {bounds}, got {number:g}")


def as_number(name: str, value: float | Tensor) -> float:
    """A setting's value at this step; raises TypeError if it is not a number."""
    number = as_float(name, value)
    if number is None:
        raise TypeError(f"{name} must be a number, got {value!r}")
    return number


def check_bound(name: str, value: float) -> None:
    """Raise ValueError unless value is a number above 0; infinity is allowed."""
    if isinstance(value, bool) or not isinstance(value, Real) or not value > 0:
        raise ValueError(f"{name} must be a number above 0 (math.inf only measures), got {value!r}")


def pair_of_betas(value: Sequence[float | Tensor]) -> Sequence[float | Tensor]:
    """Return the value, or raise ValueError if it is not a pair."""
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {value!r}")
    return value


def check_betas(value: Sequence[float | Tensor]) -> None:
    for index, beta in enumerate(pair_of_betas(value)):
        check_number(f"betas[{index}]", beta, below=1.0)


def check_backend(value: str) -> None:
    check_choice("backend", value, BACKENDS)
    if value == "native" and native_unavailable_reason() is not None:
        raise RuntimeError(
            f"backend='native' cannot serve: {native_unavailable_reason()}; use backend='auto' or 'reference'"
        )


def parameter_name(group_index: int, group: Mapping[str, Any], index: int) -> str:
    """A parameter's name in errors: its index, its name if the group has names, and its shape."""
    names = group.get("param_names")
    name = f"'{names[index]}', " if names else ""
    param = group["params"][index]
    shape = "not known yet" if is_lazy(param) else tuple(param.shape)
    return f"parameter {index} of group {group_index} ({name}shape {shape})"


def name_at(groups: Iterable[Mapping[str, Any]], ordinal: int) -> str:
    """The name of the parameter at this index among those of all groups."""
    for group_index, group in enumerate(groups):
        if ordinal < len(group["params"]):
            return parameter_name(group_index, group, ordinal)
        ordinal -= len(group["params"])
    return "a parameter that is no longer there"


@dataclass
class LateName:
    """A parameter's name, formatted when an error needs it: a lazy parameter has no shape before."""

    group_index: int
    group: Mapping[str, Any]
    index: int

    def __str__(self) -> str:
        return parameter_name(self.group_index, self.group, self.index)


def with_names(params: Iterable[object], group_index: int) -> list[tuple[LateName, Tensor]]:
    """A new group's tensors with their names; empty if torch will refuse the input."""
    named = [p if isinstance(p, tuple) else (None, p) for p in params]
    tensors = [p for _, p in named]
    if not tensors or not all(isinstance(p, Tensor) for p in tensors):
        return []  # torch's own add_param_group raises for this
    group = {"params": tensors, "param_names": [n for n, _ in named] if named[0][0] else None}
    return [(LateName(group_index, group, index), param) for index, param in enumerate(tensors)]


def is_frozen(param: Tensor) -> bool:
    """Whether steps currently ignore a parameter, whatever its dtype or device."""
    return not param.requires_grad and param.grad is None


def unsupported_reason(param: Tensor) -> str | None:
    """Why a parameter's dtype cannot be updated, or None if it can."""
    if param.dtype in NATIVE_DTYPES:  # the reference supports no others
        return None
    return (
        f"has type {param.dtype}; only floating-point and complex parameters can be updated, of 16 bits "
        "and more: leave it out of params, or register it as a buffer"
    )


def check_parameters(params: Iterable[Tensor | tuple[str, Tensor]], group_index: int) -> None:
    """Raise if a parameter's dtype cannot be updated, or a group mixes kinds of devices."""
    trained = [named for named in with_names(params, group_index) if not is_frozen(named[1])]
    for name, param in trained:
        problem = unsupported_reason(param)
        if problem is not None:
            raise TypeError(f"{name} {problem}")
        check_device(name, param, *trained[0])


def check_device(name: object, param: Tensor, first_name: LateName, first: Tensor) -> None:
    """Raise if two parameters of a group are on different kinds of devices."""
    if param.device.type != first.device.type:
        raise ValueError(
            f"{name} is on {param.device} and parameter {first_name.index} of the group on "
            f"{first.device}; put each kind of device into a parameter group of its own"
        )


def check_groups(groups: object, options: Set[str]) -> None:
    if not isinstance(groups, list):
        raise TypeError(
            f"param_groups is of type {type(groups).__name__}, and no list; give list(param_groups)"
        )
    for index, group in enumerate(groups):
        check_group(index, group, options)


def check_states(states: object) -> None:
    if not isinstance(states, dict):
        raise TypeError(
            f"the optimizer's state is of type {type(states).__name__}, and no dict; make it one, or load "
            "states with load_state_dict()"
        )


def check_group(index: int, group: object, options: Set[str]) -> None:
    """Raise if a group lacks entries that a step reads."""
    if not isinstance(group, dict):
        raise TypeError(
            f"group {index} of param_groups is of type {type(group).__name__}, and no dict; add groups "
            "with add_param_group()"
        )
    if "params" not in group or not options <= group.keys():
        missing = min(options - group.keys()) if "params" in group else "params"
        raise ValueError(
            f"group {index} of param_groups has no {missing!r}; put it back, or add groups with "
            "add_param_group(), which completes them"
        )
    if not isinstance(group["params"], (list, tuple)):
        raise TypeError(
            f"group {index} of param_groups has params={group['params']!r}, which is no list of parameters"
        )


def check_members(index: int, group: Mapping[str, Any]) -> None:
    """Raise if a member of a group is not a tensor."""
    for place, param in enumerate(group["params"]):
        if not isinstance(param, Tensor):
            raise TypeError(
                f"parameter {place} of group {index} is {param!r}, and no tensor; take it out of the group"
            )


def check_capturable(
    group: Mapping[str, Any], params: Iterable[Tensor | tuple[str, Tensor]]
) -> None:
    """Raise if a captured step could not follow a setting: a graph reads its own device only."""
    check_choice("capturable", group["capturable"], (False, True))
    if not group["capturable"]:
        return
    settings = {name: value for name, value in group.items() if name not in ("params", "betas")}
    settings.update((f"betas[{i}]", beta) for i, beta in enumerate(group.get("betas", ())))
    tensors = {name: value for name, value in settings.items() if isinstance(value, Tensor)}
    for item in params:
        param = item[1] if isinstance(item, tuple) else item
        if not hasattr(param, "device") or is_frozen(param):  # otherwise torch raises
            continue
        for name, value in tensors.items():
            if value.device != param.device:
                raise ValueError(
                    f"{name} is a tensor on {value.device} and a parameter is on {param.device}; for "
                    "capturable=True put it there, or give a number, which a captured step keeps"
                )


def check_captured(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise if a CUDA graph would silently leave something out of every replay."""
    for group_index, group in enumerate(groups):
        check_capturable(group, [param for param in group["params"] if param.is_cuda])
        for index, param in enumerate(group["params"]):
            if not param.is_cuda or is_frozen(param):
                continue
            name = parameter_name(group_index, group, index)
            if not group["capturable"]:
                raise RuntimeError(
                    f"{name}: a CUDA graph would hold its step's number and settings as they are now; "
                    "construct the optimizer with capturable=True"
                )
            if param.grad is None:
                raise RuntimeError(
                    f"{name} has no gradient while a CUDA graph is captured, and would be left out of "
                    "every replay; run backward() in the capture, or freeze it with "
                    "requires_grad_(False)"
                )


def is_fake(tensor: Tensor) -> bool:
    """Whether it is a FakeTensor, which has a shape but no numbers."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def check_not_faking() -> None:
    """Raise under FakeTensorMode, whose operators compute only shapes."""
    if is_fake(torch.empty(0, device="cpu")):
        raise RuntimeError(
            "step() cannot run under FakeTensorMode, in which tensors have no numbers; leave the mode first"
        )


def check_gradient(name: object, param: Tensor, grad: Tensor) -> None:
    """Raise if a parameter cannot be updated, or not with this gradient."""
    if is_fake(param) or is_fake(grad):
        raise RuntimeError(
            f"{name} or its gradient is a FakeTensor and has no numbers; make it outside of FakeTensorMode"
        )
    if param.device.type == "meta":
        raise RuntimeError(f"{name} is on the meta device and has no memory; call to_empty() first")
    problem = unsupported_reason(param)
    if problem is not None:
        raise RuntimeError(f"{name} {problem}")
    if shares_memory(param):
        raise RuntimeError(f"{name} has elements that share memory; make it of a clone()")
    check_memory(name, "", param)
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"{name} has a sparse gradient ({grad.layout}); make it dense (for nn.Embedding: "
            "sparse=False) or give the parameter to torch.optim.SparseAdam"
        )
    if grad.shape != param.shape:
        raise RuntimeError(
            f"{name} has a gradient of shape {tuple(grad.shape)}; call zero_grad() after changing "
            "a parameter's shape"
        )
    if grad.device != param.device:
        raise RuntimeError(
            f"{name} is on {param.device} and its gradient on {grad.device}; "
            "move the model before backward()"
        )
    if grad.is_complex() != param.is_complex() or not (
        grad.is_complex() or grad.is_floating_point()
    ):
        raise RuntimeError(f"{name} has type {param.dtype} and its gradient {grad.dtype}")
    check_memory(name, "gradient", grad)


def check_memory(name: object, what: str, tensor: Tensor) -> None:
    """Raise if elements have no memory: in a shrunken storage, or in one of autograd's zero tensors.

    what: which tensor of the parameter it is; empty for the parameter itself.
    """
    if lacks_memory(tensor):
        which = f"{name}: its {what}" if what else str(name)
        raise RuntimeError(f"{which} {NO_MEMORY}")


def lacks_memory(tensor: Tensor) -> bool:
    """Whether some elements have no memory. Subclasses are exempt: they may store elements elsewhere."""
    knows = type(tensor) is Tensor or is_plain(type(tensor))
    if not knows or tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return False
    strides = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * stride for size, stride in strides)
    return tensor.untyped_storage().nbytes() < (last + 1) * tensor.itemsize or not tensor.data_ptr()


def shares_memory(tensor: Tensor) -> bool:
    """Whether several indices may refer to one memory location, as in an expanded tensor."""
    reach = 1  # extent of the dimensions so far, in elements
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            return tensor.numel() > 0
        reach += stride * (size - 1)
    return False
