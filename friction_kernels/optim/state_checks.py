"""Checks of states: those that a step continues from, and those that are loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from friction_kernels.optim.blockwise import quantized_mismatch, quantized_size
from friction_kernels.optim.checks import (
    NO_MEMORY,
    as_float,
    check_memory,
    is_fake,
    lacks_memory,
    shares_memory,
)
from friction_kernels.shards import is_dtensor, local

_MASTER_DTYPES = {"residual": (torch.int16, torch.int8), "master": (torch.float32,)}
_MOST_STEPS = 2**53  # above it, adding 1 does not change a float64 number


def why_no_step_count(value: object) -> str | None:
    """Why a value is not a count of steps, or None if it is. Waits for a tensor on a GPU."""
    wanted = "must be a count of steps, a whole number from 0 to 2**53"
    if isinstance(value, Tensor):
        if value.numel() != 1:
            shape = tuple(value.shape)
            return f"{wanted}; as a tensor it must have one element, got shape {shape}"
        if value.layout != torch.strided:
            return f"{wanted}, got a tensor of layout {value.layout}"
        if lacks_memory(value):
            return NO_MEMORY
    count = as_float("step", value)
    if count is not None and 0 <= count <= _MOST_STEPS and count.is_integer():
        return None
    is_number = isinstance(value, Tensor) and count is not None
    return f"{wanted}, got {f'{count:g}' if is_number else repr(value)}"


def check_loaded(name: object, param: Tensor, key: str, value: object, *, is_state: bool) -> None:
    """Raise if an entry of a state_dict cannot become a parameter's state."""
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
    if lacks_memory(local(value)):
        raise ValueError(f"the state_dict has '{key}' for {name}, which {NO_MEMORY}")
    if is_state:
        right = value.is_complex() if param.is_complex() else value.is_floating_point()
    else:
        right = value.dtype in _MASTER_DTYPES[key] or _is_int16_in_32(key, local(value))
        wanted = " or ".join(map(str, _MASTER_DTYPES[key]))
        remedy = f"it must be {wanted}; {remedy}"
    if not right:
        raise ValueError(
            f"the state_dict has '{key}' of type {value.dtype} for {name}, which is {param.dtype}; {remedy}"
        )
    if value.shape != param.shape:
        raise ValueError(
            f"the state_dict has '{key}' of shape {tuple(value.shape)} for {name}; {remedy}"
        )


def _is_int16_in_32(key: str, value: Tensor) -> bool:
    """Whether a residual of 16 bits was widened, as it is when it is sent between processes."""
    return key == "residual" and value.dtype == torch.int32 and bool((value == value.short()).all())


def check_state(
    name: object, param: Tensor, state: Mapping[str, Any], keys: Collection[str]
) -> None:
    """Raise if a parameter's state does not fit it."""
    remedy = "; load states with load_state_dict(), which converts them"
    if not isinstance(state, dict):
        raise RuntimeError(f"{name} has {state!r} for its state, and not a dict{remedy}")
    step = _tensor_of(name, state, "step", remedy)
    check_memory(name, "state 'step'", step)
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
        problem = quantized_mismatch(param, state)
        if problem is not None:
            raise RuntimeError(f"{name} {problem}")
    if step.device.type == "cpu":  # do not wait for a GPU
        problem = why_no_step_count(step)
        if problem is not None:
            raise RuntimeError(f"state 'step' of {name} {problem}")
    masters = {key: dtypes for key, dtypes in _MASTER_DTYPES.items() if key in state}
    for key in (*keys, *masters):
        value = _tensor_of(name, state, key, remedy)
        if shares_memory(value):
            raise RuntimeError(f"{name} has state '{key}' whose elements share memory; clone() it")
        if value.is_neg() or value.is_conj():
            raise RuntimeError(
                f"{name} has state '{key}' that is a negated or conjugated view; clone() it"
            )
        quantized = value.dtype == torch.uint8 and key not in masters
        count = param.numel() * (2 if param.is_complex() else 1)
        shape = (quantized_size(count),) if quantized else param.shape
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
        if key in masters:
            right = value.dtype in masters[key]
        elif param.dtype in (torch.float64, torch.complex128):
            right = value.dtype == param.dtype
        elif param.is_complex():
            right = quantized or value.is_complex()
        else:
            right = quantized or value.is_floating_point()
        if not right:
            raise RuntimeError(f"{name} is {param.dtype}, state '{key}' {value.dtype}{remedy}")


def _tensor_of(name: object, state: Mapping[str, Any], key: str, remedy: str) -> Tensor:
    """Return a state; raise unless it is a plain, dense tensor on this process."""
    if key not in state:
        raise RuntimeError(f"{name} has no state '{key}'{remedy}")
    value = state[key]
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise RuntimeError(f"{name} has state '{key}' of type {kind}, and not a tensor{remedy}")
    if is_fake(value):
        raise RuntimeError(f"{name} has state '{key}' that is a FakeTensor; delete its state")
    if value.layout != torch.strided:
        raise RuntimeError(f"{name} has state '{key}' of layout {value.layout}; make it dense")
    if is_dtensor(value):
        raise RuntimeError(
            f"{name} has state '{key}' that is a DTensor; keep its local part, to_local(), or load it "
            "with load_state_dict()"
        )
    return value
