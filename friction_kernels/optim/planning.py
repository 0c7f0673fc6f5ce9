"""Which parameters the native kernels update and which the reference does."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from friction_kernels import backends
from friction_kernels.optim import options, reference
from friction_kernels.optim.guards import Demand, Guard, square_sum
from friction_kernels.optim.sharded_adamp import is_spread
from friction_kernels.optim.sharded_rounding import shard_of
from friction_kernels.shards import all_reduce, local, sharding_groups


class Entry(NamedTuple):
    """A parameter's place, and why the native kernels do not serve it (None where they do)."""

    group: int
    index: int
    ordinal: int  # its place among all of the optimizer's parameters
    reason: str | None


Problem = tuple[
    int, str
]  # which entry of a plan (-1: none in particular), and what is wrong with it


def is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def entries_of(opt, groups: list[dict[str, Any]], first: int) -> list[Entry]:
    """Every parameter of the groups; `first`: the ordinal of the first one."""
    entries = []
    for group_index, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            reason = "backend='reference' was asked for"
            if group["backend"] != "reference":
                reason = backends.why_not_native(param)
                if reason is None and opt.projects_rows and is_spread(param):
                    reason = "AdamP's sums over processes are plain torch's"
            entries.append(Entry(group_index, index, first + len(entries), reason))
    return entries


