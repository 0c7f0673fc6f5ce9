"""Which parameters the native kernels update and which the reference does."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from friction_kernels import backends
from friction_kernels.optim import checks, options, reference
from friction_kernels.optim.guards import Demand, Guard, square_sum
from friction_kernels.optim.sharded_adamp import is_spread, make_together
from friction_kernels.optim.sharded_rounding import shard_of
from friction_kernels.optim.states import Storage
from friction_kernels.shards import all_reduce, device_of_sums, local, spreads_of
from friction_kernels.warn import warn

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from friction_kernels.optim.base import PlannedOptimizer
    from friction_kernels.optim.friction_adam import FrictionAdamP


class Entry(NamedTuple):
    """A parameter's place, and why the native kernels do not serve it (None where they do)."""

    group: int
    index: int  # type: ignore[assignment]  # in the place of tuple.index
    ordinal: int  # its place among all of the optimizer's parameters
    reason: str | None


Problem = tuple[
    int, str
]  # which entry of a plan (-1: none in particular), and what is wrong with it


def is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def entries_of(opt: PlannedOptimizer, groups: list[dict[str, Any]], first: int) -> list[Entry]:
    """Every parameter of the groups; `first`: the ordinal of the first one."""
    entries: list[Entry] = []
    seen: set[int] = set()
    for group_index, group in enumerate(groups):
        for index, param in enumerate(group["params"]):
            reason = _why_not_native(opt, group, param, again=id(param) in seen)
            seen.add(id(param))
            entries.append(Entry(group_index, index, first + len(entries), reason))
    return entries


def _why_not_native(
    opt: PlannedOptimizer, group: Mapping[str, Any], param: Tensor, *, again: bool
) -> str | None:
    """again: whether the parameter was met before, so that this step of it must follow that one."""
    if group["backend"] == "reference":
        return "backend='reference' was asked for"
    if again:
        return "it is given twice, and kernels step all parameters at once"
    if param.grad is None:  # whatever it is: with a gradient it is looked at anew
        return backends.native_reason()
    return _why_not_native_with_gradient(opt, param)


def _why_not_native_with_gradient(opt: PlannedOptimizer, param: Tensor) -> str | None:
    reason = backends.why_not_native(param)
    if reason is None and opt.projects_rows and is_spread(param):
        reason = "AdamP's sums over processes are plain torch's"
    return reason


def warn_of_fallbacks(
    opt: PlannedOptimizer, groups: list[dict[str, Any]], entries: list[Entry]
) -> None:
    """Say, once for each reason, which parameters with a gradient plain torch serves unasked."""
    unserved: dict[str, list[int]] = {}
    for entry in entries:
        group = groups[entry.group]
        if entry.reason is None or group["backend"] != "auto":
            continue
        if group["params"][entry.index].grad is not None:
            unserved.setdefault(entry.reason, []).append(entry.ordinal)
    for reason, (first, *others) in unserved.items():
        more = f" and {len(others)} more" if others else ""
        warn(
            f"{checks.name_at(opt.param_groups, first)}{more} cannot be served by native kernels: "
            f"{reason}. Plain torch computes the same, many times slower; backend='reference' asks for "
            "that and is not warned of"
        )


# A group's settings by the native rule's names; a capturable group's may be tensors on a GPU.
Numbers = dict[str, float | Tensor]


def numbers_of(opt: PlannedOptimizer, groups: list[dict[str, Any]]) -> list[Numbers]:
    """What this step computes with; raise where a setting is no number, before anything is changed."""
    found = []
    for group in groups:
        options.check_seed(group["seed"])
        given, on_device = opt._settings(group), group["capturable"]
        numbers: Numbers = {}
        for name in _number_names(opt, group, given):
            value = given[name]
            if type(value) is not float and not (on_device and _is_cuda(value)):
                value = checks.as_number(name, value)
            numbers[name] = value
        found.append(numbers)
    return found


def _number_names(
    opt: PlannedOptimizer, group: Mapping[str, Any], given: Mapping[str, Any]
) -> list[str]:
    if backends.native is not None:
        return [name for name in getattr(backends.native, opt.rule).settings if name in given]
    # Without the extension nobody has a list: what is a number by default, or was made of options.
    is_number = {name: isinstance(value, (float, Tensor)) for name, value in opt.defaults.items()}
    return [name for name in given if is_number.get(name, name not in group)]


