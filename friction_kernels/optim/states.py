"""A parameter's wide value and its states: how to store, create, convert, read and write them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from friction_kernels.optim import options
from friction_kernels.optim.blockwise import (
    ORDER,
    QUANTIZED_SHAPE,
    dequantize,
    quantize,
    quantized_size,
    threshold_of,
)
from friction_kernels.optim.element_order import ElementOrder
from friction_kernels.optim.master_weights import join, split
from friction_kernels.optim.options import MASTER_KEYS, QUANTIZED
from friction_kernels.optim.rounding import RandomKey, round_from, round_stochastically
from friction_kernels.optim.rule import Rule, StateKind

NOTES = (QUANTIZED_SHAPE, ORDER)  # entries of a state that are not tensors


def reals(tensor: Tensor) -> Tensor:
    """View a complex tensor as pairs of reals; return other tensors unchanged."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def count_of_reals(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.is_complex() else 1)


# Step counts.

MOST_FLOAT32_STEPS = 2**24  # adding 1 to it does not change a float32 number


def is_full(step: Tensor) -> bool:
    """Whether a float32 step count on the CPU can count no further. Never waits for a GPU."""
    return (
        step.dtype == torch.float32
        and step.device.type == "cpu"
        and step.item() >= MOST_FLOAT32_STEPS
    )


# States.


def read_state(param: Tensor, state: Mapping[str, Any], key: str, kind: StateKind) -> Tensor:
    """A state's real numbers in at least float32; its own memory if it is stored that way."""
    value: Tensor = state[key]
    if value.dtype != QUANTIZED:
        value = reals(value)
        return value.to(torch.promote_types(value.dtype, torch.float32))
    flat = dequantize(value, count_of_reals(param), signed=not kind.non_negative)
    shape = (*param.shape, 2) if param.is_complex() else param.shape
    return _element_order(param, state).unflatten(flat, shape)


def write_state(
    param: Tensor, state: Mapping[str, Any], key: str, kind: StateKind, numbers: Tensor
) -> None:
    """Store numbers that came from `read_state` and were changed by a step."""
    value = state[key]
    if value.dtype == QUANTIZED:
        is_average = kind.at_least_float32
        threshold = threshold_of(int(state["step"].item())) if is_average else 0.5
        flat = _element_order(param, state).flatten(numbers)
        value.copy_(quantize(flat, signed=not kind.non_negative, threshold=threshold))
    elif value.dtype == torch.bfloat16 and kind.at_least_float32:
        value.copy_(round_from(numbers, threshold_of(int(state["step"].item()))))
    elif reals(value).dtype != numbers.dtype:
        reals(value).copy_(numbers)


def numbers_of(param: Tensor, state: Mapping[str, Any], key: str, kind: StateKind) -> Tensor:
    """A state as numbers of the parameter's shape: codes become float32, others are returned as is."""
    value: Tensor = state[key]
    if value.dtype != QUANTIZED:
        return value
    numbers = read_state(param, state, key, kind)
    return torch.view_as_complex(numbers.contiguous()) if param.is_complex() else numbers


def _element_order(param: Tensor, state: Mapping[str, Any]) -> ElementOrder:
    return ElementOrder(tuple(state.get(ORDER, range(param.dim()))))


# The wide value.


def read_wide(param: Tensor, state: Mapping[str, Any]) -> Tensor:
    """The parameter's value in at least float32; its own memory if it is stored that way."""
    if "master" in state:
        master: Tensor = state["master"]
        # A parameter that is not the rounded master was written by other code, and takes precedence.
        written = master.to(param.dtype).view(torch.int16) != param.view(torch.int16)
        return master.copy_(torch.where(written, param.to(master.dtype), master))
    if "residual" in state:
        return join(param, state["residual"])
    return param.to(torch.promote_types(param.dtype, torch.float32))


def write_wide(
    param: Tensor,
    state: Mapping[str, Any],
    wide: Tensor,
    *,
    random: RandomKey | None,
    order: ElementOrder,
) -> None:
    """Store a wide value that came from `read_wide` and was changed; `random`: round stochastically."""
    if "residual" in state:
        narrow, residual = split(wide, param.dtype, state["residual"].dtype)
        state["residual"].copy_(residual)
        param.copy_(narrow)
    elif random is not None:
        flat = round_stochastically(order.flatten(wide), param.dtype, random)
        param.copy_(order.unflatten(flat, param.shape))
    elif wide is not param:
        param.copy_(wide)


# How states and wide values are to be stored.


