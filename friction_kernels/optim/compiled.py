"""A step as a single operator, so that torch.compile keeps a training function in one graph.

The operator receives the optimizer as a number and looks up everything else when it runs. Creating states at
the first step and changing settings with a scheduler therefore need no recompilation.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from friction_kernels.optim import checks
from friction_kernels.shards import is_dtensor, local, mismatch, wrap


class Traced(Protocol):
    """An optimizer, as the operator sees it."""

    _number: int
    _traced: list[list[Tensor]]  # the parameters of its groups, as known to a compiled step
    _options: frozenset[str]
    param_groups: list[dict[str, Any]]

    def _step(self) -> None: ...


_optimizers: WeakValueDictionary[int, Traced] = WeakValueDictionary()
_numbers = itertools.count()
_NONE = torch.zeros((), device="cpu")  # an operator that mutates no tensor would be eliminated


def register(opt: Traced) -> None:
    """Assign an optimizer the number by which the operator finds it as long as it lives.

    The number never changes, because compiled steps contain it.
    """
    if "_number" not in opt.__dict__:
        opt._number = next(_numbers)
        _optimizers[opt._number] = opt


@torch.library.custom_op("friction_kernels::step", mutates_args=("params",))
def _step(params: list[Tensor], grads: list[Tensor], places: list[int], optimizer: int) -> None:
    """Update the optimizer's parameters with these indices, using these gradients.

    Both are local parts if parameters are DTensors, since the operator has no DTensor sharding rule.
    """
    params = params[: len(places)]  # drops the placeholder _NONE
    opt = _optimizers[optimizer]
    checks.check_groups(opt.param_groups, opt._options)
    everything, traced = _all(parameters_of(opt.param_groups)), _all(opt._traced)
    if len(everything) != len(traced) or any(map(operator.is_not, everything, traced)):
        opt._traced = parameters_of(opt.param_groups)
        raise RuntimeError(
            "param_groups were changed after step() was compiled, and nothing was updated; call it again, "
            "which compiles it anew. add_param_group() and changes within group['params'] are seen in time"
        )
    own = [everything[place] for place in places]
    # A compiler may pass copies of the arguments; the optimizer keeps the original parameters.
    copies = [
        (local(param), given)
        for param, given in zip(own, params, strict=True)
        if local(param).data_ptr() != given.data_ptr()
    ]
    for part, given in copies:
        part.copy_(given)
    before = [param.grad for param in everything]
    for param in everything:
        param.grad = None
    try:
        for param, grad in zip(own, grads, strict=True):
            param.grad = wrap(grad, param)
        opt._step()
    finally:
        for param, its_own in zip(everything, before, strict=True):
            param.grad = its_own
    for part, given in copies:
        given.copy_(part)


@_step.register_fake
def _(params: list[Tensor], grads: list[Tensor], places: list[int], optimizer: int) -> None:
    return None


def parameters_of(groups: Iterable[Mapping[str, Any]]) -> list[list[Tensor]]:
    """The groups' own parameter lists. A compiled step is traced with these and guards on changes."""
    return [group["params"] for group in groups]


def _all(lists: list[list[Tensor]]) -> list[Tensor]:
    return [param for params in lists for param in params]


def step(opt: Traced) -> None:
    """The function that torch.compile traces in place of a step."""
    everything = _all(opt._traced)  # reading param_groups would recompile for every learning rate
    stepped = [
        (place, param, param.grad)
        for place, param in enumerate(everything)
        if param.grad is not None
    ]
    if not stepped:
        # Other processes may have gradients, and wait for this one's contribution to sums.
        _step([_NONE], [], [], opt._number)
        return
    for place, param, grad in stepped:
        problem = mismatch(param, grad)
        if problem is not None:  # cannot be detected from local parts
            shape = tuple(param.shape)
            raise RuntimeError(f"parameter {place} (shape {shape}) cannot be updated: {problem}")
    places = [place for place, _, _ in stepped]
    params = [_part(param) for _, param, _ in stepped]
    grads = [_part(grad) for _, _, grad in stepped]
    _step(params, grads, places, opt._number)


def _part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_dtensor(tensor) else tensor