@dataclass
class StepPlan:
    """Made anew only when something changes. Its groups are those of the optimizer, or some of them."""

    native: Any  # a plan of _native; None where it serves no parameter
    settings: tuple[str, ...]  # in the order the native plan takes them
    entries: list[Entry]
    reference: list[Entry]
    choices: list[dict[str, Any]]  # what each group asks for
    members: list[list[Tensor]]  # the parameters of each group
    demand: Demand
    native_devices: list[int]  # -1: the processor
    # Over which processes sums over parameters are taken, and of which entries (whether it is one of them,
    # for each); () where they are whole.
    spreads: dict[tuple[ProcessGroup, ...], list[bool]]
    observed: list[list[Tensor]] = field(default_factory=list)  # by the reference, for each group

    @classmethod
    def make(
        cls,
        opt: PlannedOptimizer,
        groups: list[dict[str, Any]],
        entries: list[Entry],
        demand: Demand,
    ) -> StepPlan:
        params = [param for group in groups for param in group["params"]]
        native, settings = None, ()
        if not all(entry.reason for entry in entries):
            plan_type = getattr(backends.native, opt.rule)
            native = plan_type(
                backends.tensor_reader(),
                [_native_entry(opt, groups, entry, demand) for entry in entries],
                backends.device_bytes,
                opt._graph_memory,
            )
            settings = plan_type.settings
        devices = {
            param.device.index if param.is_cuda else -1
            for param, entry in zip(params, entries, strict=True)
            if entry.reason is None and param in opt.state  # the first gradient asks for a new plan
        }
        return cls(
            native=native,
            settings=settings,
            entries=entries,
            reference=[entry for entry in entries if entry.reason],
            choices=[{k: copy(group[k]) for k in options.OWN} for group in groups],
            members=[list(group["params"]) for group in groups],
            demand=demand,
            native_devices=sorted(devices),
            spreads=spreads_of(groups),
            observed=[[] for _ in groups],
        )

    def fits(self, groups: list[dict[str, Any]], demand: Demand) -> bool:
        """Whether the groups ask for what was planned."""
        if demand != self.demand or len(groups) != len(self.choices):
            return False
        for group, choice in zip(groups, self.choices, strict=True):
            if any(group[option] != value for option, value in choice.items()):
                return False
        if not self.reference:
            return True  # the native plan looks itself
        return all(
            len(group["params"]) == len(params) and all(map(operator.is_, group["params"], params))
            for group, params in zip(groups, self.members, strict=True)
        )

    def run(
        self, opt: PlannedOptimizer, groups: list[dict[str, Any]], numbers: list[Numbers]
    ) -> Problem | None:
        """Update every parameter that has a gradient; say why not, and nothing was changed then.

        numbers: what `numbers_of` made of the groups.
        """
        guard: Guard | None = None
        factors = [1.0] * len(groups)
        if self.demand.guarded:
            guard, problem = self._measure(opt, groups)
            if guard is None:
                return problem
            # What the host must know: whether the step is one, and the factors.
            if self.reference or -1 in self.native_devices:
                if guard.skips():
                    self.observed = [[] for _ in groups]
                    return None
                factors = [guard.factor(group["max_grad_norm"]) for group in groups]
        problem = self._native_step(opt, groups, numbers, guard, factors)
        if problem is None and self.reference:
            self._reference_step(opt, groups, factors)
        return problem

    def _measure(
        self, opt: PlannedOptimizer, groups: list[dict[str, Any]]
    ) -> tuple[Guard | None, Problem | None]:
        counted = self.demand.counted(groups)
        squared: Tensor | None = None
        rest: Tensor | None = None
        problem: Problem | None = None
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
        self, opt: PlannedOptimizer, groups: list[dict[str, Any]], counted: list[bool]
    ) -> tuple[Tensor | None, Problem | None]:
        """The sum of squares of the gradients of the counted groups, on the first device."""
        total: Tensor | None = None
        for processes, members in self.spreads.items():
            theirs = [
                counted[entry.group] and member
                for entry, member in zip(self.entries, members, strict=True)
            ]
            device = self._device_of_sums(processes, members)
            part, problem = self._local_squared_norm(opt, groups, theirs, device)
            if part is None:
                return None, problem
            part = all_reduce(part, processes)
            total = part if total is None else total + part
        return total, None

    def _device_of_sums(
        self, processes: tuple[ProcessGroup, ...], members: list[bool]
    ) -> torch.device:
        """Where these entries' sums are reduced: with parameters on GPUs, processes send nothing else."""
        params = list(compress(chain.from_iterable(self.members), members))
        trained = [param for param in params if not checks.is_frozen(param)]
        devices = (param.device for param in (*trained, *params))
        return next((d for d in devices if d.type != "meta"), device_of_sums(processes))

    def _local_squared_norm(
        self,
        opt: PlannedOptimizer,
        groups: list[dict[str, Any]],
        counted: list[bool],
        device: torch.device,
    ) -> tuple[Tensor | None, Problem | None]:
        """The same of the counted entries' parts on this process."""
        targets = {
            index: torch.empty(
                1, dtype=torch.float64, device="cpu" if index < 0 else f"cuda:{index}"
            )
            for index in self.native_devices
        }
        if self.native is not None:
            problem = self.native.squared_norm(
                opt.state, groups, counted, list(targets.items()), torch.get_num_threads()
            )
            if problem is not None:
                return None, problem
        sums = [target.reshape(()) for target in targets.values()]
        for entry, counts in zip(self.entries, counted, strict=True):
            if not counts or entry.reason is None:
                continue
            param = groups[entry.group]["params"][entry.index]
            if param.grad is not None:
                sums.append(square_sum(local(param.grad)))
        if not sums:
            return torch.zeros((), dtype=torch.float64, device=device), None
        total, *others = [
            part.to(device) for part in sums
        ]  # no operator where one launch has it all
        for part in others:
            total = total + part
        return total, None

    def _native_step(
        self,
        opt: PlannedOptimizer,
        groups: list[dict[str, Any]],
        numbers: list[Numbers],
        guard: Guard | None,
        factors: list[float],
    ) -> Problem | None:
        if self.native is None:
            return None
        rows = []
        for group, given, factor in zip(groups, numbers, factors, strict=True):
            given = {**given, **_guard_settings(group, guard, factor)}
            rows.append([given[name] for name in self.settings])
        arguments: tuple[Any, ...] = (opt.state, groups, rows, torch.get_num_threads())
        devices = [index for index in self.native_devices if index >= 0]
        if guard is not None and devices:
            arguments = (*arguments, [guard.on(index) for index in devices])
        problem: Problem | None = self.native.step(*arguments)
        if problem is None:
            increment_version(self.native.updated)
        return problem

    def _reference_step(
        self, opt: PlannedOptimizer, groups: list[dict[str, Any]], factors: list[float]
    ) -> None:
        def update_of(entry: Entry) -> reference.Update:
            group, factor = groups[entry.group], factors[entry.group]
            param = group["params"][entry.index]
            return reference.Update(opt, param, group, ordinal=entry.ordinal, grad_factor=factor)

        self.observed = [[] for _ in groups]
        spread: list[Entry] = []
        for entry in self.reference:
            param = groups[entry.group]["params"][entry.index]
            if param.grad is None:
                continue
            if opt.projects_rows and is_spread(param):
                spread.append(entry)
                continue
            observed = reference.make(opt, update_of(entry))
            if observed is not None:
                self.observed[entry.group].append(observed)
        adamp = cast("FrictionAdamP", opt)
        frictions = make_together(adamp, map(update_of, spread))
        for entry, friction in zip(spread, frictions, strict=True):
            self.observed[entry.group].append(friction)


