"""A step as one operator, so that torch.compile keeps a training function in one graph.

The operator is told the optimizer by a number. What the step does is looked up when it runs: states begin at
their first step, and schedulers change settings, without a new compilation.
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
    """What is stepped by the operator: an optimizer."""

    _number: int
    _traced: list[list[Tensor]]  # the parameters of its groups, as a compiled step knows them
    _options: frozenset[str]
    param_groups: list[dict[str, Any]]

    def _step(self) -> None: ...


_optimizers: WeakValueDictionary[int, Traced] = WeakValueDictionary()
_numbers = itertools.count()
_NONE = torch.zeros((), device="cpu")  # compilers drop an operator that changes no tensor


def register(opt: Traced) -> None:
    """Give an optimizer its number, by which the operator finds it for as long as it lives.

    Once: a compiled step has the number in it.
    """
    if "_number" not in opt.__dict__:
        opt._number = next(_numbers)
        _optimizers[opt._number] = opt


@torch.library.custom_op("friction_kernels::step", mutates_args=("params",))
def _step(params: list[Tensor], grads: list[Tensor], places: list[int], optimizer: int) -> None:
    """Update the parameters at these places among the optimizer's, by these gradients.

    Both are local parts, where parameters are DTensors, which an operator must otherwise be taught to spread.
    """
    params = params[: len(places)]  # without what stands for none
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
    # A compiler may hand the operator copies of what it was called with; the optimizer knows its own.
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
    """The groups' own lists of parameters. A compiled step is traced by them, and sees them change."""
    return [group["params"] for group in groups]


def _all(lists: list[list[Tensor]]) -> list[Tensor]:
    return [param for params in lists for param in params]


def step(opt: Traced) -> None:
    """What torch.compile traces in the place of a step."""
    everything = _all(
        opt._traced
    )  # a look at param_groups would compile anew for each learning rate
    stepped = [
        (place, param, param.grad)
        for place, param in enumerate(everything)
        if param.grad is not None
    ]
    if not stepped:
        # Other processes may have gradients, and wait for this one's sums.
        _step([_NONE], [], [], opt._number)
        return
    for place, param, grad in stepped:
        problem = mismatch(param, grad)
        if problem is not None:  # local parts would not show it
            shape = tuple(param.shape)
            raise RuntimeError(f"parameter {place} (shape {shape}) cannot be updated: {problem}")
    places = [place for place, _, _ in stepped]
    params = [_part(param) for _, param, _ in stepped]
    grads = [_part(grad) for _, _, grad in stepped]
    _step(params, grads, places, opt._number)


def _part(tensor: Tensor) -> Tensor:
    return tensor.to_local() if is_dtensor(tensor) else tensor
