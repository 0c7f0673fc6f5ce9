"""The base class of all optimizers: states, planned steps, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from friction_kernels import backends
from friction_kernels.choices import check_choice
from friction_kernels.optim import checkpoints, checks, compiled, options, state_checks, taking
from friction_kernels.optim.fallbacks import Entry, entries_of, warn_of_fallbacks
from friction_kernels.optim.gradient_scaling import GradientScaling, LossScale, Needs
from friction_kernels.optim.memory import MemoryReport
from friction_kernels.optim.planning import PlanMismatchError, StepPlan, is_capturing, settings_of
from friction_kernels.optim.rule import Rule
from friction_kernels.optim.sharded_adamp import flattened_refusal
from friction_kernels.optim.sharded_rounding import why_no_shard
from friction_kernels.optim.snapshots import Snapshots
from friction_kernels.optim.states import StateFormat
from friction_kernels.shards import local, mismatch, name_of, why_no_sum

Result = TypeVar("Result")


def mark_applied(grad: Tensor | None) -> None:
    """Record on a gradient that a step applied it. (A weak reference would prevent swap_tensors().)"""
    if grad is not None and not grad.is_inference():
        grad._applied_version = grad._version  # type: ignore[attr-defined]


def is_applied(grad: Tensor) -> bool:
    """Whether a step applied this gradient and it has not changed since."""
    noted = getattr(grad, "_applied_version", None)
    return noted is not None and bool(noted == grad._version)


class PlannedOptimizer(Optimizer):
    """Base of the optimizers. Subclasses define their rule and options."""

    rule: Rule  # usually the class's

    _number: int  # by which compiled steps find the optimizer
    _scaling: GradientScaling | None = None  # of the last step, if max_grad_norm required a norm
    # The handle of release_gradients while it is active.
    _released: Any = None
    # Tells GradScaler that step() itself unscales gradients and skips if one is infinite.
    _step_supports_amp_scaling = True

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._plan: StepPlan | None = None
        self._graph_memory: list[Tensor] = []  # kept for captured CUDA graphs
        self._snapshots = Snapshots()
        compiled.register(self)
        defaults["process_group"] = name_of(defaults.get("process_group"))
        self._check_options(defaults)
        self._options = frozenset(defaults)
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        self.rule.check_group(group)
        checks.check_backend(group["backend"])
        options.check(group, self.rule.states)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: a dict with `params` and any of the constructor's options.

        Raises:
            ValueError, TypeError: as from the constructor; the group is then not added.
        """
        if isinstance(param_group, dict):  # otherwise torch raises
            index = len(self.param_groups)
            params = param_group.get("params")
            if params is None:
                raise TypeError(f"group {index} has no 'params': a list of parameters is missing")
            if isinstance(params, Tensor):
                params = [params]
            elif isinstance(params, set):
                params = []  # torch raises for sets
            else:
                params = param_group["params"] = list(params)
            param_group = options.without_torchs(
                index, param_group, self._options, self.rule.identity(), type(self).__name__
            )
            checks.check_parameters(params, index)
            if "process_group" in param_group:
                param_group["process_group"] = name_of(param_group["process_group"])
            group = {**self.defaults, **param_group}
            self._check_options(group)
            for name, param in checks.with_names(params, len(self.param_groups)):
                problem = flattened_refusal(self.rule, param)
                if problem is not None:
                    raise ValueError(f"{name} cannot be updated: {problem}")
            checks.check_capturable(group, params)
            options.check_parameters(params, index, group, self.rule.states)
        super().add_param_group(param_group)
        self._traced = compiled.parameters_of(self.param_groups)

    # The step.

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm of the gradients at the last step, unscaled and before clipping: a float32 scalar.

        Covers the groups with max_grad_norm; None if there are none. The host does not wait for a GPU.
        torch.compile breaks the graph at this property; with fullgraph=True, read it outside.
        """
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(
                msg="read grad_norm outside: it is of a step that the graph has yet to make"
            )
        return None if self._scaling is None else self._scaling.norm()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            the closure's loss, or None.

        Raises:
            RuntimeError: a gradient or state is unusable, or backend="native" cannot serve a parameter.
                Nothing has been changed.

        If a gradient is not finite, skip_nonfinite or a GradScaler skips the step.
        """
        loss = None
        if closure is not None:
            loss = self._evaluate(closure)
        if torch.compiler.is_compiling():
            compiled.step(self)
        else:
            self._step()
        return loss

    def _evaluate(self, closure: Callable[[], float]) -> float:
        # GradScaler does not support closures, so gradients within one are not unscaled here. Lightning
        # clips inside the closure and would refuse to if this attribute were set.
        if not torch.compiler.is_compiling():
            self._step_supports_amp_scaling = False
        try:
            with torch.enable_grad():
                return closure()
        finally:
            self.__dict__.pop("_step_supports_amp_scaling", None)

    # Schedulers wrap step() to detect that it was called, with a function that torch.compile cannot trace.
    # Marking step() as wrapped avoids this; _step() sets the flag that schedulers check.
    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def _step(self) -> None:
        self._check_step()
        self._snapshots.warn_of_written()
        self._plan = self._update(self._plan, self.param_groups)
        first = self._plan.stepped()
        mark_applied(None if first is None else first.grad)
        self._opt_called = True

    def _check_step(self) -> None:
        checks.check_groups(self.param_groups, self._options)
        checks.check_not_faking()
        if is_capturing():
            checks.check_captured(self.param_groups)

    def _update(
        self, plan: StepPlan | None, groups: list[dict[str, Any]], first: int = 0
    ) -> StepPlan:
        """Step the groups with the plan, or a new one if it does not fit; return the plan used."""
        untaken = taking.why_not_taken(self.rule, groups)
        if untaken is not None:
            name = checks.name_at(self.param_groups, first + untaken[0])
            raise RuntimeError(
                f"{name} has take_gradients=True, and {untaken[1]}; set take_gradients=False for it"
            )
        plan, scaling = self._with_plan(StepPlan.step, plan, groups, first)
        self._scaling = scaling if plan.needs.clips else None
        return plan

    def _with_plan(
        self,
        do: Callable[..., Result],
        plan: StepPlan | None,
        groups: list[dict[str, Any]],
        first: int = 0,
    ) -> tuple[StepPlan, Result]:
        """Call `do` with a plan for the groups: the given plan if it fits, else a new one.

        first: the index of the groups' first parameter among all parameters of the optimizer.
        """
        checks.check_states(self.state)
        loss_scale = LossScale.of(self.__dict__)
        needs, settings = Needs.of(groups, loss_scale), settings_of(self.rule, groups)
        if plan is None or not plan.fits(groups, needs):
            plan = self._make_plan(groups, first, needs)
        elif plan.reference:  # a native plan checks its own parameters
            self._prepare(groups, plan.reference, needs)
        try:
            return plan, do(plan, self.state, groups, settings, loss_scale)
        except PlanMismatchError:
            plan = self._make_plan(groups, first, needs)
        try:
            return plan, do(plan, self.state, groups, settings, loss_scale)
        except PlanMismatchError as problem:
            what = "the step cannot be made"
            if problem.entry >= 0:
                name = checks.name_at(self.param_groups, first + problem.entry)
                what = f"{name} cannot be updated"
            raise RuntimeError(f"{what}: {problem}") from None

    def _make_plan(self, groups: list[dict[str, Any]], first: int, needs: Needs) -> StepPlan:
        """Inspect every parameter once: which backend serves it, and whether any can."""
        for index, group in enumerate(groups):
            checks.check_members(index, group)
            taking.check_members(self.rule, index, group)
            check_choice("backend", group["backend"], backends.BACKENDS)
            checks.check_capturable(group, group["params"])
            group["process_group"] = name_of(group["process_group"])
            options.check(group, self.rule.states)
        if groups is self.param_groups:
            self._traced = compiled.parameters_of(self.param_groups)  # without removed parameters
        entries = entries_of(self.rule, groups, first)
        self._check_spreads(groups, entries, needs)
        self._prepare(groups, entries, needs)
        warn_of_fallbacks(self.param_groups, groups, entries)
        return StepPlan.make(self.rule, groups, entries, needs, self.state, self._graph_memory)

    def _check_spreads(
        self, groups: list[dict[str, Any]], entries: list[Entry], needs: Needs
    ) -> None:
        """Check parameters without gradient, too, so that all processes raise together."""
        for entry in entries:
            group = groups[entry.group]
            param = group["params"][entry.index]
            problem = flattened_refusal(self.rule, param)
            if problem is None and needs.anything:
                problem = why_no_sum(param, group["process_group"])
            if problem is not None:
                name = checks.name_at(self.param_groups, entry.ordinal)
                raise RuntimeError(f"{name} cannot be updated: {problem}")

    def _prepare(self, groups: list[dict[str, Any]], entries: list[Entry], needs: Needs) -> None:
        """Check every gradient and state, then create and convert states where needed."""
        unready = []
        capturing = is_capturing()
        first_of_group: dict[int, tuple[checks.LateName, Tensor]] = {}
        for group_index, index, ordinal, reason in entries:
            group = groups[group_index]
            param = group["params"][index]
            if param.grad is None:
                continue
            late = checks.LateName(group_index, group, index)
            first = first_of_group.setdefault(group_index, (late, param))
            name: object = late
            if groups is not self.param_groups:
                name = checks.name_at(self.param_groups, ordinal)
            if reason is not None and group["backend"] == "native":
                raise RuntimeError(
                    f"backend='native' cannot serve {name}: {reason}; use backend='auto'"
                )
            if capturing and reason is not None:
                raise RuntimeError(
                    f"the reference serves {name}, because {reason}; it cannot be captured in a CUDA "
                    "graph"
                )
            problem = mismatch(param, param.grad)
            if problem is None and options.rounds_stochastically(param, group):
                problem = why_no_shard(param, self.rule.projects_rows)
            if problem is not None:
                raise RuntimeError(f"{name} cannot be updated: {problem}")
            part = local(param)
            checks.check_gradient(name, part, local(param.grad))
            checks.check_device(name, param, *first)
            options.check_parameter(name, part, group, self.rule.states)
            state = self.state.get(param, {})
            if state != {}:
                state_checks.check_state(name, part, state, self.rule.states)
            format = StateFormat.of(self.rule, part, group, may_skip=needs.may_skip)
            if state and format.fits(part, state):
                continue
            if capturing:
                raise RuntimeError(
                    f"{name} has no state {'as its options ask for' if state else 'yet'}, and one made "
                    "while a CUDA graph is captured would be made anew by every replay; run a step "
                    "before capturing"
                )
            unready.append((param, format))
        for param, format in unready:
            # Work on a copy, so that an interrupt never leaves a partially converted state.
            state = dict(self.state.get(param, {}))
            format.convert(local(param), state)
            self.state[param] = state

    def memory_report(self) -> MemoryReport:
        """Bytes of parameters and states, without gradients; print it for a table.

        Counts allocated tensors only: a parameter's states are created at its first step.
        """
        return MemoryReport.of(self.param_groups, self.state)

    # Saving and loading.

    def state_dict(self) -> dict[str, Any]:
        """The state as numbers: 8-bit states become float32, which quantizes to the same codes again.

        If any state is converted (8-bit states; 16-bit residuals of DTensors), all tensors are copies,
        which later steps do not change. Otherwise all are the optimizer's own, as in torch.
        After torch.distributed.checkpoint.load, which writes into these tensors in place, call
        load_state_dict(); without it, a step() warns if the tensors were copies.
        """
        # Registered first, so that the user's hooks see numbers rather than codes.
        handle = self.register_state_dict_post_hook(
            _export,  # type: ignore[arg-type]
            prepend=True,
        )
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, which may be that of a torch optimizer with the same moments.

        Options missing from a loaded group keep their current value, as do the options that define how a
        step is computed and stored: `backend`, `capturable`, `master`, `rounding`, `state_dtype`. States
        are converted accordingly; a missing `prev_grad` starts at zero, and options of friction or
        projection that this class lacks are dropped.

        Args:
            state_dict: from `state_dict()` of this class or of torch's: tensors of the parameters'
                shapes, on any device.

        Raises:
            ValueError, TypeError: a state_dict of another class, of other shapes or types, or with options
                that the constructor would reject. Nothing has been changed.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict takes what state_dict() returned, got {state_dict!r}")
        self._groups_before = [dict(group) for group in self.param_groups]
        # Registered last, so that it sees the state_dict as modified by the user's hooks.
        handle = self.register_load_state_dict_pre_hook(self._keep_state_dict)
        try:
            super().load_state_dict(dict(state_dict))
            self._snapshots.loaded(self._new_states.values())
        finally:
            handle.remove()
            self.__dict__.pop("_new_states", None)
            del self._groups_before

    def _keep_state_dict(self, _: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        name = type(self).__name__
        state_dict = self.rule.understood(checkpoints.understood(state_dict), name)
        self._check_loaded_groups(state_dict["param_groups"])
        groups = self.param_groups
        self._new_states = checkpoints.new_states(self.rule, name, groups, state_dict)
        return checkpoints.without_states(self.rule, state_dict, self._options)

    def _check_loaded_groups(self, loaded: list[dict[str, Any]]) -> None:
        """Raise if a loaded group, completed with current values, has invalid options."""
        for index, (group, saved) in enumerate(zip(self.param_groups, loaded, strict=False)):
            given = {k: v for k, v in saved.items() if k not in ("params", *options.OWN)}
            try:
                self._check_options({**self.defaults, **group, **given})
            except (TypeError, ValueError) as error:
                raise type(error)(f"the state_dict's group {index}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        own = {"rule": self.rule} if "rule" in self.__dict__ else {}  # otherwise the class's
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        compiled.register(self)
        self._traced = compiled.parameters_of(self.param_groups)
        self.__dict__.setdefault("_graph_memory", [])
        self.__dict__.setdefault("_snapshots", Snapshots())
        self.defaults.pop("differentiable", None)  # torch adds it, and groups would inherit it
        for option, value in options.DEFAULTS.items():
            self.defaults.setdefault(option, value)
        self.__dict__.setdefault("_options", frozenset(self.defaults))
        before = self.__dict__.get("_groups_before", [])
        for index, group in enumerate(self.param_groups):
            known = before[index] if index < len(before) else {}
            for key, value in chain(known.items(), self.defaults.items()):
                group.setdefault(key, value)
            group.update({key: known[key] for key in options.OWN if key in known})
        for param, param_state in self.__dict__.get("_new_states", {}).items():
            self.state[param] = {**param_state, **self.state[param]}


def _export(opt: PlannedOptimizer, state_dict: dict[str, Any]) -> None:
    checkpoints.export(opt.rule, opt.param_groups, state_dict, opt._snapshots)
