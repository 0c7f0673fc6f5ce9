"""What all optimizers share: state, steps by a plan, saving and loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, ClassVar, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from friction_kernels import backends
from friction_kernels.optim import checkpoints, checks, compiled, options
from friction_kernels.optim.guards import Demand, Guard
from friction_kernels.optim.memory import MemoryReport
from friction_kernels.optim.planning import (
    Entry,
    StepPlan,
    entries_of,
    is_capturing,
    numbers_of,
    warn_of_fallbacks,
)
from friction_kernels.optim.sharded_adamp import why_not_flattened
from friction_kernels.optim.sharded_rounding import why_no_shard
from friction_kernels.optim.states import Storage
from friction_kernels.shards import local, mismatch, name_of, why_no_sum


class PlannedOptimizer(Optimizer, ABC):
    """Base of the optimizers. Subclasses say which rule and which settings."""

    rule: ClassVar[str]  # the plan's name in _native
    projects_rows: ClassVar[bool] = False  # whether rows are walked one after the other
    # The state's tensors; True: kept in float32 at least, False: in the parameter's type.
    state_lists: ClassVar[dict[str, bool]]

    _number: int  # by which compiled steps find the optimizer
    _guard: Guard | None = None  # of the last step, where max_grad_norm asked for a norm
    _snapshot: checkpoints.Snapshot | None = None  # the last state_dict(), where it has copies
    # The handle of release_gradients, while it holds.
    _released: Any = None
    # GradScaler leaves it to step() to unscale gradients and to do nothing where one is infinite.
    _step_supports_amp_scaling = True

    @abstractmethod
    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise for settings of the rule that are out of range."""

    @abstractmethod
    def _settings(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group's settings by the native rule's names; others may be among them."""

    @abstractmethod
    def _reference_update(
        self,
        param: Tensor,
        grad: Tensor,
        lists: dict[str, Tensor],
        group: dict[str, Any],
        *,
        step: float,
        whole: Tensor,
    ) -> Tensor | None:
        """Advance one real tensor by the equations; return what the rule observes (the friction).

        whole: the parameter as the user has it, which may be complex, or spread over processes.
        """

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._plan: StepPlan | None = None
        self._graph_memory: list[Tensor] = []  # what captured CUDA graphs use, while this lives
        compiled.register(self)
        defaults["process_group"] = name_of(defaults.get("process_group"))
        self._check_options(defaults)
        self._options = frozenset(defaults)
        super().__init__(params, defaults)

    def _check_options(self, group: dict[str, Any]) -> None:
        self._check_group(group)
        checks.check_backend(group["backend"])
        options.check(group, self.state_lists)

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
                index, param_group, self._options, self._kind(), type(self).__name__
            )
            checks.check_parameters(params, index)
            if "process_group" in param_group:
                param_group["process_group"] = name_of(param_group["process_group"])
            group = {**self.defaults, **param_group}
            self._check_options(group)
            for name, param in checks.with_names(params, len(self.param_groups)):
                problem = why_not_flattened(self, param)
                if problem is not None:
                    raise ValueError(f"{name} cannot be updated: {problem}")
            checks.check_capturable(group, params)
            options.check_parameters(params, index, group, self.state_lists)
        super().add_param_group(param_group)
        self._traced = compiled.parameters_of(self)

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
        return None if self._guard is None else self._guard.norm()

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
        checks.check_groups(self.param_groups, self._options)
        checks.check_not_faking()
        if is_capturing():
            checks.check_captured(self.param_groups)
        if self._snapshot is not None and self._snapshot.is_written():
            self._snapshot = None
            checkpoints.warn_of_written_snapshot()
        self._plan = self._update(self._plan, self.param_groups)
        self._opt_called = True

    def _update(
        self, plan: StepPlan | None, groups: list[dict[str, Any]], first: int = 0
    ) -> StepPlan:
        """Step the groups by the plan, or by a new one; return the plan that did it.

        first: the place of the groups' first parameter among all of the optimizer's.
        """
        demand, numbers = Demand.of(self, groups), numbers_of(self, groups)
        if not demand.clips:
            self._guard = None
        if plan is None or not plan.fits(groups, demand):
            plan = self._make_plan(groups, first, demand)
        elif plan.reference:  # the native plan looks at its own parameters itself
            self._prepare(groups, plan.reference, demand)
        problem = plan.run(self, groups, numbers)
        if problem is not None:
            plan = self._make_plan(groups, first, demand)
            problem = plan.run(self, groups, numbers)
        if problem is not None:
            entry, what = problem
            cannot = "step() cannot run"
            if entry >= 0:
                cannot = f"{checks.name_at(self.param_groups, first + entry)} cannot be updated"
            raise RuntimeError(f"{cannot}: {what}")
        return plan

    def _make_plan(self, groups: list[dict[str, Any]], first: int, demand: Demand) -> StepPlan:
        """Look at every parameter once: who serves it, and whether it can be served at all."""
        for index, group in enumerate(groups):
            checks.check_members(index, group)
            checks.check_choice("backend", group["backend"], backends.BACKENDS)
            checks.check_capturable(group, group["params"])
            group["process_group"] = name_of(group["process_group"])
            options.check(group, self.state_lists)
        if groups is self.param_groups:
            self._traced = compiled.parameters_of(self)  # without what was taken out
        entries = entries_of(self, groups, first)
        self._check_spreads(groups, entries, demand)
        self._prepare(groups, entries, demand)
        warn_of_fallbacks(self, groups, entries)
        return StepPlan.make(self, groups, entries, demand)

    def _check_spreads(
        self, groups: list[dict[str, Any]], entries: list[Entry], demand: Demand
    ) -> None:
        """Of parameters without gradient, too: what one process refuses, all must."""
        for entry in entries:
            group = groups[entry.group]
            param = group["params"][entry.index]
            problem = why_not_flattened(self, param)
            if problem is None and demand.guarded:
                problem = why_no_sum(param, group["process_group"])
            if problem is not None:
                name = checks.name_at(self.param_groups, entry.ordinal)
                raise RuntimeError(f"{name} cannot be updated: {problem}")

    def _prepare(self, groups: list[dict[str, Any]], entries: list[Entry], demand: Demand) -> None:
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
                problem = why_no_shard(param, self.projects_rows)
            if problem is not None:
                raise RuntimeError(f"{name} cannot be updated: {problem}")
            part = local(param)
            checks.check_gradient(name, part, local(param.grad))
            checks.check_device(name, param, *first)
            options.check_parameter(name, part, group, self.state_lists)
            state = self.state.get(param, {})
            if state != {}:
                checks.check_state(name, part, state, self.state_lists)
            storage = Storage.of(self, part, group, may_skip=demand.may_skip)
            if state and storage.fits(part, state):
                continue
            if capturing:
                raise RuntimeError(
                    f"{name} has no state {'as its options ask for' if state else 'yet'}, and one made "
                    "while a CUDA graph is captured would be made anew by every replay; run a step "
                    "before capturing"
                )
            unready.append((param, storage))
        for param, storage in unready:
            # Whoever interrupts finds a state as it was or as it should be, and never a half-made one.
            state = dict(self.state.get(param, {}))
            storage.bring(local(param), state)
            self.state[param] = state

    def memory_report(self) -> MemoryReport:
        """Bytes of parameters and states, gradients left aside; print it for a table.

        Counts what there is: states begin with a parameter's first step.
        """
        return MemoryReport.of(self)

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
            checkpoints.export,  # type: ignore[arg-type]
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
            self._snapshot = None
        finally:
            handle.remove()
            self.__dict__.pop("_new_states", None)
            del self._groups_before

    def _keep_state_dict(self, _: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = self._understood(checkpoints.understood(state_dict))
        self._new_states = checkpoints.new_states(self, state_dict)
        return checkpoints.without_states(self, state_dict)

    def _understood(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state_dict in this optimizer's terms; raise where there are none."""
        return state_dict

    def _kind(self) -> dict[str, Any]:
        """What tells the class from others that have the same states; a state_dict's groups say it."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        compiled.register(self)
        self._traced = compiled.parameters_of(self)
        self.__dict__.setdefault("_graph_memory", [])
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
