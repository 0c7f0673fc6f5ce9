"""Gradient release: update each parameter as soon as its gradient arrives, then free the gradient."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from friction_kernels.flattened import is_flattened
from friction_kernels.optim import checks
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.planning import StepPlan


def release_gradients(
    model_or_params: nn.Module | Iterable[Tensor], opt: PlannedOptimizer
) -> GradientRelease:
    """Let backward() step each parameter as soon as its gradient is complete, and free the gradient.

    At most one gradient of these parameters exists at a time: gradients use the memory of the largest
    parameter, not of the model. The resulting parameters equal those of opt.step() after backward(), to
    the bit:

        release_gradients(model, opt)
        for batch in data:
            loss(model, batch).backward()  # makes the step
            opt.step()                     # finds nothing left to do
            scheduler.step()

    Each backward() is a step: gradients cannot be accumulated over several; make the batch smaller instead.
    If one backward() completes a gradient several times (reentrant checkpoints that share a parameter),
    each time is a step.

    opt.step() still updates parameters that are not released, and otherwise changes nothing. Training
    loops, Lightning, the Trainer of transformers and schedulers, which warn if it is never called, can
    keep calling it. zero_grad() finds nothing. Settings are read at each parameter's step, so schedulers
    work; step hooks run only at opt.step().

    Args:
        model_or_params: a module, or parameters of any shape. Parameters that the optimizer does not have
            are ignored (another optimizer may have them), as are those that are frozen now; if they are
            unfrozen later, opt.step() updates them.
        opt: one of this package's optimizers.

    Returns:
        a handle: remove() ends the release, and opt.step() makes the steps again. The release also ends
        with the optimizer. Copies of the optimizer or of the model (deepcopy, pickle) do not release.

    Raises:
        TypeError: another kind of optimizer.
        ValueError: none of the parameters is the optimizer's and trainable; one has no shape yet, or is
            given to the optimizer twice; a group has max_grad_norm or skip_nonfinite, which need all
            gradients at once; the model contains DistributedDataParallel or parameters of
            FullyShardedDataParallel, which reduce gradients after they arrive.
        RuntimeError: the optimizer releases already. From backward() or step(): one of those options was
            set since. From step(): a torch.amp.GradScaler is used, so the steps saw scaled gradients
            (train in bfloat16 without it, or do not release); or a freed gradient is there again.
            DistributedDataParallel restores it, and is not detected earlier if its inner module or its
            parameters were given. Each process has then stepped with its own gradients, so start over.
    """
    if not isinstance(opt, PlannedOptimizer):
        raise TypeError(
            f"{type(opt).__name__} is none of friction_kernels' optimizers, which gradients can be "
            "released to; use one of these"
        )
    if opt._released is not None:
        raise RuntimeError(
            "the optimizer releases gradients already; remove() that handle first, or give all "
            "parameters at once"
        )
    if isinstance(model_or_params, nn.Module) and any(
        isinstance(module, nn.parallel.DistributedDataParallel)
        for module in model_or_params.modules()
    ):
        raise ValueError(_REDUCED_LATER)
    problem = _refusal_reason(opt, opt.param_groups)
    if problem:
        raise ValueError(problem)
    if isinstance(model_or_params, nn.Module):
        model_or_params = model_or_params.parameters()
    places = _places_in(opt)
    if len(places) != sum(len(group["params"]) for group in opt.param_groups):
        raise ValueError(
            "a parameter is given to the optimizer twice, and a released gradient is there for one step; "
            "give it once"
        )
    params = [param for param in model_or_params if param in places and param.requires_grad]
    if not params:
        raise ValueError(
            "the optimizer has none of these parameters, or they are all frozen; give it the "
            "parameters of this model"
        )
    if any(map(is_flattened, params)):
        raise ValueError(
            "FullyShardedDataParallel reduces gradients after they arrive; use "
            "torch.distributed.fsdp.fully_shard, or do not release"
        )
    if any(map(is_lazy, params)):
        raise ValueError("a lazy parameter has no shape yet; run the model once before the release")
    return GradientRelease(opt, params)


_REDUCED_LATER = (
    "DistributedDataParallel reduces gradients after they arrive; use "
    "torch.distributed.fsdp.fully_shard, or do not release"
)


class Place(NamedTuple):
    """The position of a parameter in an optimizer."""

    group: int
    index: int  # type: ignore[assignment]  # shadows tuple.index
    ordinal: int  # its index among all parameters


def _places_in(opt: PlannedOptimizer) -> dict[Tensor, Place]:
    places: dict[Tensor, Place] = {}
    for group_index, group in enumerate(opt.param_groups):
        for index, param in enumerate(group["params"]):
            places[param] = Place(group_index, index, len(places))
    return places


def _refusal_reason(opt: PlannedOptimizer, groups: Sequence[Mapping[str, Any]]) -> str | None:
    for option in ("max_grad_norm", "skip_nonfinite"):
        if any(group[option] not in (None, False) for group in groups):
            return (
                f"{option} needs all gradients at once, and released gradients come one by one; "
                "switch it off in every group, or do without release_gradients"
            )
    if any(opt.__dict__.get(name) is not None for name in ("grad_scale", "found_inf")):
        return (
            "released gradients are stepped by before a GradScaler can unscale them; train in bfloat16 "
            "without one, or remove() the release"
        )
    return None


class GradientRelease:
    """The handle returned by `release_gradients`."""

    def __init__(self, opt: PlannedOptimizer, params: list[Tensor]) -> None:
        self._opt = opt
        self._places = _places_in(opt)
        self._plans: dict[Tensor, StepPlan] = {}
        # The garbage collector does not see the hooks of tensors. A hook with a strong reference to its
        # parameter would keep the model and the optimizer alive forever.
        myself = weakref.ref(self)

        def on_gradient(param: Tensor) -> None:
            release = myself()
            if release is not None:
                release._update(param)

        self._handles: list[Any] = [opt.register_step_pre_hook(self._before_step)]
        self._handles += [param.register_post_accumulate_grad_hook(on_gradient) for param in params]
        opt._released = self

    def remove(self) -> None:
        """End the release: backward() leaves gradients again, and opt.step() makes the steps."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._plans.clear()
        if self._opt._released is self:
            self._opt._released = None

    def _before_step(self, opt: PlannedOptimizer, args: object, kwargs: object) -> None:
        problem = _refusal_reason(opt, opt.param_groups)
        if problem:
            raise RuntimeError(problem)
        for param in self._plans:
            place = self._place_of(param)
            if param.grad is not None and place is not None:
                name = checks.name_at(opt.param_groups, place.ordinal)
                raise RuntimeError(
                    f"{name} has its gradient again after it was stepped and freed in backward(). "
                    f"{_REDUCED_LATER}"
                )

    @torch.no_grad()  # backward(create_graph=True) leaves it enabled
    def _update(self, param: Tensor) -> None:
        place = self._place_of(param)
        if place is None or param.grad is None:
            return  # removed from the optimizer, or another hook took the gradient
        group = self._opt.param_groups[place.group]
        checks.check_group(place.group, group, self._opt._options)
        problem = _refusal_reason(self._opt, [group])
        if problem:
            raise RuntimeError(problem)
        alone = {**group, "params": [param]}
        plan = self._plans.get(param)
        self._plans[param] = self._opt._update(plan, [alone], place.ordinal)
        param.grad = None

    def _place_of(self, param: Tensor) -> Place | None:
        """Look up the parameter again, because groups can be added, removed and replaced."""
        groups, place = self._opt.param_groups, self._places.get(param)
        if place is not None and place.group < len(groups):
            params = groups[place.group]["params"]
            if place.index < len(params) and params[place.index] is param:
                return place
        self._places = _places_in(self._opt)
        return self._places.get(param)