@dataclass
class StepPlan:
    """Made anew only when something changes. Its groups are those of the optimizer, or some of them."""

    native: Any  # a plan of _native; None where it serves no parameter
    settings: tuple[str, ...]  # in the order the native plan takes them
    entries: list[Entry]
    reference: list[Entry]
    choices: list[dict[str, Any]]  # what each group asks for
    params: list[Tensor]  # of all groups
    demand: Demand
    native_devices: list[int]  # -1: the processor
    # Over which processes sums over parameters are taken, and of which entries; () where they are whole.
    spreads: dict[tuple, set[int]]
    observed: list[list[Tensor]] = field(default_factory=list)  # by the reference, for each group

    @classmethod
    def make(cls, opt, groups: list[dict[str, Any]], entries: list[Entry], demand: Demand):
        params = [param for group in groups for param in group["params"]]
        native, settings = None, ()
        if not all(entry.reason for entry in entries):
            plan_type = getattr(backends.native, opt.rule)
            native = plan_type(
                backends.tensor_reader(),
                [_native_entry(opt, groups, entry) for entry in entries],
                backends.device_bytes,
                opt._graph_memory,
            )
            settings = plan_type.settings
        devices = {
            param.device.index if param.is_cuda else -1
            for param, entry in zip(params, entries, strict=True)
            if entry.reason is None
        }
        spreads: dict[tuple, set[int]] = {}
        for index, param in enumerate(params):
            spreads.setdefault(sharding_groups(param), set()).add(index)
        return cls(
            native=native,
            settings=settings,
            entries=entries,
            reference=[entry for entry in entries if entry.reason],
            choices=[{k: copy(group[k]) for k in options.PLANNED} for group in groups],
            params=params,
            demand=demand,
            native_devices=sorted(devices),
            spreads=spreads,
            observed=[[] for _ in groups],
        )

    def fits(self, groups: list[dict[str, Any]], demand: Demand) -> bool:
        """Whether the groups ask for what was planned. A native plan checks its parameters itself."""
        if demand != self.demand or len(groups) != len(self.choices):
            return False
        for group, choice in zip(groups, self.choices, strict=True):
            if any(group[option] != value for option, value in choice.items()):
                return False
        if self.native is not None:
            return True
        params = [param for group in groups for param in group["params"]]
        return len(params) == len(self.params) and all(map(operator.is_, params, self.params))

    def run(self, opt, groups: list[dict[str, Any]]) -> Problem | None:
        """Update every parameter that has a gradient; say why not, and nothing was changed then."""
        guard = None
        if self.demand.guarded:
            guard, problem = self._measure(opt, groups)
            if problem is not None:
                return problem
            # What the host must know: whether the step is one, and the factor.
            if (self.reference or -1 in self.native_devices) and guard.skips():
                return None
        problem = self._native_step(opt, groups, guard)
        if problem is None and self.reference:
            self._reference_step(opt, groups, guard)
        return problem

    def _measure(self, opt, groups: list[dict[str, Any]]) -> tuple[Guard | None, Problem | None]:
        counted = self.demand.counted(groups)
        squared = rest = problem = None
        if any(counted):
            squared, problem = self._squared_norm(opt, groups, counted)
        if problem is None and self.demand.skips_nonfinite and not all(counted):
            others = [not counts for counts in counted]
            rest, problem = self._squared_norm(opt, groups, others)
        if problem is not None:
            return None, problem
        guard = Guard.of(opt, self.demand, squared, rest)
        if (
            guard.found_inf is not None
        ):  # torch's scaler looks over the processes of one gradient only
            everywhere = guard.found_inf.clone()
            for processes in self.spreads:
                all_reduce(everywhere, processes, "MAX")
            guard = guard._replace(found_inf=everywhere)
        opt._guard = guard if self.demand.clips else None
        return guard, None

    def _squared_norm(
        self, opt, groups: list[dict[str, Any]], counted: list[bool]
    ) -> tuple[Tensor | None, Problem | None]:
        """The sum of squares of the gradients of the counted groups, on the first device."""
        total = None
        for processes, members in self.spreads.items():
            theirs = [
                counted[entry.group] and index in members
                for index, entry in enumerate(self.entries)
            ]
            part, problem = self._local_squared_norm(opt, groups, theirs)
            if problem is not None:
                return None, problem
            part = all_reduce(part, processes)
            total = part if total is None else total + part
        return total, None

    def _local_squared_norm(
        self, opt, groups: list[dict[str, Any]], counted: list[bool]
    ) -> tuple[Tensor | None, Problem | None]:
        """The same of the counted entries' parts on this process."""
        targets = {
            index: torch.empty(
                1, dtype=torch.float64, device="cpu" if index < 0 else f"cuda:{index}"
            )
            for index in self.native_devices
        }
        if targets:
            problem = self.native.squared_norm(
                opt.state, groups, counted, list(targets.items()), torch.get_num_threads()
            )
            if problem is not None:
                return None, problem
        sums = [target.reshape(()) for target in targets.values()]
        for entry, counts in zip(self.entries, counted, strict=True):
            param = groups[entry.group]["params"][entry.index]
            if counts and entry.reason is not None and param.grad is not None:
                sums.append(square_sum(local(param.grad)))
        if not sums:
            return torch.zeros((), dtype=torch.float64, device="cpu"), None
        total, *others = sums  # no operator where one launch has it all
        for part in others:
            total = total + part.to(total.device)
        return total, None

    def _native_step(
        self, opt, groups: list[dict[str, Any]], guard: Guard | None
    ) -> Problem | None:
        if self.native is None:
            return None
        rows = []
        for group in groups:
            given = {**opt._settings(group), **_guard_settings(group, guard)}
            on_device = group["capturable"]
            values = [given[name] for name in self.settings]
            rows.append([v if on_device and _is_cuda(v) else float(v) for v in values])
        arguments = (opt.state, groups, rows, torch.get_num_threads())
        devices = [index for index in self.native_devices if index >= 0]
        if guard is not None and devices:
            arguments = (*arguments, [guard.on(index) for index in devices])
        problem = self.native.step(*arguments)
        if problem is None:
            increment_version(self.native.updated)
        return problem

    def _reference_step(self, opt, groups: list[dict[str, Any]], guard: Guard | None) -> None:
        self.observed = [[] for _ in groups]
        factors = [1.0 if guard is None else guard.factor(g["max_grad_norm"]) for g in groups]
        for group_index, index, ordinal, _ in self.reference:
            group = groups[group_index]
            param = group["params"][index]
            if param.grad is not None:
                factor = factors[group_index]
                observed = reference.update(opt, param, group, ordinal=ordinal, grad_factor=factor)
                self.observed[group_index].append(observed)


def _is_cuda(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


_UNGUARDED = {"grad_factor": 1.0, "max_norm": math.inf}


def _guard_settings(group: Mapping[str, Any], guard: Guard | None) -> dict[str, float]:
    """A group's settings that a guard decides; on a GPU the kernels make the factor themselves."""
    if guard is None:
        return _UNGUARDED
    max_norm, params = group["max_grad_norm"], group["params"]
    on_gpu = bool(params) and params[0].is_cuda  # all are, or none
    return {
        "grad_factor": 1.0 if on_gpu else guard.factor(max_norm),
        "max_norm": math.inf if max_norm is None else max_norm,
    }


def _native_entry(opt, groups: list[dict[str, Any]], entry: Entry) -> tuple:
    """A parameter as the extension's plans take it."""
    group = groups[entry.group]
    param, native = group["params"][entry.index], entry.reason is None
    state = (opt.state[param] if native and param in opt.state else None) or None
    companion = options.companion(param, group)
    rounding = None
    if options.rounds_stochastically(param, group):
        rounding = (entry.ordinal, *shard_of(param, opt.projects_rows))
    return (param, state, entry.group, native, companion and companion[0], rounding)
