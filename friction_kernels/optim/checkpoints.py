"""Save states to a state_dict, and convert a state_dict of any options to an optimizer's own.

A state_dict holds numbers: 8-bit codes become float32, which quantizes to the same bytes again; residuals and
masters are stored unchanged. A loaded residual or master that the options do not request is kept
until the next step converts it: only then are the model's parameters sure to be loaded.

If nothing needs converting, a state_dict shares its tensors with the optimizer, as in torch. If anything
does, it shares none; otherwise later steps would change only some of its tensors.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Set
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from friction_kernels.flattened import is_flattened
from friction_kernels.optim import checks, state_checks, taking
from friction_kernels.optim.blockwise import quantized_mismatch
from friction_kernels.optim.options import DEFAULTS, MASTER_KEYS, NOT_SAVED, OWN
from friction_kernels.optim.rule import Rule, every_state
from friction_kernels.optim.snapshots import Snapshots
from friction_kernels.optim.states import MOST_FLOAT32_STEPS, NOTES, StateFormat, numbers_of
from friction_kernels.shards import is_dtensor, local, unwrap, wrap

# Options of torch's optimizers that say how they compute, and states that a disabled amsgrad leaves behind.
_TORCHS_OPTIONS = ("foreach", "fused", "differentiable", "amsgrad")
_TORCHS_STATES = ("max_exp_avg_sq",)


# Saving.


def export(
    rule: Rule, groups: list[dict[str, Any]], state_dict: dict[str, Any], snapshots: Snapshots
) -> None:
    """Replace codes by numbers, and add the rule's identity to each group.

    snapshots: records the state_dict if its tensors are copies.
    """
    for group in state_dict["param_groups"]:
        group.update(rule.identity())
        for option in NOT_SAVED:
            group[option] = None  # torch.distributed.checkpoint requires every key of a group
    params = [(param, taking.takes(rule, group)) for group in groups for param in group["params"]]
    states, converts = state_dict["state"], False
    for ordinal, (number, (param, takes)) in enumerate(
        zip(_numbers(state_dict), params, strict=True)
    ):
        state = states.get(number)
        if not state:
            continue
        problem = _unsaved_reason(rule, param, state)
        if problem is not None:
            raise RuntimeError(f"state_dict(): {checks.name_at(groups, ordinal)} {problem}")
        kept = {key: value for key, value in state.items() if key not in NOTES}
        for key in (*rule.states, *MASTER_KEYS):
            if key not in state:
                continue
            numbers = state[key]
            if key in rule.states:
                numbers = numbers_of(local(param), state, key, rule.states[key])
            if is_dtensor(param) or is_flattened(param):
                numbers = _sendable(numbers)
            converts |= numbers is not state[key]
            kept[key] = wrap(numbers, param)
        # Gradients that are taken appear in the optimizer's own dict, so that it stays live where it can.
        if not (takes and all(kept.get(key) is value for key, value in state.items())):
            states[number] = kept
    if converts:
        state_dict.update(_cloned(state_dict))
        snapshots.add(state_dict)


def _unsaved_reason(rule: Rule, param: Tensor, state: Any) -> str | None:
    """What is wrong with a parameter's state, or None if it can be saved."""
    if not isinstance(state, dict):
        return f"has {state!r} for its state, and not a dict"
    for key in ("step", *rule.states, *MASTER_KEYS):
        if key in state and not isinstance(state[key], Tensor):
            return f"has state '{key}' of type {type(state[key]).__name__}, and not a tensor"
        if key in state and checks.lacks_memory(state[key]):
            return f"has state '{key}' that {checks.NO_MEMORY}"
    return quantized_mismatch(local(param), state)


