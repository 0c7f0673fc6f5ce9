"""Where a graph's loss cannot run: in torch.compile, torch.func, recomputation and double backward."""

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
    """torch.compiler.disable: how long the solver runs depends on the values.

    The compiler, whose import takes seconds, is not imported before the program does.
    """
    disabled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:  # nothing can be compiling
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call


def refuse_transforms(name: str, *inputs: object) -> None:
    """Raise inside of torch.func's transforms, and for inputs with a tangent, as linearize makes them."""
    if torch._C._functorch.peek_interpreter_stack() is not None or any(map(_has_tangent, inputs)):
        raise RuntimeError(
            f"torch.func transforms (grad, vjp, jacrev, vmap and the others) and forward-mode derivatives "
            f"cannot go through {name}: what it computes depends on the values; call it outside of them, "
            "once for each graph, and differentiate with backward() or torch.autograd.grad()"
        )


def _has_tangent(value: object) -> bool:
    return isinstance(value, torch.Tensor) and forward_ad.unpack_dual(value).tangent is not None


def refuse_recomputation(why: str) -> None:
    """Raise where backward() runs this, as it does where torch.utils.checkpoint recomputes.

    It restores the default generators, and nothing else that a call changes. A hook's first call looks alike.
    """
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            f"GLoss was called by backward(), as torch.utils.checkpoint does to recompute a loss, and {why}: "
            "the gradient may be that of another loss; call GLoss outside of checkpointed functions and "
            "of hooks"
        )


def refuse_second_derivative(name: str) -> None:
    """Raise inside of a backward() that is differentiated itself.

    torch's once_differentiable lets a gradient of a constant pass, with a wrong second derivative.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} cannot be differentiated twice; call backward() or torch.autograd.grad() without "
            "create_graph=True"
        )
