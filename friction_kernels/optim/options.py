"""The options that all optimizers share, besides those of their rule: validation and documentation."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from numbers import Integral
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.optim import checks
from friction_kernels.optim.blockwise import BLOCK
from friction_kernels.optim.master_weights import LOW_PRECISION
from friction_kernels.shards import processes_of

# Defaults for the groups of optimizers that were pickled before these options existed.
DEFAULTS: dict[str, Any] = {
    "max_grad_norm": None,
    "skip_nonfinite": False,
    "master": None,
    "rounding": "nearest",
    "seed": 0,
    "state_dtype": None,
    "process_group": None,
}
# These options define how a step is computed and stored, not its result. A plan depends on them, and
# load_state_dict keeps their current values.
OWN = (
    "backend",
    "capturable",
    "master",
    "rounding",
    "state_dtype",
    "process_group",
    "take_gradients",
)
NOT_SAVED = ("process_group",)  # of OWN, meaningless in another run

Master = Literal["split", "split8", "fp32"]
Rounding = Literal["nearest", "stochastic"]
StateDtype = Literal["fp32", "bf16", "8bit"]
MASTERS = (None, *get_args(Master))
ROUNDINGS = get_args(Rounding)
STATE_DTYPES = (None, *get_args(StateDtype))
QUANTIZED = torch.uint8  # the dtype of 8-bit states
_SEEDS = 2**53  # native plans receive settings as float64

_MASTER_STATES = {
    "split": ("residual", torch.int16),
    "split8": ("residual", torch.int8),
    "fp32": ("master", torch.float32),
}
MASTER_KEYS = ("residual", "master")
# Options that only torch's optimizers have, with the values that have no effect.
TORCHS = {
    "foreach": (None, False),
    "fused": (None, False),
    "differentiable": (False,),
    "amsgrad": (False,),
    "decoupled_weight_decay": (False,),
    "dampening": (0,),
    "nesterov": (False,),
}

# docs/numerics.md describes the formats, their errors, and what is published or this library's choice.
ARGS = """max_grad_norm: clip like torch.nn.utils.clip_grad_norm_, but within the step and without writing
            gradients. The norm covers all groups that set it; each is scaled to its own bound.
            `opt.grad_norm` holds the norm afterwards, a scalar tensor on the device. math.inf only
            measures. Gradients are read once more (default None).
        skip_nonfinite: if any group sets it, a step changes nothing, not even `step`, if any gradient of
            any group is infinite or NaN, or if the gradients' sum of squares overflows float64.
            Gradients are read once more (default False).
        master: keep more bits of bf16 and fp16 parameters than their dtype holds: "split" (16 more, in
            `residual`: exact for bf16; 2 bytes), "split8" (8 more: relative error 2**-16 for bf16;
            1 byte), "fp32" (`master`, which rounds to the parameter; a parameter that differs was written
            by other code and takes precedence; 4 bytes). Other dtypes ignore it (default None).
        rounding: of bf16 and fp16 parameters without master: "nearest" or "stochastic", which preserves
            small updates on average and takes no memory. Random bits come from Philox4x32-10 (Salmon et
            al., SC 2011), for each seed, step and element (default "nearest").
        seed: of the stochastic rounding, at least 0 and below 2**53 (default 0).
        state_dtype: "fp32", "bf16" or "8bit", for all states or as a dict from their names. "8bit" stores
            codes in blocks of 256 with one scale each, 1.02 bytes (Dettmers et al., arXiv 2110.02861;
            the maps are this library's choice); tensors of fewer than 256 elements then stay in float32.
            Not available for float64 parameters, nor "bf16" for complex ones. None stores states as
            described for `params` (default None).
        process_group: the processes over which the parameters are sharded, with different parameters or
            different shards on each, if torch does not record it (ZeroRedundancyOptimizer, custom
            sharding): max_grad_norm, grad_norm and skip_nonfinite then cover all of them, and all must
            call step() together. Not needed for DTensors and FullyShardedDataParallel. Groups store the
            name of the process group; a state_dict does not (default None).
        capturable: allow capturing the step in a CUDA graph: `step` is on the parameter's device, and
            every replay reads the numbers above from there if they are tensors (a number keeps its
            captured value) (default False).
        backend: "auto" (native if it can serve, else reference, with a warning), "native" (raises with the
            reason if it cannot serve) or "reference" (default "auto")."""
# Of the classes whose constructor takes what torch's takes.
TORCHS_ARGS = """\
foreach: as in torch's constructor; False or None, which change nothing (default None).
        differentiable: as in torch's constructor; only False (default False).
        fused: as in torch's constructor; False or None: every step is fused (default None)."""
RAISES = """\
ValueError, TypeError: an option out of range, an option of torch that this class does not have
            (fused=True), or kinds of devices mixed within a group; from the constructor and
            add_param_group.
        RuntimeError: a sparse or mismatched gradient or state, or backend="native" that cannot serve;
            from step(), before anything is changed."""
EXTRA_STATES = """\
Also `residual` or `master` if requested. 8-bit states are uint8 tensors of one dimension;
    state_dict() returns their numbers, and load_state_dict() converts to what these options require."""


def given(
    names: Mapping[str, Any], *, unused: Collection[str] = (), refused: Collection[str] = ()
) -> dict[str, Any]:
    """A constructor's options, extracted from its locals(), without those that no group has.

    refused: options of torch's constructor that are accepted only with a value that has no effect.
    """
    for key in refused:
        if names[key] not in TORCHS[key]:
            instead = ", or take AdamW" if key == "decoupled_weight_decay" else ""
            raise TypeError(
                f"{type(names['self']).__name__}.__init__() takes {key} only as "
                f"{' or '.join(map(repr, TORCHS[key]))}, got {names[key]!r}; leave it out{instead}"
            )
    left_out = ("self", "params", "__class__", *unused, *refused)
    return {k: v for k, v in names.items() if k not in left_out}


def check(group: Mapping[str, Any], states: Iterable[str]) -> None:
    """Raise for an option that is out of range or conflicts with another option of the group."""
    if group["max_grad_norm"] is not None:
        checks.check_bound("max_grad_norm", group["max_grad_norm"])
    check_choice("skip_nonfinite", group["skip_nonfinite"], (False, True))
    check_choice("master", group["master"], MASTERS)
    check_choice("rounding", group["rounding"], ROUNDINGS)
    if group["rounding"] == "stochastic" and group["master"] is not None:
        raise ValueError(
            f"rounding='stochastic' and master={group['master']!r} exclude each other: with a master "
            "nothing is lost that chance could keep; choose one of them"
        )
    check_seed(group["seed"])
    processes_of(group["process_group"])
    asked = group["state_dtype"]
    if not isinstance(asked, Mapping):
        check_choice("state_dtype", asked, STATE_DTYPES)
        return
    for name, value in asked.items():
        check_choice("a name in state_dtype", name, tuple(states))
        check_choice(f"state_dtype[{name!r}]", value, STATE_DTYPES)


def check_seed(seed: object) -> None:
    in_range = isinstance(seed, Integral) and 0 <= int(seed) < _SEEDS
    if isinstance(seed, bool) or not in_range:
        raise ValueError(f"seed must be an integer of at least 0 and below 2**53, got {seed!r}")


def without_torchs(
    index: int,
    group: dict[str, Any],
    own: Collection[str],
    kind: Mapping[str, Any],
    class_name: str,
) -> dict[str, Any]:
    """A new group without the options that only torch's optimizers have; raise if one has an effect.

    own: the options of the class; kind: options of torch whose value the class implies.
    """
    known = {**TORCHS, **{key: (value,) for key, value in kind.items()}}
    foreign = [key for key in group if key in known and key not in own]
    for key in foreign:
        value = group[key]
        if not isinstance(value, Hashable) or value not in set(known[key]):
            raise TypeError(
                f"group {index} has {key}={value!r}, which {class_name} does not have; leave it out"
            )
    if not foreign:
        return group
    return {key: value for key, value in group.items() if key not in foreign}


def check_parameters(
    params: Iterable[Any], group_index: int, group: Mapping[str, Any], states: Iterable[str]
) -> None:
    """Raise if the states of a group's parameters cannot have the requested dtypes."""
    for name, param in checks.with_names(params, group_index):
        if not checks.is_frozen(param):
            check_parameter(name, param, group, states)


def check_parameter(
    name: object, param: Tensor, group: Mapping[str, Any], states: Iterable[str]
) -> None:
    for state in states:
        asked = _asked(group, state)
        if asked is not None and param.dtype in (torch.float64, torch.complex128):
            raise ValueError(
                f"{name} is {param.dtype}, and its state '{state}' cannot be kept as {asked!r}; put it "
                "into a group with state_dtype=None"
            )
        if asked == "bf16" and param.is_complex():
            raise ValueError(
                f"{name} is {param.dtype}, and there are no complex numbers of state_dtype 'bf16' for "
                f"'{state}'; put it into a group with state_dtype '8bit', 'fp32' or None"
            )


def _asked(group: Mapping[str, Any], state: str) -> str | None:
    asked = group["state_dtype"]
    return asked.get(state) if isinstance(asked, Mapping) else asked


def state_type(
    param: Tensor, group: Mapping[str, Any], state: str, *, wide: bool
) -> tuple[torch.dtype, bool]:
    """The dtype in which a state is stored, QUANTIZED for 8 bits; and whether the group requests it.

    wide: whether the state is stored in at least float32 if nothing is requested.
    """
    asked = _asked(group, state)
    if asked is None:
        return torch.promote_types(param.dtype, torch.float32) if wide else param.dtype, False
    reals = 2 * param.numel() if param.is_complex() else param.numel()
    if asked == "8bit" and reals >= BLOCK:
        return QUANTIZED, True
    if asked == "bf16":
        return torch.bfloat16, True
    return torch.complex64 if param.is_complex() else torch.float32, True


def master_state(param: Tensor, group: Mapping[str, Any]) -> tuple[str, torch.dtype] | None:
    """Name and dtype of the state with the bits that a parameter's dtype cannot hold, or None."""
    return _MASTER_STATES.get(group["master"]) if param.dtype in LOW_PRECISION else None


def rounds_stochastically(param: Tensor, group: Mapping[str, Any]) -> bool:
    return group["rounding"] == "stochastic" and param.dtype in LOW_PRECISION