def _is_cuda(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


_UNGUARDED = {"grad_factor": 1.0, "max_norm": math.inf}


def _guard_settings(
    group: Mapping[str, Any], guard: Guard | None, factor: float
) -> dict[str, float]:
    """A group's settings that a guard decides; on a GPU the kernels make the factor themselves."""
    if guard is None:
        return _UNGUARDED
    max_norm = group["max_grad_norm"]
    stepped = (param for param in group["params"] if param.grad is not None)
    on_gpu = next((param.is_cuda for param in stepped), False)  # all are, or none
    return {
        "grad_factor": 1.0 if on_gpu else factor,
        "max_norm": math.inf if max_norm is None else float(max_norm),
    }


def _is_ready(
    opt: PlannedOptimizer,
    entry: Entry,
    group: dict[str, Any],
    state: Mapping[str, Any],
    demand: Demand,
) -> bool:
    """Whether the native kernels can serve a parameter as soon as it has a gradient again."""
    param = group["params"][entry.index]
    if _why_not_native_with_gradient(opt, param) is not None:
        return False
    part = local(param)
    try:
        options.check_parameter("it", part, group, opt.state_lists)
        checks.check_state("it", part, state, opt.state_lists)
    except (RuntimeError, ValueError):
        return False
    return Storage.of(opt, part, group, may_skip=demand.may_skip).fits(part, state)


def _native_entry(
    opt: PlannedOptimizer, groups: list[dict[str, Any]], entry: Entry, demand: Demand
) -> tuple[object, ...]:
    """A parameter as the extension's plans take it."""
    group = groups[entry.group]
    param, native = group["params"][entry.index], entry.reason is None
    state = opt.state.get(param) if native else None
    if not state or (param.grad is None and not _is_ready(opt, entry, group, state, demand)):
        state = None  # to be looked at when there is a gradient
    companion = options.companion(param, group)
    rounding = None
    if state is not None and options.rounds_stochastically(param, group):
        rounding = (entry.ordinal, *shard_of(param, opt.projects_rows))
    return (param, state, entry.group, native, companion and companion[0], rounding)
