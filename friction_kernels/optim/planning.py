"""Plan a step: which parameters the native kernels update, and which the reference does."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from friction_kernels import backends
from friction_kernels.optim import checks, options, state_checks, taking
from friction_kernels.optim.fallbacks import Entry, Groups, fallback_reason_with_gradient
from friction_kernels.optim.gradient_scaling import GradientScaling, LossScale, Needs, square_sum
from friction_kernels.optim.reference import Numbers, Update
from friction_kernels.optim.rule import ProjectedRule, Rule
from friction_kernels.optim.sharded_adamp import is_spread, make_together
from friction_kernels.optim.sharded_rounding import shard_of
from friction_kernels.optim.states import StateFormat
from friction_kernels.shards import all_reduce, device_of_sums, local, spreads_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


States = dict[Tensor, Any]
# A group's settings under the native rule's names. With capturable=True they may be tensors on a GPU.
Settings = dict[str, float | Tensor]


class PlanMismatchError(Exception):
    """A step could not be made because something differs from the plan. Nothing was changed."""

    def __init__(self, entry: int, what: str) -> None:
        """entry: index of the parameter in the plan, or -1 for none in particular."""
        super().__init__(what)
        self.entry = entry


def is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def settings_of(rule: Rule, groups: Groups) -> list[Settings]:
    """The settings of this step; raises before anything is changed if one is not a number."""
    found = []
    for group in groups:
        options.check_seed(group["seed"])
        given = {**rule.settings(group), "seed": group["seed"]}
        numbers: Settings = {}
        for name, value in given.items():
            if type(value) is not float and not (group["capturable"] and _is_cuda(value)):
                value = checks.as_number(name, value)
            if type(value) is float and math.isnan(value):
                raise ValueError(f"{name} must be a number, got nan")
            numbers[name] = value
        found.append(numbers)
    return found


@dataclass
class StepPlan:
    """A plan for the optimizer's groups, or some of them, rebuilt only when something changes."""

    rule: Rule
    native: Any  # a plan of _native; None if it serves no parameter
    entries: list[Entry]
    reference: list[Entry]
    choices: list[dict[str, Any]]  # the options of each group that the plan depends on
    members: list[list[Tensor]]  # the parameters of each group
    needs: Needs
    native_devices: list[int]  # -1: the CPU
    # The process groups over which sums over parameters are taken, each with a mask of the entries that it
    # covers; () for unsharded parameters.
    spreads: dict[tuple[ProcessGroup, ...], list[bool]]

    @classmethod
    def make(
        cls,
        rule: Rule,
        groups: Groups,
        entries: list[Entry],
        needs: Needs,
        states: States,
        graph_memory: list[Tensor],
    ) -> StepPlan:
        """graph_memory: collects memory that captured CUDA graphs use."""
        params = [param for group in groups for param in group["params"]]
        native = None
        if not all(entry.fallback_reason for entry in entries):
            native = getattr(backends.native, rule.name)(
                backends.tensor_reader(),
                [_native_entry(rule, groups, entry, needs, states) for entry in entries],
                backends.device_bytes,
                graph_memory,
            )
        devices = {
            param.device.index if param.is_cuda else -1
            for param, entry in zip(params, entries, strict=True)
            if entry.fallback_reason is None and param in states  # others need a new plan anyway
        }
        return cls(
            rule=rule,
            native=native,
            entries=entries,
            reference=[entry for entry in entries if entry.fallback_reason],
            choices=[{k: copy(group[k]) for k in options.OWN if k in group} for group in groups],
            members=[list(group["params"]) for group in groups],
            needs=needs,
            native_devices=sorted(devices),
            spreads=spreads_of(groups),
        )

    def fits(self, groups: Groups, needs: Needs) -> bool:
        """Whether the plan was made for these groups and needs."""
        if needs != self.needs or len(groups) != len(self.choices):
            return False
        for group, choice in zip(groups, self.choices, strict=True):
            if any(group[option] != value for option, value in choice.items()):
                return False
        if not self.reference:
            return True  # the native plan compares the parameters itself
        return all(
            len(group["params"]) == len(params) and all(map(operator.is_, group["params"], params))
            for group, params in zip(groups, self.members, strict=True)
        )

    def step(
        self, states: States, groups: Groups, settings: list[Settings], loss_scale: LossScale
    ) -> GradientScaling | None:
        """Update every parameter that has a gradient; return the scaling of the gradients.

        Raises PlanMismatchError before anything is changed.
        """
        with self._reading(states, groups):
            scaling = self._measure(groups, loss_scale)
            factors = [1.0] * len(groups)
            # The host must know whether to skip the step, and the factors.
            if scaling is not None and (self.reference or -1 in self.native_devices):
                if scaling.skips():
                    taking.release(self.rule, groups)
                    return scaling
                factors = [scaling.factor(group["max_grad_norm"]) for group in groups]
            if self.native is not None:
                _check(self.native.step(*self._arguments(groups, settings, scaling, factors)))
                increment_version(self.native.updated)
            if self.reference:
                self._reference_step(states, groups, factors)
        return scaling

    def statistics(
        self, states: States, groups: Groups, settings: list[Settings], loss_scale: LossScale
    ) -> list[tuple[int, float, float]]:
        """For each group: count, sum and sum of squares of the statistic in the upcoming step.

        Raises PlanMismatchError; waits for GPUs.
        """
        sums = [(0, 0.0, 0.0)] * len(groups)
        with self._reading(states, groups):
            scaling = self._measure(groups, loss_scale)
            if scaling is not None and scaling.skips():
                return sums
            factors = [1.0] * len(groups)
            if scaling is not None:
                factors = [scaling.factor(group["max_grad_norm"]) for group in groups]
            if self.native is not None:
                arguments = self._arguments(groups, settings, scaling, factors)
                sums, problem = self.native.statistics(*arguments)
                _check(problem)
            for entry in self.reference:
                if groups[entry.group]["params"][entry.index].grad is not None:
                    own = self._of(entry, states, groups)
                    numbers = Numbers(*own, grad_factor=factors[entry.group])
                    sums[entry.group] = _add(sums[entry.group], numbers.statistic().double())
        return sums

    def stepped(self) -> Tensor | None:
        """The first parameter that the last step updated."""
        if self.native is not None and self.native.updated:
            first: Tensor = self.native.updated[0]
            return first
        params = (self.members[entry.group][entry.index] for entry in self.reference)
        return next((param for param in params if param.grad is not None), None)

    @contextmanager
    def _reading(self, states: States, groups: Groups) -> Iterator[None]:
        """Read parameters, gradients and states once, and keep them valid within the context."""
        if self.native is None:
            yield
            return
        with backends.native.Reading(self.native, states, groups) as problem:
            _check(problem)
            yield

    def _measure(self, groups: Groups, loss_scale: LossScale) -> GradientScaling | None:
        """Measure what the step needs to know about the gradients, or None if it needs nothing."""
        if not self.needs.anything:
            return None
        counted = self.needs.counted(groups)
        squared = self._squared_norm(groups, counted) if any(counted) else None
        found_inf = loss_scale.found_inf
        if self.needs.skips_nonfinite and not all(counted):
            # Gradients outside the norm must be finite, too.
            rest = self._squared_norm(groups, [not counts for counts in counted])
            infinite = (~rest.isfinite()).float()
            found_inf = infinite if found_inf is None else found_inf.to(rest.device) + infinite
        if found_inf is not None:  # torch's scaler reduces only over the processes of one gradient
            found_inf = found_inf.clone()
            for processes in self.spreads:
                all_reduce(found_inf, processes, "MAX")
        loss_scale = LossScale(loss_scale.grad_scale, found_inf)
        return GradientScaling(squared, loss_scale, self.needs.skips_nonfinite)

    def _squared_norm(self, groups: Groups, counted: list[bool]) -> Tensor:
        """The sum of squares of the counted groups' gradients, on the first device."""
        total: Tensor | None = None
        for processes, members in self.spreads.items():
            theirs = [
                counted[entry.group] and member
                for entry, member in zip(self.entries, members, strict=True)
            ]
            device = self._device_of_sums(processes, members)
            part = all_reduce(self._local_squared_norm(groups, theirs, device), processes)
            total = part if total is None else total + part
        assert total is not None
        return total

    def _device_of_sums(
        self, processes: tuple[ProcessGroup, ...], members: list[bool]
    ) -> torch.device:
        """The device on which to reduce these entries' sums: their own, as NCCL sends only GPU tensors."""
        params = list(compress(chain.from_iterable(self.members), members))
        trained = [param for param in params if not checks.is_frozen(param)]
        devices = (param.device for param in (*trained, *params))
        return next((d for d in devices if d.type != "meta"), None) or device_of_sums(processes)

    def _local_squared_norm(
        self, groups: Groups, counted: list[bool], device: torch.device
    ) -> Tensor:
        """The same for the counted entries' parts on this process."""
        targets = {
            index: torch.empty(
                1, dtype=torch.float64, device="cpu" if index < 0 else f"cuda:{index}"
            )
            for index in self.native_devices
        }
        if self.native is not None:
            threads = torch.get_num_threads()
            _check(self.native.squared_norm(counted, list(targets.items()), threads))
        sums = [target.reshape(()) for target in targets.values()]
        for entry, counts in zip(self.entries, counted, strict=True):
            if not counts or entry.fallback_reason is None:
                continue
            param = groups[entry.group]["params"][entry.index]
            if param.grad is not None:
                sums.append(square_sum(local(param.grad)))
        if not sums:
            return torch.zeros((), dtype=torch.float64, device=device)
        # No extra operator if a single launch computed everything.
        total, *others = [part.to(device) for part in sums]
        for part in others:
            total = total + part
        return total

    def _arguments(
        self,
        groups: Groups,
        settings: list[Settings],
        scaling: GradientScaling | None,
        factors: list[float],
    ) -> tuple[Any, ...]:
        """Arguments of the native plan: settings in its order, threads, and gradient scaling for GPUs."""
        rows = []
        for group, given, factor in zip(groups, settings, factors, strict=True):
            given = {**given, **_scaling_settings(group, scaling, factor)}
            rows.append([given[name] for name in self.native.settings])
        gpus = [index for index in self.native_devices if index >= 0]
        scaling_rows = [] if scaling is None else [scaling.on(index) for index in gpus]
        return rows, torch.get_num_threads(), scaling_rows

    def _of(
        self, entry: Entry, states: States, groups: Groups
    ) -> tuple[Rule, Tensor, dict[str, Any], dict[str, Any]]:
        """The arguments of the reference for one parameter."""
        group = groups[entry.group]
        param = group["params"][entry.index]
        return self.rule, param, states[param], group

    def _reference_step(self, states: States, groups: Groups, factors: list[float]) -> None:
        def update_of(entry: Entry) -> Update:
            own = self._of(entry, states, groups)
            return Update(*own, ordinal=entry.ordinal, grad_factor=factors[entry.group])

        spread: list[Entry] = []
        for entry in self.reference:
            param = groups[entry.group]["params"][entry.index]
            if param.grad is None:
                continue
            if self.rule.projects_rows and is_spread(param):
                spread.append(entry)
            else:
                update_of(entry).make()
        if isinstance(self.rule, ProjectedRule):
            make_together(self.rule, map(update_of, spread))


