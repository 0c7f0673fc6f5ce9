"""What all optimizers share: state, steps by a plan, saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar, TypeVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from friction_kernels import backends
from friction_kernels.optim import checkpoints, checks, compiled, options, state_checks
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
    """Leave a note on a gradient that a step has applied; a weak reference would forbid swap_tensors()."""
    if grad is not None and not grad.is_inference():
        grad._applied_version = grad._version  # type: ignore[attr-defined]


def is_applied(grad: Tensor) -> bool:
    """Whether a gradient has that note and has not changed since."""
    noted = getattr(grad, "_applied_version", None)
    return noted is not None and bool(noted == grad._version)


class PlannedOptimizer(Optimizer):
    """Base of the optimizers. Subclasses say which rule they step by, and their options."""

    rule: ClassVar[Rule]

    _number: int  # by which compiled steps find the optimizer
    _scaling: GradientScaling | None = (
        None  # of the last step, where max_grad_norm asked for a norm
    )
    # The handle of release_gradients, while it holds.
    _released: Any = None
    # GradScaler leaves it to step() to unscale gradients and to do nothing where one is infinite.
    _step_supports_amp_scaling = True

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._plan: StepPlan | None = None
        self._graph_memory: list[Tensor] = []  # what captured CUDA graphs use, while this lives
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
            ValueError, TypeError: as from the constructor; nothing is added then.
        """
        if isinstance(param_group, dict):  # torch says what else it got
            index = len(self.param_groups)
            params = param_group.get("params")
            if params is None:
                raise TypeError(f"group {index} has no 'params': a list of parameters is missing")
            if isinstance(params, Tensor):
                params = [params]
            elif isinstance(params, set):
                params = []  # torch says what is wrong with them
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

        It is of the groups that ask for max_grad_norm; None where none does. Nothing waits for a GPU.
        torch.compile ends a graph before it is read, which fullgraph=True forbids: read it outside.
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
            closure: evaluates the model anew and returns the loss.

        Returns:
            the closure's loss, or None.

        Raises:
            RuntimeError: a gradient or state cannot be used, or a group asks for backend="native" and it
                cannot serve; nothing is changed then.

        Changes nothing where a gradient is not finite and skip_nonfinite or a GradScaler minds.
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
        # GradScaler takes no closures: whoever asks within one finds gradients that nobody is to unscale.
        # Lightning does, and refuses to clip there unless this is said.
        if not torch.compiler.is_compiling():
            self._step_supports_amp_scaling = False
        try:
            with torch.enable_grad():
                return closure()
        finally:
            self.__dict__.pop("_step_supports_amp_scaling", None)

    # Schedulers wrap step() to see that it was called, in a function that torch.compile cannot trace. This
    # one says so itself.
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
        """Step the groups by the plan, or by a new one; return the plan that did it."""
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
        """What `do` makes of a plan for the groups, a new one where the given one does not fit.

        first: the place of the groups' first parameter among all of the optimizer's.
        """
        checks.check_states(self.state)
        loss_scale = LossScale.of(self.__dict__)
        needs, settings = Needs.of(groups, loss_scale), settings_of(self.rule, groups)
        if plan is None or not plan.fits(groups, needs):
            plan = self._make_plan(groups, first, needs)
        elif plan.reference:  # the native plan looks at its own parameters itself
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
        """Look at every parameter once: who serves it, and whether it can be served at all."""
        for index, group in enumerate(groups):
            checks.check_members(index, group)
            checks.check_choice("backend", group["backend"], backends.BACKENDS)
            checks.check_capturable(group, group["params"])
            group["process_group"] = name_of(group["process_group"])
            options.check(group, self.rule.states)
        if groups is self.param_groups:
            self._traced = compiled.parameters_of(self.param_groups)  # without what was taken out
        entries = entries_of(self.rule, groups, first)
        self._check_spreads(groups, entries, needs)
        self._prepare(groups, entries, needs)
        warn_of_fallbacks(self.param_groups, groups, entries)
        return StepPlan.make(self.rule, groups, entries, needs, self.state, self._graph_memory)

    def _check_spreads(
        self, groups: list[dict[str, Any]], entries: list[Entry], needs: Needs
    ) -> None:
        """Of parameters without gradient, too: what one process refuses, all must."""
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
        """Check every gradient and state first; then start and convert the states that need it."""
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
            # Whoever interrupts finds a state as it was or as it should be, and never a half-made one.
            state = dict(self.state.get(param, {}))
            format.convert(local(param), state)
            self.state[param] = state

    def memory_report(self) -> MemoryReport:
        """Bytes of parameters and states, gradients left aside; print it for a table.

        Counts what there is: states begin with a parameter's first step.
        """
        return MemoryReport.of(self.param_groups, self.state)

    # Saving and loading.

    def state_dict(self) -> dict[str, Any]:
        """The state as numbers: what is kept in 8 bits comes as float32, and packs to the same again.

        Where a state is converted for it (one kept in 8 bits; 16-bit residuals of DTensors), all tensors in
        it are copies, which later steps do not change. Otherwise all are the optimizer's own, as in torch.
        What is loaded into it (torch.distributed.checkpoint.load writes in place) reaches the optimizer
        by load_state_dict(), which must follow; a step() without it warns where these were copies.
        """
        # Registered first, so that the user's own hooks see numbers.
        handle = self.register_state_dict_post_hook(
            _export,  # type: ignore[arg-type]
            prepend=True,
        )
        try:
            return super().state_dict()
        finally:
            handle.remove()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of torch's optimizer with the same moments.

        What a loaded group does not say stays as it is here, and so does how a step is computed and
        kept: `backend`, `capturable`, `master`, `rounding`, `state_dtype`. States are converted to
        these; a `prev_grad` it does not have starts at zero.

        Args:
            state_dict: what `state_dict()` of this class, or of torch's, gave: tensors of the parameters'
                shapes, on any device.

        Raises:
            ValueError, TypeError: a state_dict of another class, of other shapes or types, or with options
                that the constructor would refuse; nothing is changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"load_state_dict takes what state_dict() returned, got {state_dict!r}")
        self._groups_before = [dict(group) for group in self.param_groups]
        # Registered last, so that it sees what the user's own hooks made of the state_dict.
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
        return checkpoints.without_states(self.rule, state_dict)

    def _check_loaded_groups(self, loaded: list[dict[str, Any]]) -> None:
        """Raise where a loaded group, completed by what is here, has options that cannot be."""
        for index, (group, saved) in enumerate(zip(self.param_groups, loaded, strict=False)):
            given = {k: v for k, v in saved.items() if k not in ("params", *options.OWN)}
            try:
                self._check_options({**self.defaults, **group, **given})
            except (TypeError, ValueError) as error:
                raise type(error)(f"the state_dict's group {index}: {error}") from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        compiled.register(self)
        self._traced = compiled.parameters_of(self.param_groups)
        self.__dict__.setdefault("_graph_memory", [])
        self.__dict__.setdefault("_snapshots", Snapshots())
        self.defaults.pop("differentiable", None)  # torch adds it, and it would get into the groups
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
