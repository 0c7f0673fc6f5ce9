"""Bad input gets an error that names it and the remedy, before anything is changed."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from friction_kernels.backends import BACKENDS, is_plain, native_reason
from friction_kernels.optim.packed import packed_otherwise, packed_size
from friction_kernels.shards import is_dtensor

_COMPANION_TYPES = {"residual": (torch.int16, torch.int8), "master": (torch.float32,)}
_MOST_STEPS = 2**53  # above it float64 has no odd numbers, and a step would not be counted


def check_number(
    name: str, value: float | Tensor, low: float = 0.0, below: float = math.inf
) -> None:
    """Raise ValueError unless low <= value < below (a one-element tensor counts as its value)."""
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {tuple(value.shape)}")
    bounds = f"at least {low:g} and " + (f"below {below:g}" if below < math.inf else "finite")
    wrong_type = TypeError(f"{name} must be {bounds}, got {value!r}")
    if isinstance(value, str):  # float() would read it, and step() read it anew each time
        raise wrong_type
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong_type from error
    if not low <= number < below:
        raise ValueError(f"{name} must be {bounds}, got {number:g}")


def check_step_count(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless value is a whole number from 0 to 2**53.

    A tensor of one element counts as its value; one on a GPU is waited for.
    """
    wanted = f"{name} must be a count of steps, a whole number from 0 to 2**53"
    if isinstance(value, Tensor) and value.numel() != 1:
        shape = tuple(value.shape)
        raise ValueError(f"{wanted}; as a tensor it must have one element, got shape {shape}")
    wrong_type = TypeError(f"{wanted}, got {value!r}")
    if isinstance(value, str):  # float() would read it
        raise wrong_type
    try:
        count = float(value)  # type: ignore[arg-type]  # whatever cannot be read raises
    except OverflowError as error:
        raise ValueError(f"{wanted}, got {value!r}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise wrong_type from error
    if not (0 <= count <= _MOST_STEPS and count.is_integer()):
        raise ValueError(f"{wanted}, got {count:g}")


def as_number(name: str, value: float | Tensor) -> float:
    """A setting as it is in this step; raise TypeError where it is no number."""
    try:
        if not isinstance(value, str):  # float() would read it
            return float(value)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise TypeError(f"{name} must be a number, got {value!r}")


def check_bound(name: str, value: float) -> None:
    """Raise ValueError unless value is a number above 0; infinity is one."""
    if isinstance(value, bool) or not isinstance(value, Real) or not value > 0:
        raise ValueError(f"{name} must be a number above 0 (math.inf only measures), got {value!r}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    # Arrays compare element by element; they have no hash.
    if not isinstance(value, Hashable) or value not in set(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def pair_of_betas(value: Sequence[float | Tensor]) -> Sequence[float | Tensor]:
    """The value itself; raise ValueError where it is no pair."""
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {value!r}")
    return value


def check_betas(value: Sequence[float | Tensor]) -> None:
    for index, beta in enumerate(pair_of_betas(value)):
        check_number(f"betas[{index}]", beta, below=1.0)


def check_backend(value: str) -> None:
    check_choice("backend", value, BACKENDS)
    if value == "native" and native_reason() is not None:
        raise RuntimeError(
            f"backend='native' cannot serve: {native_reason()}; use backend='auto' or 'reference'"
        )


def parameter_name(group_index: int, group: Mapping[str, Any], index: int) -> str:
    """How errors call a parameter: its place, its name where the group knows names, its shape."""
    names = group.get("param_names")
    name = f"'{names[index]}', " if names else ""
    param = group["params"][index]
    shape = "not known yet" if is_lazy(param) else tuple(param.shape)
    return f"parameter {index} of group {group_index} ({name}shape {shape})"


def name_at(groups: Iterable[Mapping[str, Any]], ordinal: int) -> str:
    """The name of a parameter that is known by its place among those of all groups."""
    for group_index, group in enumerate(groups):
        if ordinal < len(group["params"]):
            return parameter_name(group_index, group, ordinal)
        ordinal -= len(group["params"])
    return "a parameter that is no longer there"


@dataclass
class LateName:
    """A parameter's name, made when an error needs it: a lazy parameter has no shape before."""

    group_index: int
    group: Mapping[str, Any]
    index: int

    def __str__(self) -> str:
        return parameter_name(self.group_index, self.group, self.index)


def with_names(params: Iterable[object], group_index: int) -> list[tuple[LateName, Tensor]]:
    """A new group's tensors and their names; none where torch refuses what was given."""
    named = [p if isinstance(p, tuple) else (None, p) for p in params]
    tensors = [p for _, p in named]
    if not tensors or not all(isinstance(p, Tensor) for p in tensors):
        return []  # torch's own add_param_group raises, and says what it got
    group = {"params": tensors, "param_names": [n for n, _ in named] if named[0][0] else None}
    return [(LateName(group_index, group, index), param) for index, param in enumerate(tensors)]


def is_frozen(param: Tensor) -> bool:
    """Whether a step leaves a parameter alone, whatever it is, unless that changes."""
    return not param.requires_grad and param.grad is None


def check_parameters(params: Iterable[Tensor | tuple[str, Tensor]], group_index: int) -> None:
    """Raise for parameters of integer type and for mixed kinds of devices within a group."""
    trained = [named for named in with_names(params, group_index) if not is_frozen(named[1])]
    for name, param in trained:
        if not (param.is_floating_point() or param.is_complex()):
            raise TypeError(
                f"{name} has type {param.dtype}; only floating-point and complex parameters can be "
                "updated: leave it out of params, or register it as a buffer"
            )
        check_device(name, param, *trained[0])


def check_device(name: object, param: Tensor, first_name: LateName, first: Tensor) -> None:
    """Raise where two parameters of a group are on different kinds of devices."""
    if param.device.type != first.device.type:
        raise ValueError(
            f"{name} is on {param.device} and parameter {first_name.index} of the group on "
            f"{first.device}; put each kind of device into a parameter group of its own"
        )


def check_groups(groups: Iterable[Mapping[str, Any]], options: Set[str]) -> None:
    for index, group in enumerate(groups):
        check_group(index, group, options)


def check_group(index: int, group: Mapping[str, Any], options: Set[str]) -> None:
    """Raise where a group has no longer what a step reads."""
    if "params" not in group or not options <= group.keys():
        missing = {"params", *options} - group.keys()
        raise ValueError(
            f"group {index} of param_groups has no {min(missing)!r}; put it back, or add groups with "
            "add_param_group(), which completes them"
        )
    if not isinstance(group["params"], (list, tuple)):
        raise TypeError(
            f"group {index} of param_groups has params={group['params']!r}, which is no list of parameters"
        )


def check_members(index: int, group: Mapping[str, Any]) -> None:
    """Raise where one of a group's parameters is none."""
    for place, param in enumerate(group["params"]):
        if not isinstance(param, Tensor):
            raise TypeError(
                f"parameter {place} of group {index} is {param!r}, and no tensor; take it out of the group"
            )


def check_capturable(
    group: Mapping[str, Any], params: Iterable[Tensor | tuple[str, Tensor]]
) -> None:
    """Raise where a captured step could not follow a setting: a graph reads its own device only."""
    check_choice("capturable", group["capturable"], (False, True))
    if not group["capturable"]:
        return
    settings = {name: value for name, value in group.items() if name not in ("params", "betas")}
    settings.update((f"betas[{i}]", beta) for i, beta in enumerate(group.get("betas", ())))
    tensors = {name: value for name, value in settings.items() if isinstance(value, Tensor)}
    for item in params:
        param = item[1] if isinstance(item, tuple) else item
        if not hasattr(param, "device") or is_frozen(param):  # torch says what else it got
            continue
        for name, value in tensors.items():
            if value.device != param.device:
                raise ValueError(
                    f"{name} is a tensor on {value.device} and a parameter is on {param.device}; for "
                    "capturable=True put it there, or give a number, which a captured step keeps"
                )


def check_captured(groups: Iterable[Mapping[str, Any]]) -> None:
    """Raise where a CUDA graph would leave something out of every replay, in silence."""
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
    """Whether it is one of FakeTensorMode's, which have a shape and no numbers."""
    module = sys.modules.get("torch._subclasses.fake_tensor")
    return module is not None and isinstance(tensor, module.FakeTensor)


def check_not_faking() -> None:
    """Raise under FakeTensorMode, whose operators compute shapes alone."""
    if is_fake(torch.empty(0, device="cpu")):
        raise RuntimeError(
            "step() cannot run under FakeTensorMode, in which tensors have no numbers; leave the mode first"
        )


def check_gradient(name: object, param: Tensor, grad: Tensor) -> None:
    """Raise where a parameter cannot be updated, or not by this gradient."""
    if is_fake(param) or is_fake(grad):
        raise RuntimeError(
            f"{name} or its gradient is a FakeTensor and has no numbers; make it outside of FakeTensorMode"
        )
    if param.device.type == "meta":
        raise RuntimeError(f"{name} is on the meta device and has no memory; call to_empty() first")
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
    """Raise for elements without an address: of a storage resized to nothing, or autograd's zero tensors.

    what: which tensor of the parameter it is; empty for the parameter itself. Subclasses may keep their
    elements elsewhere.
    """
    knows = type(tensor) is Tensor or is_plain(type(tensor))
    if not knows or not tensor.numel():
        return
    if tensor.untyped_storage().nbytes() == 0 or tensor.data_ptr() == 0:
        which = f"{name}: its {what}" if what else str(name)
        raise RuntimeError(
            f"{which} has no memory; bring its storage back, or clone() a zero tensor"
        )


def shares_memory(tensor: Tensor) -> bool:
    """Whether several indices may name one place in memory, as in an expanded tensor."""
    reach = 1  # of the dimensions so far, in elements
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride < reach:
            return tensor.numel() > 0
        reach += stride * (size - 1)
    return False


def check_loaded(name: object, param: Tensor, key: str, value: object, *, is_list: bool) -> None:
    """Raise where what a state_dict has cannot become a parameter's state."""
    remedy = "load one that was saved with this model's parameters in this order"
    if not isinstance(value, Tensor):
        raise ValueError(
            f"the state_dict has {value!r} as '{key}' for {name}, and not a tensor; {remedy}"
        )
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"of layout {value.layout}"
        raise ValueError(
            f"the state_dict has '{key}' for {name}, which is {kind}; make it dense with to_dense()"
        )
    if value.device.type == "meta":
        raise ValueError(
            f"the state_dict has '{key}' for {name} on the meta device, without numbers; load one that "
            "was saved with them"
        )
    if is_list:
        right = value.is_complex() if param.is_complex() else value.is_floating_point()
    else:
        right = value.dtype in (*_COMPANION_TYPES[key], torch.int32)  # 16 bits that were sent in 32
    if not right:
        raise ValueError(
            f"the state_dict has '{key}' of type {value.dtype} for {name}, which is {param.dtype}; {remedy}"
        )
    if value.shape != param.shape:
        raise ValueError(
            f"the state_dict has '{key}' of shape {tuple(value.shape)} for {name}; {remedy}"
        )


def check_state(
    name: object, param: Tensor, state: Mapping[str, Any], keys: Collection[str]
) -> None:
    """Raise where a parameter's state does not fit it."""
    remedy = "; load states with load_state_dict(), which converts them"
    if not isinstance(state, dict):
        raise RuntimeError(f"{name} has {state!r} for its state, and not a dict{remedy}")
    step = state.get("step")
    if not isinstance(step, Tensor):
        raise RuntimeError(f"{name} has no state 'step'{remedy}")
    _check_here(name, "step", step)
    if (
        step.numel() != 1
        or step.dtype not in (torch.float32, torch.float64)
        or (step.device.type != "cpu" and step.device != param.device)
    ):
        raise RuntimeError(
            f"{name} has a state 'step' of type {step.dtype}, shape {tuple(step.shape)}, on "
            f"{step.device}, and not one float32 number on the CPU or its device{remedy}"
        )
    if any(isinstance(state.get(key), Tensor) and state[key].dtype == torch.uint8 for key in keys):
        problem = packed_otherwise(param, state)
        if problem is not None:
            raise RuntimeError(f"{name} {problem}")
    if step.device.type == "cpu":  # nobody waits for a GPU
        try:
            check_step_count(f"state 'step' of {name}", step)
        except ValueError as error:
            raise RuntimeError(str(error)) from None
    companions = {key: dtypes for key, dtypes in _COMPANION_TYPES.items() if key in state}
    for key in (*keys, *companions):
        value = state.get(key)
        if not isinstance(value, Tensor):
            raise RuntimeError(f"{name} has no state '{key}'{remedy}")
        _check_here(name, key, value)
        if shares_memory(value):
            raise RuntimeError(f"{name} has state '{key}' whose elements share memory; clone() it")
        if value.is_neg() or value.is_conj():
            raise RuntimeError(
                f"{name} has state '{key}' that is a negated or conjugated view; clone() it"
            )
        packed = value.dtype == torch.uint8 and key not in companions
        count = param.numel() * (2 if param.is_complex() else 1)
        shape = (packed_size(count),) if packed else param.shape
        if value.shape != shape:
            raise RuntimeError(
                f"{name} has state '{key}' of shape {tuple(value.shape)} where this process needs "
                f"{tuple(shape)}; delete its state, or load one with load_state_dict()"
            )
        if value.device != param.device:
            raise RuntimeError(
                f"{name} is on {param.device}, state '{key}' on {value.device}{remedy}"
            )
        check_memory(name, f"state '{key}'", value)
        if key in companions:
            right = value.dtype in companions[key]
        elif param.dtype in (torch.float64, torch.complex128):
            right = value.dtype == param.dtype
        elif param.is_complex():
            right = packed or value.is_complex()
        else:
            right = packed or value.is_floating_point()
        if not right:
            raise RuntimeError(f"{name} is {param.dtype}, state '{key}' {value.dtype}{remedy}")


def _check_here(name: object, key: str, value: Tensor) -> None:
    """Raise where a state's numbers are not simply there, on this process."""
    if is_fake(value):
        raise RuntimeError(f"{name} has state '{key}' that is a FakeTensor; delete its state")
    if value.layout != torch.strided:
        raise RuntimeError(f"{name} has state '{key}' of layout {value.layout}; make it dense")
    if is_dtensor(value):
        raise RuntimeError(
            f"{name} has state '{key}' that is a DTensor; keep its local part, to_local(), or load it "
            "with load_state_dict()"
        )
