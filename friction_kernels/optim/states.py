"""A parameter's wide value and its states: how they are kept, started, converted, read and written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from friction_kernels.optim import options
from friction_kernels.optim.companions import join, split
from friction_kernels.optim.options import COMPANION_NAMES, PACKED
from friction_kernels.optim.packed import (
    ORDER,
    PACKED_SHAPE,
    pack,
    packed_size,
    threshold_of,
    unpack,
)
from friction_kernels.optim.rounding import RandomKey, round_from, round_stochastically
from friction_kernels.optim.rule import Rule, StateKind
from friction_kernels.optim.walk import Walk

NOTES = (PACKED_SHAPE, ORDER)  # what a state has beside its tensors


def reals(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, another as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def count_of_reals(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.is_complex() else 1)


# Step counts.

MOST_FLOAT32_STEPS = 2**24  # and one more is the same number in float32


def is_full(step: Tensor) -> bool:
    """Whether a count of the host's is float32 and can count no further. Nobody waits for a GPU."""
    return (
        step.dtype == torch.float32
        and step.device.type == "cpu"
        and step.item() >= MOST_FLOAT32_STEPS
    )


# State lists.


def read_list(param: Tensor, state: Mapping[str, Any], key: str, kind: StateKind) -> Tensor:
    """A state's real numbers in float32 at least; the state's own memory where it is kept so."""
    value: Tensor = state[key]
    if value.dtype != PACKED:
        value = reals(value)
        return value.to(torch.promote_types(value.dtype, torch.float32))
    flat = unpack(value, count_of_reals(param), signed=not kind.non_negative)
    shape = (*param.shape, 2) if param.is_complex() else param.shape
    return _walk_of_packed(param, state).unflatten(flat, shape)


def write_list(
    param: Tensor, state: Mapping[str, Any], key: str, kind: StateKind, numbers: Tensor
) -> None:
    """Keep numbers that came from `read_list` and that a step changed."""
    value = state[key]
    if value.dtype == PACKED:
        is_average = kind.at_least_float32
        threshold = threshold_of(int(state["step"].item())) if is_average else 0.5
        flat = _walk_of_packed(param, state).flatten(numbers)
        value.copy_(pack(flat, signed=not kind.non_negative, threshold=threshold))
    elif value.dtype == torch.bfloat16 and kind.at_least_float32:
        value.copy_(round_from(numbers, threshold_of(int(state["step"].item()))))
    elif reals(value).dtype != numbers.dtype:
        reals(value).copy_(numbers)


def numbers_of(param: Tensor, state: Mapping[str, Any], key: str, kind: StateKind) -> Tensor:
    """A state as numbers of the parameter's shape: codes become float32, others stay as they are."""
    value: Tensor = state[key]
    if value.dtype != PACKED:
        return value
    numbers = read_list(param, state, key, kind)
    return torch.view_as_complex(numbers.contiguous()) if param.is_complex() else numbers


def _walk_of_packed(param: Tensor, state: Mapping[str, Any]) -> Walk:
    return Walk(tuple(state.get(ORDER, range(param.dim()))))


# The wide value.


def read_wide(param: Tensor, state: Mapping[str, Any]) -> Tensor:
    """The value that arithmetic sees, in float32 at least; its own memory where it is kept so."""
    if "master" in state:
        master: Tensor = state["master"]
        # Where the parameter is not what the master rounds to, somebody wrote it.
        written = master.to(param.dtype).view(torch.int16) != param.view(torch.int16)
        return master.copy_(torch.where(written, param.to(master.dtype), master))
    if "residual" in state:
        return join(param, state["residual"])
    return param.to(torch.promote_types(param.dtype, torch.float32))


def write_wide(
    param: Tensor, state: Mapping[str, Any], wide: Tensor, *, random: RandomKey | None, walk: Walk
) -> None:
    """Keep a wide value that came from `read_wide` and was changed; `random`: round by chance."""
    if "residual" in state:
        narrow, residual = split(wide, param.dtype, state["residual"].dtype)
        state["residual"].copy_(residual)
        param.copy_(narrow)
    elif random is not None:
        flat = round_stochastically(walk.flatten(wide), param.dtype, random)
        param.copy_(walk.unflatten(flat, param.shape))
    elif wide is not param:
        param.copy_(wide)


# How both are to be kept.


