"""What a state_dict holds, and how one of any options becomes the state that an optimizer asks for.

A state_dict has numbers: 8-bit codes become float32, which packs to the same bytes again; residuals and
masters stay as they are. A master of another kind than the options ask for is taken as it is, too, and
converted by the next step: only then are the model's parameters sure to have been loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from friction_kernels.optim import checks
from friction_kernels.optim.options import COMPANION_NAMES, PACKED
from friction_kernels.optim.states import ORDER, Storage, numbers_of
from friction_kernels.shards import is_dtensor, local, unwrap, wrap


def export(opt, state_dict: dict[str, Any]) -> None:
    """Put numbers in the place of codes."""
    params = list(chain.from_iterable(group["params"] for group in opt.param_groups))
    states = state_dict["state"]
    for number, param in zip(_numbers(state_dict), params, strict=True):
        state = states.get(number, {})
        packed = [key for key in opt.state_lists if key in state and state[key].dtype == PACKED]
        if packed:
            numbers = {key: numbers_of(local(param), state, key) for key in packed}
            kept = {key: value for key, value in state.items() if key != ORDER}
            state = states[number] = {**kept, **numbers}
        if is_dtensor(param) and state:
            lists = [key for key in (*opt.state_lists, *COMPANION_NAMES) if key in state]
            spread = {key: wrap(_sendable(state[key]), param) for key in lists}
            states[number] = {**state, **spread}


def _sendable(part: Tensor) -> Tensor:
    """Residuals of 16 bits in 32: neither NCCL nor gloo gathers them otherwise."""
    return part.int() if part.dtype == torch.int16 else part


def _numbers(state_dict: dict[str, Any]) -> list[int]:
    return list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))


def _loaded_parameters(opt, state_dict: dict[str, Any]) -> Iterator[tuple[int, int, dict, int]]:
    """Number in the state_dict, index of the group, group and index in it, for every parameter."""
    for group_index, (saved, group) in enumerate(
        zip(state_dict["param_groups"], opt.param_groups, strict=True)
    ):
        for index, number in enumerate(saved["params"]):
            yield number, group_index, group, index


def check(opt, state_dict: dict[str, Any]) -> None:
    """Raise where the state_dict is not one that the optimizer can go on from."""
    wanted = next(iter(opt.state_lists))
    for number, state in state_dict["state"].items():
        if state and wanted not in state:
            raise ValueError(
                f"the state_dict is not one of {type(opt).__name__}: parameter {number} has "
                f"{', '.join(map(repr, state))} and no '{wanted}'"
            )
    sizes, saved_sizes = (
        [len(group["params"]) for group in groups]
        for groups in (opt.param_groups, state_dict["param_groups"])
    )
    if sizes != saved_sizes:
        return  # torch raises, and says so
    for number, group_index, group, index in _loaded_parameters(opt, state_dict):
        param, state = group["params"][index], state_dict["state"].get(number, {})
        for key in (*opt.state_lists, *COMPANION_NAMES):
            value = state.get(key)
            if value is None or is_lazy(param):
                continue
            name = checks.parameter_name(group_index, group, index)
            if value.shape != param.shape:
                raise ValueError(
                    f"the state_dict has '{key}' of shape {tuple(value.shape)} for {name}; load one "
                    "that was saved with this model's parameters in this order"
                )
            if key in opt.state_lists and value.is_complex() != param.is_complex():
                raise ValueError(
                    f"the state_dict has '{key}' of type {value.dtype} for {name}, which is "
                    f"{param.dtype}; load one that was saved with this model"
                )


def without_states(opt, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state_dict less what `take` brings, which torch would cast to the parameters' types."""
    ours = ("step", *opt.state_lists, *COMPANION_NAMES)
    states = {
        number: {key: value for key, value in state.items() if key not in ours}
        if isinstance(state, dict)
        else state
        for number, state in state_dict["state"].items()
    }
    return {**state_dict, "state": states}


def take(opt, state_dict: dict[str, Any]) -> None:
    """Bring the states of a state_dict to the parameters' devices and the types asked for."""
    for number, _, group, index in _loaded_parameters(opt, state_dict):
        param, saved = group["params"][index], state_dict["state"].get(number)
        if not saved:
            continue
        part = local(param)
        storage = Storage.of(opt, part, group)
        step = torch.as_tensor(saved.get("step", 0.0), dtype=torch.float32).reshape(())
        state = {"step": step.to(param.device if storage.counts_on_device else "cpu")}
        for key in opt.state_lists:
            if isinstance(saved.get(key), Tensor):
                state[key] = storage.keep(unwrap(saved[key], param).to(part.device), key)
        for key in COMPANION_NAMES:
            if key in saved:
                value = unwrap(saved[key], param).to(part.device)
                state[key] = value.short() if value.dtype == torch.int32 else value
        opt.state[param] = {**state, **opt.state[param]}
        storage.note_order(opt.state[param])
