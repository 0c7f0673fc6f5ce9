"""Modes of torch that a graph's loss does not support: compile, func, recomputation, double backward."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch.autograd import forward_ad

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Apply torch.compiler.disable, because the number of iterations depends on the values.

    Does not import the compiler, which takes seconds, unless the program already has.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:  # not loaded, so nothing is being compiled
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call


def refuse_transforms(name: str, *inputs: object) -> None:
    """Raise inside torch.func's transforms, and for inputs with a tangent, such as linearize creates."""
    if torch._C._functorch.peek_interpreter_stack() is not None or any(map(_has_tangent, inputs)):
        raise RuntimeError(
            f"torch.func transforms (grad, vjp, jacrev, vmap and the others) and forward-mode derivatives "
            f"cannot go through {name}: what it computes depends on the values; call it outside of them, "
            "once for each graph, and differentiate with backward() or torch.autograd.grad()"
        )


def _has_tangent(value: object) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def refuse_recomputation(name: str, why: str) -> None:
    """Raise inside backward(), where torch.utils.checkpoint recomputes.

    Recomputation restores only the default generators, no other state. A call from a hook looks the same.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"{name} was called by backward(), as torch.utils.checkpoint does to recompute a loss, and "
            f"{why}: the gradient may be that of another loss; call {name} outside of checkpointed "
            "functions and of hooks"
        )
