"""What a state_dict holds, and how one of any options becomes the state that an optimizer asks for.

A state_dict has numbers: 8-bit codes become float32, which packs to the same bytes again; residuals and
masters stay as they are. A master of another kind than the options ask for is taken as it is, too, and
converted by the next step: only then are the model's parameters sure to have been loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from friction_kernels.optim import checks
from friction_kernels.optim.options import COMPANION_NAMES, DEFAULTS, OWN, PACKED
from friction_kernels.optim.states import COPIES, ORDER, Storage, numbers_of
from friction_kernels.shards import is_dtensor, local, unwrap, wrap

if TYPE_CHECKING:
    from friction_kernels.optim.base import PlannedOptimizer

# Of torch's optimizers, whose groups say how they compute; and what amsgrad, once switched off, leaves.
_TORCHS_OPTIONS = ("foreach", "fused", "differentiable", "amsgrad")
_TORCHS_STATES = ("max_exp_avg_sq",)


# Saving.


def export(opt: PlannedOptimizer, state_dict: dict[str, Any]) -> None:
    """Put numbers in the place of codes, and say of each group what kind of optimizer it is of."""
    for group in state_dict["param_groups"]:
        group.update(opt._kind())
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


# Loading: all of it is checked, then new states are made, and only then does the optimizer change.


class Saved(NamedTuple):
    """What a state_dict has of one parameter."""

    name: checks.LateName
    param: Tensor
    group: dict[str, Any]  # the optimizer's, as it is before loading
    state: Any
    is_ours: bool  # made by an optimizer of this package, whose users may have added to it


def new_states(opt: PlannedOptimizer, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Any]]:
    """The states that a state_dict brings, as they are kept here; raise where it cannot be gone on from."""
    if [len(group["params"]) for group in opt.param_groups] != [
        len(group["params"]) for group in state_dict["param_groups"]
    ]:
        return {}  # torch raises, and says so
    for index, saved_group in enumerate(state_dict["param_groups"]):
        _check_group(opt, index, saved_group)
    found = [saved for saved in _parameters(opt, state_dict) if saved.state]
    for saved in found:
        _check_state(opt, saved)
    return {saved.param: _as_kept_here(opt, saved) for saved in found}


def _parameters(opt: PlannedOptimizer, state_dict: dict[str, Any]) -> Iterator[Saved]:
    for group_index, (saved, group) in enumerate(
        zip(state_dict["param_groups"], opt.param_groups, strict=True)
    ):
        is_ours = DEFAULTS.keys() <= saved.keys()
        for index, number in enumerate(saved["params"]):
            name = checks.LateName(group_index, group, index)
            state = state_dict["state"].get(number)
            yield Saved(name, group["params"][index], group, state, is_ours)


def _check_group(opt: PlannedOptimizer, index: int, saved: Mapping[str, Any]) -> None:
    group = opt.param_groups[index]
    loaded = {key: value for key, value in saved.items() if key not in ("params", *OWN)}
    try:
        opt._check_options({**opt.defaults, **group, **loaded})
    except (TypeError, ValueError) as error:
        raise type(error)(f"the state_dict's group {index}: {error}") from error


def _check_state(opt: PlannedOptimizer, saved: Saved) -> None:
    name, state = saved.name, saved.state
    if not isinstance(state, dict):
        raise ValueError(f"the state_dict has {state!r} for {name}, and not a dict of its states")
    if is_lazy(saved.param):
        raise ValueError(
            f"{name} cannot be given a state before it has a shape; run the model once, then load"
        )
    needed = ("step", *(key for key in opt.state_lists if key not in COPIES))
    known = {"step", *opt.state_lists, *COMPANION_NAMES, *_TORCHS_STATES}
    missing = [key for key in needed if state.get(key) is None]
    foreign = [key for key in state if isinstance(state[key], Tensor) and key not in known]
    if missing or (foreign and not saved.is_ours):
        problem = f"no '{missing[0]}'" if missing else f"'{foreign[0]}', which it does not know"
        raise ValueError(
            f"the state_dict is not one of {type(opt).__name__}: for {name} it has "
            f"{', '.join(map(repr, state))} and {problem}"
        )
    checks.check_step_count(f"'step' of {name} in the state_dict", state["step"])
    for key in (*opt.state_lists, *COMPANION_NAMES):
        if state.get(key) is not None:
            checks.check_loaded(name, saved.param, key, state[key], is_list=key in opt.state_lists)


def _as_kept_here(opt: PlannedOptimizer, saved: Saved) -> dict[str, Any]:
    """The state on the parameter's device, in the types that its group asks for."""
    part = local(saved.param)
    storage = Storage.of(opt, part, saved.group)
    step = saved.state["step"]
    if not isinstance(step, Tensor):
        step = torch.tensor(step, dtype=torch.float32, device="cpu")
    step = step.to("cpu", torch.float32).reshape(())
    state: dict[str, Any] = {"step": step}
    for key in (*opt.state_lists, *COMPANION_NAMES):
        if saved.state.get(key) is None:
            continue
        value = unwrap(saved.state[key], saved.param).to(part.device)
        if key in opt.state_lists:
            value = storage.keep(value, key)
        state[key] = value.short() if value.dtype == torch.int32 else value
    storage.place_step(part, state)
    storage.note_order(state)
    storage.bring_lists(part, state)
    return state


def without_states(opt: PlannedOptimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """The state_dict less what `new_states` made of it, which torch would cast to the parameters' types."""
    options = {*_TORCHS_OPTIONS, *opt._kind()}
    keys = {"step", *opt.state_lists, *COMPANION_NAMES, *_TORCHS_STATES, ORDER}
    groups, states = state_dict["param_groups"], state_dict["state"]
    return {
        **state_dict,
        "param_groups": [_without(group, options) for group in groups],
        "state": {number: _without(state, keys) for number, state in states.items()},
    }


def _without(values: Any, keys: set[str]) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: value for key, value in values.items() if key not in keys}