@dataclass(frozen=True)
class StateFormat:
    """How a group wants one parameter and its states to be kept."""

    kinds: Mapping[str, StateKind]
    lists: dict[str, tuple[torch.dtype, bool]]  # type, and whether the group asks for it
    companion: tuple[str, torch.dtype] | None
    walk: Walk
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
        """may_skip: whether a step may turn out to be none, which only the parameter's device knows."""
        lists = {
            key: options.state_type(param, group, key, wide=kind.at_least_float32)
            for key, kind in rule.states.items()
        }
        return cls(
            kinds=rule.states,
            lists=lists,
            companion=options.companion(param, group),
            walk=Walk.of(param, rule.projects_rows),
            counts_on_device=group["capturable"] or (may_skip and param.is_cuda),
        )

    def fits(self, param: Tensor, state: Mapping[str, Any]) -> bool:
        """Whether a state is kept so. A step counted on the device may go on there."""
        return (
            self._companions(state) == ([self.companion] if self.companion else [])
            and not (self.counts_on_device and state["step"].device != param.device)
            and not is_full(state["step"])
            and all(self._list_fits(param, state, key) for key in self.lists)
        )

    def _list_fits(self, param: Tensor, state: Mapping[str, Any], key: str) -> bool:
        dtype, asked = self.lists[key]
        if state[key].dtype == PACKED:
            return dtype == PACKED and _walk_of_packed(param, state) == self.walk
        return state[key].dtype == dtype or not asked

    def bring(self, param: Tensor, state: dict[str, Any]) -> None:
        """Start what a state lacks and convert what is kept otherwise.

        Where anything is converted the rest is copied: a state_dict that shares the tensors, and keeps those
        that were converted, stays of one moment.
        """
        keys = ("step", *self.lists, *COMPANION_NAMES)
        before = {key: state[key] for key in keys if key in state}
        self.place_step(param, state)
        self.bring_lists(param, state)
        self._bring_companion(param, state)
        kept = [key for key, value in before.items() if state.get(key) is value]
        if len(kept) < len(before):
            state.update({key: state[key].clone() for key in kept})

    def place_step(self, param: Tensor, state: dict[str, Any]) -> None:
        device = param.device if self.counts_on_device else "cpu"
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            return
        if param.device.type != "cpu" and self.counts_on_device:
            state["step"] = state["step"].to(device, torch.float32)  # which kernels count in
        elif is_full(state["step"]):
            state["step"] = state["step"].double()

    def bring_lists(self, param: Tensor, state: dict[str, Any]) -> None:
        for key, (dtype, _) in self.lists.items():
            if key not in state:
                state[key] = self._zeros(param, dtype)
            elif not self._list_fits(param, state, key):
                state[key] = self.keep(numbers_of(param, state, key, self.kinds[key]), key)
        self.note_order(param, state)

    def note_order(self, param: Tensor, state: dict[str, Any]) -> None:
        """Say of states that were packed for this storage what they are of, and in which order they walk."""
        for note in NOTES:
            state.pop(note, None)
        lists = [state[key] for key in self.lists if key in state]
        if any(value.dtype == PACKED for value in lists):
            state[PACKED_SHAPE] = tuple(param.shape)
            if not self.walk.is_flat:
                state[ORDER] = self.walk.order

    def _zeros(self, param: Tensor, dtype: torch.dtype) -> Tensor:
        if dtype == PACKED:
            return torch.zeros(packed_size(count_of_reals(param)), dtype=dtype, device=param.device)
        return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)

    def keep(self, numbers: Tensor, key: str) -> Tensor:
        """Numbers of the parameter's shape in the type in which the state is to be kept."""
        dtype, _ = self.lists[key]
        if dtype != PACKED:
            return numbers.to(dtype)
        wide = torch.complex64 if numbers.is_complex() else torch.float32
        flat = self.walk.flatten(reals(numbers.to(wide)))
        return pack(flat, signed=not self.kinds[key].non_negative)

    def _bring_companion(self, param: Tensor, state: dict[str, Any]) -> None:
        """Give the parameter the companion it should have, in which its wide value lives on."""
        found = self._companions(state)
        wide = None
        if self.companion is not None and self.companion not in found:
            wide = read_wide(param, state)
        for companion in found:
            if companion != self.companion:
                del state[companion[0]]
        if wide is not None and self.companion is not None:
            name, dtype = self.companion
            state[name] = wide if name == "master" else torch.zeros_like(param, dtype=dtype)
            if found:
                write_wide(param, state, wide, random=None, walk=self.walk)

    @staticmethod
    def _companions(state: Mapping[str, Any]) -> list[tuple[str, torch.dtype]]:
        return [(name, state[name].dtype) for name in COMPANION_NAMES if name in state]