def _check(problem: tuple[int, str] | None) -> None:
    if problem is not None:
        raise PlanMismatchError(*problem)


def _add(sums: tuple[int, float, float], values: Tensor) -> tuple[int, float, float]:
    count, total, square_total = sums
    return (
        count + values.numel(),
        total + values.sum().item(),
        square_total + values.square().sum().item(),
    )


def _is_cuda(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


_UNSCALED = {"grad_factor": 1.0, "max_norm": math.inf}


def _scaling_settings(
    group: Mapping[str, Any], scaling: GradientScaling | None, factor: float
) -> dict[str, float]:
    """The settings of a group that scaling determines; on a GPU the kernels compute the factor."""
    if scaling is None:
        return _UNSCALED
    max_norm = group["max_grad_norm"]
    stepped = (param for param in group["params"] if param.grad is not None)
    on_gpu = next((param.is_cuda for param in stepped), False)  # a group never mixes them
    return {
        "grad_factor": 1.0 if on_gpu else factor,
        "max_norm": math.inf if max_norm is None else float(max_norm),
    }


def _is_ready(
    rule: Rule, group: dict[str, Any], param: Tensor, state: Mapping[str, Any], needs: Needs
) -> bool:
    """Whether the native kernels can serve a parameter as soon as it has a gradient again."""
    if fallback_reason_with_gradient(rule, param) is not None:
        return False
    part = local(param)
    try:
        options.check_parameter("it", part, group, rule.states)
        state_checks.check_state("it", part, state, rule.states)
    except (RuntimeError, ValueError):
        return False
    return StateFormat.of(rule, part, group, may_skip=needs.may_skip).fits(part, state)


def _native_entry(
    rule: Rule, groups: Groups, entry: Entry, needs: Needs, states: States
) -> tuple[object, ...]:
    """A parameter's entry for the extension's plans."""
    group = groups[entry.group]
    param, native = group["params"][entry.index], entry.fallback_reason is None
    state = states.get(param) if native else None
    if not state or (param.grad is None and not _is_ready(rule, group, param, state, needs)):
        state = None  # checked once there is a gradient
    master = options.master_state(param, group)
    rounding = None
    if state is not None and options.rounds_stochastically(param, group):
        rounding = (entry.ordinal, *shard_of(param, rule.projects_rows))
    takes = taking.takes(rule, group)
    return (param, state, entry.group, native, master and master[0], rounding, takes)
