"""What all optimizers share: a plan of what to update, made anew only when something changes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.optim import Optimizer

from friction_kernels import backends
from friction_kernels.optim import checks


class Entry(NamedTuple):
    """A parameter's place, and why the native kernels do not serve it (None where they do)."""

    group: int
    index: int
    reason: str | None


def _is_capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _is_cuda(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


@dataclass
class StepPlan:
    """Which parameters the native kernels update and which the reference does."""

    native: Any  # a plan of _native; None where it serves no parameter
    settings: tuple[str, ...]  # in the order the native plan takes them
    reference: list[Entry]
    choices: list[str]  # each group's backend
    params: list[Tensor]  # of all groups

    def fits(self, param_groups: list[dict[str, Any]]) -> bool:
        """Whether the groups ask for what was planned. A native plan checks its parameters itself."""
        if [group["backend"] for group in param_groups] != self.choices:
            return False
        if self.native is not None:
            return True
        params = [param for group in param_groups for param in group["params"]]
        return len(params) == len(self.params) and all(map(operator.is_, params, self.params))


class PlannedOptimizer(Optimizer):
    """Base of the optimizers: state, plan and dispatch. Subclasses say which rule and which settings."""

    rule: ClassVar[str]  # the plan's name in _native
    counts_steps: ClassVar[bool]  # whether the state has a 'step'
    # The state's tensors; True: kept in float32 at least, False: in the parameter's type.
    state_lists: ClassVar[dict[str, bool]]

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise for settings that are out of range."""
        raise NotImplementedError

    def _settings(self, group: dict[str, Any]) -> dict[str, float]:
        """The group's settings by the native rule's names."""
        raise NotImplementedError

    def _reference_update(
        self,
        param: Tensor,
        grad: Tensor,
        lists: dict[str, Tensor],
        group: dict[str, Any],
        *,
        step: float,
        is_matrix: bool,
    ) -> Tensor | None:
        """Advance one real tensor by the equations; return what the rule observes (the friction)."""
        raise NotImplementedError

    def __init__(self, params, defaults: dict[str, Any]) -> None:
        self._plan: StepPlan | None = None
        self._graph_memory: list[Tensor] = []  # what captured CUDA graphs use, while this lives
        self._check_group(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; its settings are checked first, and nothing added if one is wrong."""
        params = param_group.get("params") if isinstance(param_group, dict) else None
        if not isinstance(params, (Tensor, set, type(None))):
            param_group["params"] = params = list(params)
            checks.check_parameters(params, len(self.param_groups))
        elif isinstance(params, Tensor):
            checks.check_parameters([params], len(self.param_groups))
        if isinstance(param_group, dict):  # torch says what else it got
            group = {**self.defaults, **param_group}
            self._check_group(group)
            checks.check_capturable(group, [params] if isinstance(params, Tensor) else params or [])
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient.

        Args:
            closure: evaluates the model anew and returns the loss.

        Returns the closure's loss, or None. Raises before anything is changed where a gradient or
        state cannot be used, or where a group asks for backend="native" and it cannot serve.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if _is_capturing():
            checks.check_captured(self.param_groups)
        plan = self._plan
        if plan is None or not plan.fits(self.param_groups):
            plan = self._plan = self._make_plan()
        elif plan.reference:
            self._prepare(plan.reference)
        problem = self._native_step(plan)
        if problem is not None:
            plan = self._plan = self._make_plan()
            problem = self._native_step(plan)
        if problem is not None:
            raise RuntimeError(self._explain(*problem))
        if plan.reference:
            self._reference_step(plan.reference)
        return loss

    def _native_step(self, plan: StepPlan) -> tuple[int, str] | None:
        if plan.native is None:
            return None
        groups = []
        for group in self.param_groups:
            settings, on_device = self._settings(group), group["capturable"]
            values = [settings[name] for name in plan.settings]
            groups.append([v if on_device and _is_cuda(v) else float(v) for v in values])
        problem = plan.native.step(self.state, self.param_groups, groups, torch.get_num_threads())
        if problem is None:
            increment_version(plan.native.updated)
        return problem

    def _reference_step(self, entries: list[Entry]) -> None:
        self._reference_observed = [[] for _ in self.param_groups]
        for group_index, index, _ in entries:
            group = self.param_groups[group_index]
            param = group["params"][index]
            if param.grad is None:
                continue
            state = self.state[param]
            if self.counts_steps:
                state["step"] += 1
            plain = param.resolve_conj()  # a copy where the parameter is a conjugated view
            tensors = [plain, param.grad, *(state[key] for key in self.state_lists)]
            if param.is_complex():
                tensors = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
            real, grad, *lists = tensors
            observed = self._reference_update(
                real,
                grad,
                dict(zip(self.state_lists, lists, strict=True)),
                group,
                step=state["step"].item() if self.counts_steps else 0,
                is_matrix=param.dim() > 1,
            )
            if plain is not param:
                param.copy_(plain)
            self._reference_observed[group_index].append(observed)

    def _explain(self, entry: int, what: str) -> str:
        for group_index, group in enumerate(self.param_groups):
            if 0 <= entry < len(group["params"]):
                return (
                    f"{checks.parameter_name(group_index, group, entry)} cannot be updated: {what}"
                )
            entry -= len(group["params"])
        return f"step() cannot run: {what}"

    def _make_plan(self) -> StepPlan:
        """Look at every parameter once: who serves it, and whether it can be served at all."""
        entries: list[Entry] = []
        for group_index, group in enumerate(self.param_groups):
            checks.check_choice("backend", group["backend"], backends.BACKENDS)
            for index, param in enumerate(group["params"]):
                reason = "backend='reference' was asked for"
                if group["backend"] != "reference":
                    reason = backends.why_not_native(param)
                entries.append(Entry(group_index, index, reason))
        self._prepare(entries)
        if all(entry.reason for entry in entries):
            plan, settings = None, ()
        else:
            plan_type = getattr(backends.native, self.rule)
            native_entries = []
            for group_index, index, reason in entries:
                native = reason is None
                param = self.param_groups[group_index]["params"][index]
                state = self.state[param] if native and param in self.state else None
                native_entries.append((param, state or None, group_index, native))
            plan = plan_type(
                backends.tensor_reader(), native_entries, backends.device_bytes, self._graph_memory
            )
            settings = plan_type.settings
        return StepPlan(
            native=plan,
            settings=settings,
            reference=[entry for entry in entries if entry.reason],
            choices=[group["backend"] for group in self.param_groups],
            params=[param for group in self.param_groups for param in group["params"]],
        )

    def _prepare(self, entries: list[Entry]) -> None:
        """Check every gradient and state first; then start the states that are missing."""
        stateless = []
        capturing = _is_capturing()
        for group_index, index, reason in entries:
            group = self.param_groups[group_index]
            param = group["params"][index]
            if param.grad is None:
                continue
            name = checks.parameter_name(group_index, group, index)
            if reason is not None and group["backend"] == "native":
                raise RuntimeError(
                    f"backend='native' cannot serve {name}: {reason}; use backend='auto'"
                )
            if capturing and reason is not None:
                raise RuntimeError(
                    f"the reference serves {name}, because {reason}; it cannot be captured in a CUDA "
                    "graph"
                )
            checks.check_gradient(name, param, param.grad)
            if state := self.state.get(param):
                checks.check_state(name, param, state, self.state_lists, self.counts_steps)
            elif capturing:
                raise RuntimeError(
                    f"{name} has no state yet, and one made while a CUDA graph is captured would be "
                    "zeroed by every replay; run a step before capturing"
                )
            else:
                stateless.append((param, group))
        for param, group in stateless:
            self._fill_state(param, self.state[param], group)

    def _fill_state(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Start at zero what the state lacks."""
        if self.counts_steps and "step" not in state:
            device = param.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
        for key, wide in self.state_lists.items():
            if key not in state:
                state[key] = torch.zeros_like(
                    param, dtype=self._state_dtype(param, wide), memory_format=torch.preserve_format
                )

    @staticmethod
    def _state_dtype(param: Tensor, wide: bool) -> torch.dtype:
        return torch.promote_types(param.dtype, torch.float32) if wide else param.dtype

    # Saving and loading.

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, also one of torch's optimizer with the same moments.

        What a loaded group does not say stays as it is here, and so do `backend` and `capturable`;
        states it does not have start at zero.
        """
        self._groups_before = [dict(group) for group in self.param_groups]
        # Registered last, so that it sees what the user's own hooks made of the state_dict.
        handle = self.register_load_state_dict_pre_hook(self._keep_state_dict)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            self.__dict__.pop("_loading", None)
            del self._groups_before

    def _keep_state_dict(self, _: Optimizer, state_dict: dict[str, Any]) -> None:
        self._check_loaded(state_dict)
        self._loading = state_dict

    def _check_loaded(self, state_dict: dict[str, Any]) -> None:
        """Raise where the state_dict is not one this optimizer can go on from."""
        wanted = next(iter(self.state_lists))
        for number, state in state_dict["state"].items():
            if state and wanted not in state:
                raise ValueError(
                    f"the state_dict is not one of {type(self).__name__}: parameter {number} has "
                    f"{', '.join(map(repr, state))} and no '{wanted}'"
                )

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._plan = None
        self.__dict__.setdefault("_graph_memory", [])
        before = self.__dict__.get("_groups_before", [])
        for index, group in enumerate(self.param_groups):
            known = before[index] if index < len(before) else {}
            for key, value in chain(known.items(), self.defaults.items()):
                group.setdefault(key, value)
            # How a step is computed is this optimizer's affair, not the checkpoint's.
            group.update({key: known[key] for key in ("backend", "capturable") if key in known})
        if "_loading" in self.__dict__:
            self._keep_precision(self._loading)
        for group in self.param_groups:
            for param in group["params"]:
                if param_state := self.state.get(param):
                    self._place_step(param, param_state, group)
                    self._fill_state(param, param_state, group)

    def _place_step(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Bring a loaded step to the type and device it is counted in."""
        if self.counts_steps:
            step = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32)
            device = param.device if group["capturable"] else "cpu"
            state["step"] = step.to(device).reshape(())

    def _keep_precision(self, state_dict: dict[str, Any]) -> None:
        """Undo torch's cast of a loaded state to the parameter's type where more is kept."""
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, param in zip(numbers, params, strict=True):
            saved = state_dict["state"].get(number, {})
            for key, wide in self.state_lists.items():
                if wide and isinstance(saved.get(key), Tensor):
                    dtype = self._state_dtype(param, wide)
                    self.state[param][key] = saved[key].to(device=param.device, dtype=dtype)