@dataclass(frozen=True)
class StateFormat:
    """How a group's options require one parameter and its states to be stored."""

    kinds: Mapping[str, StateKind]
    states: dict[str, tuple[torch.dtype, bool]]  # dtype, and whether the group requests it
    master: tuple[str, torch.dtype] | None
    order: ElementOrder
    counts_on_device: bool

    @classmethod
    def of(
        cls,
        rule: Rule,
        param: Tensor,
        group: Mapping[str, Any],
        *,
        may_skip: bool = False,
    ) -> StateFormat:
        """may_skip: whether a step may be skipped, which only the parameter's device knows."""
        states = {
            key: options.state_type(param, group, key, wide=kind.at_least_float32)
            for key, kind in rule.states.items()
        }
        return cls(
            kinds=rule.states,
            states=states,
            master=options.master_state(param, group),
            order=ElementOrder.of(param, rule.projects_rows),
            counts_on_device=group["capturable"] or (may_skip and param.is_cuda),
        )

    def fits(self, param: Tensor, state: Mapping[str, Any]) -> bool:
        """Whether a state has this format. A step counted on the device may stay there."""
        return (
            self._master_states(state) == ([self.master] if self.master else [])
            and not (self.counts_on_device and state["step"].device != param.device)
            and not is_full(state["step"])
            and all(self._state_fits(param, state, key) for key in self.states)
        )

    def _state_fits(self, param: Tensor, state: Mapping[str, Any], key: str) -> bool:
        dtype, asked = self.states[key]
        if state[key].dtype == QUANTIZED:
            return dtype == QUANTIZED and _element_order(param, state) == self.order
        return state[key].dtype == dtype or not asked

    def convert(self, param: Tensor, state: dict[str, Any]) -> None:
        """Create missing states, and convert those in another format.

        If anything is converted, the rest is copied, so that a state_dict that shares the tensors still
        holds the states of a single step.
        """
        keys = ("step", *self.states, *MASTER_KEYS)
        before = {key: state[key] for key in keys if key in state}
        self.place_step(param, state)
        self.convert_states(param, state)
        self._convert_master(param, state)
        kept = [key for key, value in before.items() if state.get(key) is value]
        if len(kept) < len(before):
            state.update({key: state[key].clone() for key in kept})

    def place_step(self, param: Tensor, state: dict[str, Any]) -> None:
        device = param.device if self.counts_on_device else "cpu"
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            return
        if param.device.type != "cpu" and self.counts_on_device:
            state["step"] = state["step"].to(device, torch.float32)  # as the kernels require
        elif is_full(state["step"]):
            state["step"] = state["step"].double()

    def convert_states(self, param: Tensor, state: dict[str, Any]) -> None:
        for key, (dtype, _) in self.states.items():
            if key not in state:
                state[key] = self._zeros(param, dtype)
            elif not self._state_fits(param, state, key):
                state[key] = self.keep(numbers_of(param, state, key, self.kinds[key]), key)
        self.note_order(param, state)

    def note_order(self, param: Tensor, state: dict[str, Any]) -> None:
        """Record the shape and element order of quantized states, whose tensors are flat."""
        for note in NOTES:
            state.pop(note, None)
        values = [state[key] for key in self.states if key in state]
        if any(value.dtype == QUANTIZED for value in values):
            state[QUANTIZED_SHAPE] = tuple(param.shape)
            if not self.order.is_flat:
                state[ORDER] = self.order.dims

    def _zeros(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        if dtype == QUANTIZED:
            return torch.zeros(
                quantized_size(count_of_reals(param)), dtype=dtype, device=param.device
            )
        return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)

    def keep(self, numbers: Tensor, key: str) -> Tensor:
        """Convert numbers of the parameter's shape to the state's storage format."""
        dtype, _ = self.states[key]
        if dtype != QUANTIZED:
            return numbers.to(dtype)
        wide = torch.complex64 if numbers.is_complex() else torch.float32
        flat = self.order.flatten(reals(numbers.to(wide)))
        return quantize(flat, signed=not self.kinds[key].non_negative)

    def _convert_master(self, param: Tensor, state: dict[str, Any]) -> None:
        """Convert the parameter's master weight to the required kind, preserving its wide value."""
        found = self._master_states(state)
        wide = None
        if self.master is not None and self.master not in found:
            wide = read_wide(param, state)
        for master in found:
            if master != self.master:
                del state[master[0]]
        if wide is not None and self.master is not None:
            name, dtype = self.master
            state[name] = wide if name == "master" else torch.zeros_like(param, dtype=dtype)
            if found:
                write_wide(param, state, wide, random=None, order=self.order)

    @staticmethod
    def _master_states(state: Mapping[str, Any]) -> list[tuple[str, torch.dtype]]:
        return [(name, state[name].dtype) for name in MASTER_KEYS if name in state]