def _cloned(value: Any) -> Any:
    """Return the value with every tensor in it cloned."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _cloned(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_cloned, value))
    return value


def _sendable(part: Tensor) -> Tensor:
    """Widen 16-bit residuals to 32 bits, because neither NCCL nor gloo gathers int16."""
    return part.int() if part.dtype == torch.int16 else part


def _numbers(state_dict: dict[str, Any]) -> list[int]:
    return list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))


# Loading: check everything, then build new states, and only then change the optimizer.


class Saved(NamedTuple):
    """The entry of a state_dict for one parameter with a state."""

    name: checks.LateName
    param: Tensor
    group: dict[str, Any]  # the optimizer's group before loading
    state: Any
    is_ours: bool  # saved by an optimizer of this package, to which users may have added entries


def understood(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state_dict as plain dicts and lists; raise, naming the fault, if it is not one."""
    for key, kind, word in (("state", Mapping, "dict"), ("param_groups", (list, tuple), "list")):
        if not isinstance(state_dict.get(key), kind):
            what = f"{state_dict[key]!r} as {key!r}, and not a {word}" if key in state_dict else ""
            raise ValueError(f"the state_dict has {what or f'no {key!r}'}; {_REMEDY}")
    groups = [_understood_group(i, group) for i, group in enumerate(state_dict["param_groups"])]
    numbers = {str(n) for group in groups for n in group["params"] if not isinstance(n, str)}
    if texts := [key for key in state_dict["state"] if isinstance(key, str) and key in numbers]:
        raise ValueError(
            f"the state_dict's state has {texts[0]!r} where a group has {texts[0]}: JSON makes texts of "
            "numbers; make them int again"
        )
    states = {
        number: dict(state) if isinstance(state, Mapping) else state
        for number, state in state_dict["state"].items()
    }
    return {**state_dict, "state": states, "param_groups": groups}


_REMEDY = "give what an optimizer's state_dict() returned"


def _understood_group(index: int, group: object) -> dict[str, Any]:
    which = f"the state_dict's group {index}"
    if not isinstance(group, Mapping):
        raise ValueError(f"{which} is {group!r} and not a dict; {_REMEDY}")
    numbers = group.get("params")
    if not isinstance(numbers, (list, tuple)) or not all(isinstance(n, Hashable) for n in numbers):
        what = f"{numbers!r} as 'params', and no list of numbers" if "params" in group else ""
        raise ValueError(f"{which} has {what or 'no params'}; {_REMEDY}")
    names = group.get("param_names")
    if names is not None and (not isinstance(names, (list, tuple)) or len(names) != len(numbers)):
        raise ValueError(
            f"{which} has {names!r} as 'param_names' of {len(numbers)} parameters; {_REMEDY}"
        )
    return {**group, "params": list(numbers)}


def new_states(
    rule: Rule, class_name: str, groups: list[dict[str, Any]], state_dict: dict[str, Any]
) -> dict[Tensor, dict[str, Any]]:
    """Convert a state_dict's states to the optimizer's options; raise if a state cannot be used."""
    if [len(group["params"]) for group in groups] != [
        len(group["params"]) for group in state_dict["param_groups"]
    ]:
        return {}  # torch raises for this
    found = list(_parameters(groups, state_dict))
    for saved in found:
        _check_state(rule, class_name, saved)
    states = {saved.param: _as_kept_here(rule, saved) for saved in found}
    _part(states.values())
    _share_all_or_nothing([(saved.state, states[saved.param]) for saved in found])
    return states


def _part(states: Iterable[dict[str, Any]]) -> None:
    """Clone tensors shared by two states, as when a state_dict names one for two parameters."""
    seen: set[int] = set()
    for state in states:
        for key, value in state.items():
            if not isinstance(value, Tensor) or not value.numel():
                continue
            if value.data_ptr() in seen:
                state[key] = value.clone()
            seen.add(value.data_ptr())


