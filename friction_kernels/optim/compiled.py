"""A step as one operator, so that torch.compile keeps a training function in one graph.

The operator is told the optimizer by a number. What the step does is looked up when it runs: states begin at
their first step, and schedulers change settings, without a new compilation.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_optimizers: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count()


def register(opt) -> int:
    """The number by which the operator finds an optimizer, for as long as it lives."""
    number = next(_numbers)
    _optimizers[number] = opt
    return number


@torch.library.custom_op("friction_kernels::step", mutates_args=("params",))
def _step(params: list[Tensor], grads: list[Tensor], places: list[int], optimizer: int) -> None:
    """Update the parameters at these places among the optimizer's, by these gradients."""
    opt = _optimizers[optimizer]
    everything = parameters_of(opt)
    own = [everything[place] for place in places]
    # A compiler may hand the operator copies of what it was called with; the optimizer knows its own.
    copies = [
        (param, given)
        for param, given in zip(own, params, strict=True)
        if param.data_ptr() != given.data_ptr()
    ]
    for param, given in copies:
        param.copy_(given)
    before = [param.grad for param in everything]
    for param in everything:
        param.grad = None
    try:
        for param, grad in zip(own, grads, strict=True):
            param.grad = grad
        opt._step()
    finally:
        for param, grad in zip(everything, before, strict=True):
            param.grad = grad
    for param, given in copies:
        given.copy_(param)


@_step.register_fake
def _(params: list[Tensor], grads: list[Tensor], places: list[int], optimizer: int) -> None:
    return None


def parameters_of(opt) -> list[Tensor]:
    return [param for group in opt.param_groups for param in group["params"]]


def step(opt) -> None:
    """What torch.compile traces in the place of a step."""
    everything = opt._traced  # a look at param_groups would compile anew for each learning rate
    places = [place for place, param in enumerate(everything) if param.grad is not None]
    if places:
        params = [everything[place] for place in places]
        _step(params, [param.grad for param in params], places, opt._number)
