"""The optimizers of all model parts from one configuration, following torchtitan."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim import Optimizer

from friction_kernels.optim import OPTIMIZERS
from friction_kernels.optim.options import TORCHS

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_OF_ONE_OPTIMIZER = ("max_grad_norm", "skip_nonfinite")


@dataclass
class ParamGroupConfig:
    """The parameters of a group and their optimizer, with the same fields as torchtitan's own class.

    Args:
        pattern: a regular expression, searched for in parameter names.
        optimizer_name: a key of `friction_kernels.OPTIMIZERS`.
        optimizer_kwargs: the group's options.
    """

    pattern: str
    optimizer_name: str
    optimizer_kwargs: dict[str, Any] = field(default_factory=dict)


class OptimizersContainer(Stateful):
    """The optimizers of all model parts, stepped, saved and loaded as one.

    Iteration yields the optimizers, for example to attach a scheduler to each. `state_dict()` is flat and
    keyed by parameter names, so torch.distributed.checkpoint can load it into other parts and other numbers
    of processes; parts must therefore keep the whole model's names. Created by `build_optimizers`.
    """

    def __init__(self, of_parts: Sequence[tuple[nn.Module, list[Optimizer]]]) -> None:
        self._of_parts = of_parts

    def __iter__(self) -> Iterator[Optimizer]:
        return (opt for _, optimizers in self._of_parts for opt in optimizers)

    def __len__(self) -> int:
        return sum(len(optimizers) for _, optimizers in self._of_parts)

    def step(self) -> None:
        for opt in self:
            opt.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for opt in self:
            opt.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """A flat dict with `state.NAME.exp_avg`, `param_groups.NAME.lr` and so on for every parameter."""
        state: dict[str, Any] = {}
        for part, optimizers in self._of_parts:
            state.update(get_optimizer_state_dict(part, optimizers, options=_FLAT))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, optimizers in self._of_parts:
            set_optimizer_state_dict(part, optimizers, state_dict, options=_FLAT)


def build_optimizers(
    model_parts: Sequence[nn.Module], param_groups: Sequence[ParamGroupConfig]
) -> OptimizersContainer:
    """Build the optimizers of this process's model parts (several under pipeline parallelism).

    Equals, for each part and each optimizer that the groups name:

        OPTIMIZERS[name](
            [{"params": [...], **group.optimizer_kwargs} for group in its_groups]
        )

    Grouping and the flat state follow torchtitan, which need not be installed.

    Args:
        model_parts: modules, whose parameters may be DTensors; parameters without requires_grad are skipped.
        param_groups: this module's `ParamGroupConfig`, torchtitan's, or others with the same fields. A
            parameter belongs to the first group whose pattern matches its name.

    Returns:
        An `OptimizersContainer`, with `step`, `zero_grad`, `state_dict` and `load_state_dict`.

    Raises:
        ValueError: an unknown optimizer; a parameter that no group matches; `max_grad_norm` or
            `skip_nonfinite` with several optimizers, each of which would see only its own gradients: clip
            with `friction_kernels.clip_grad_norm_` before `step()`.
        ValueError, TypeError: options that the optimizer rejects.
    """
    for group in param_groups:
        _check_config(group)
    container = OptimizersContainer([(part, _of_part(part, param_groups)) for part in model_parts])
    if len(container) > 1:
        _refuse_what_looks_at_all_gradients(param_groups, len(container))
    return container


def _check_config(config: ParamGroupConfig) -> None:
    if config.optimizer_name not in OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer {config.optimizer_name!r} of the pattern {config.pattern!r}: choose "
            f"one of {', '.join(OPTIMIZERS)}"
        )
    options = inspect.signature(OPTIMIZERS[config.optimizer_name]).parameters.keys() - {"params"}
    # The optimizer itself rejects torch's options.
    unknown = config.optimizer_kwargs.keys() - options - TORCHS.keys()
    if unknown:
        raise TypeError(
            f"{config.optimizer_name} has no option {min(unknown)!r}, which the group of the pattern "
            f"{config.pattern!r} has; choose among {', '.join(sorted(options))}"
        )


def _of_part(part: nn.Module, configs: Sequence[ParamGroupConfig]) -> list[Optimizer]:
    params_of_config = defaultdict(list)
    for name, param in part.named_parameters():
        if param.requires_grad:
            params_of_config[_first_that_fits(name, configs)].append(param)
    groups_of_optimizer = defaultdict(list)
    for index, params in params_of_config.items():
        group = {"params": params, **configs[index].optimizer_kwargs}
        groups_of_optimizer[configs[index].optimizer_name].append(group)
    return [OPTIMIZERS[name](groups) for name, groups in groups_of_optimizer.items()]


def _first_that_fits(name: str, configs: Sequence[ParamGroupConfig]) -> int:
    for index, config in enumerate(configs):
        if re.search(config.pattern, name):
            return index
    raise ValueError(
        f"no group has the parameter {name!r}: add a last one with the pattern '.*' for all others"
    )


def _refuse_what_looks_at_all_gradients(configs: Sequence[ParamGroupConfig], count: int) -> None:
    for config in configs:
        for option in _OF_ONE_OPTIMIZER:
            if config.optimizer_kwargs.get(option):
                raise ValueError(
                    f"{option} of the pattern {config.pattern!r} would look at the gradients of one "
                    f"optimizer, and there are {count}; leave it out, and clip all gradients with "
                    "friction_kernels.clip_grad_norm_ before step()"
                )