def _share_all_or_nothing(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Clone tensors shared between a loaded state and its conversion, unless all are shared."""
    tensors = [
        (kept, key, _is_shared(loaded[key], kept[key]))
        for loaded, kept in pairs
        for key in kept
        if loaded.get(key) is not None
    ]
    if all(is_shared for _, _, is_shared in tensors):
        return
    for kept, key, is_shared in tensors:
        if is_shared:
            kept[key] = kept[key].clone()


def _is_shared(loaded: object, kept: Any) -> bool:
    if not isinstance(loaded, Tensor) or not isinstance(kept, Tensor):
        return False
    storages = local(loaded).untyped_storage(), kept.untyped_storage()
    return storages[0].data_ptr() == storages[1].data_ptr()


def _parameters(groups: list[dict[str, Any]], state_dict: dict[str, Any]) -> Iterator[Saved]:
    for group_index, (saved, group) in enumerate(
        zip(state_dict["param_groups"], groups, strict=True)
    ):
        is_ours = DEFAULTS.keys() - set(OWN) <= saved.keys()
        for index, number in enumerate(saved["params"]):
            name = checks.LateName(group_index, group, index)
            state = state_dict["state"].get(number, {})
            if isinstance(state, dict) and not state:
                continue  # starts without a state
            yield Saved(name, group["params"][index], group, state, is_ours)


def _check_state(rule: Rule, class_name: str, saved: Saved) -> None:
    name, state = saved.name, saved.state
    if not isinstance(state, dict):
        raise ValueError(f"the state_dict has {state!r} for {name}, and not a dict of its states")
    if is_lazy(saved.param):
        raise ValueError(
            f"{name} cannot be given a state before it has a shape; run the model once, then load"
        )
    # States stored in the parameter's dtype, such as prev_grad, may be missing and start at zero.
    needed = ("step", *(key for key, kind in rule.states.items() if kind.at_least_float32))
    known = {"step", *rule.states, *MASTER_KEYS, *_TORCHS_STATES}
    missing = [key for key in needed if state.get(key) is None]
    foreign = [key for key in state if isinstance(state[key], Tensor) and key not in known]
    if missing or (foreign and not saved.is_ours):
        problem = f"no '{missing[0]}'" if missing else f"'{foreign[0]}', which it does not know"
        raise ValueError(
            f"the state_dict is not one of {class_name}: for {name} it has "
            f"{', '.join(map(repr, state))} and {problem}"
        )
    wrong = state_checks.why_no_step_count(state["step"])
    if wrong is not None:
        raise ValueError(f"'step' of {name} in the state_dict {wrong}")
    for key in (*rule.states, *MASTER_KEYS):
        if state.get(key) is not None:
            state_checks.check_loaded(
                name, saved.param, key, state[key], is_state=key in rule.states
            )


def _as_kept_here(rule: Rule, saved: Saved) -> dict[str, Any]:
    """The state on the parameter's device, in the dtypes that its group requires."""
    part = local(saved.param)
    format = StateFormat.of(rule, part, saved.group)
    step = saved.state["step"]
    if not isinstance(step, Tensor):
        step = torch.tensor(step, dtype=torch.float64, device="cpu")
    step = step.detach().to("cpu").reshape(())
    step = step.to(torch.float64 if step.item() > MOST_FLOAT32_STEPS else torch.float32)
    state: dict[str, Any] = {"step": step}
    for key in (*rule.states, *MASTER_KEYS):
        if saved.state.get(key) is None:
            continue
        value = unwrap(saved.state[key], saved.param).detach().to(part.device)
        value = value.resolve_conj().resolve_neg()
        if checks.shares_memory(value):
            value = value.contiguous()
        if key in rule.states:
            value = format.keep(value, key)
        state[key] = value.short() if value.dtype == torch.int32 else value
    format.place_step(part, state)
    format.note_order(part, state)
    format.convert_states(part, state)
    return state


def without_states(rule: Rule, state_dict: dict[str, Any], own: Set[str]) -> dict[str, Any]:
    """The state_dict without what `new_states` converted, which torch would cast to parameters' dtypes.

    own: the optimizer's options; those that only other classes have are dropped, too.
    """
    options = {*_TORCHS_OPTIONS, *rule.identity(), *rule.optional} - own
    # States of other rules are dropped: a friction's prev_grad is none of AdamW's.
    keys = {"step", *every_state(), *MASTER_KEYS, *_TORCHS_STATES, *NOTES}
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
