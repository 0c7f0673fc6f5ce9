"""Steps of meta-learning and averages of models, as combinations of lists of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor

from friction_kernels.lists.combination import combine


@overload
def adapt(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor | None] | Iterable[Tensor | None],
    lr: float | Tensor,
) -> dict[str, Tensor]: ...


@overload
def adapt(
    parameters: Iterable[Tensor], gradients: Iterable[Tensor | None], lr: float | Tensor
) -> list[Tensor]: ...


def adapt(
    parameters: Mapping[str, Tensor] | Iterable[Tensor],
    gradients: Mapping[str, Tensor | None] | Iterable[Tensor | None],
    lr: float | Tensor,
) -> Any:
    """An inner step of meta-learning: new tensors, through which autograd goes.

    Equals, in one launch per device:

        [p - lr * g for p, g in zip(parameters, gradients)]

        fast = dict(model.named_parameters())
        for _ in range(inner_steps):
            loss = loss_fn(torch.func.functional_call(model, fast, x), y)
            fast = lists.adapt(fast, torch.autograd.grad(loss, fast.values()), lr=0.1)
        loss_fn(torch.func.functional_call(model, fast, new_x), new_y).backward()

    This is first-order MAML, since the gradients are constants here; create_graph=True in torch.autograd.grad
    makes it MAML, of second order. Adapting the last layer's parameters alone is ANIL.

    Source: arXiv 1703.03400 (MAML and its first-order form); arXiv 2502.09086, whose inner step was read
    second-hand, applies it to text.

    Args:
        parameters: tensors of any shape, or a dict of them, such as dict(model.named_parameters()).
        gradients: a tensor for each parameter, or None for zeros; in the parameters' order, or a dict by
            their names.
        lr: a number, or a scalar tensor (), in which the step is differentiable, too.

    Returns:
        the new tensors: a list, or a dict if parameters are one, for torch.func.functional_call.

    Raises:
        TypeError: an item is not a tensor of floating or complex dtype, is sparse or float8.
        ValueError: parameters and gradients do not correspond.
    """
    names = list(parameters) if isinstance(parameters, Mapping) else None
    if isinstance(gradients, Mapping):
        if not isinstance(parameters, Mapping) or gradients.keys() != parameters.keys():
            raise ValueError(
                f"gradients are of {sorted(gradients)}; give parameters as a dict of the same names"
            )
        gradients = [gradients[name] for name in parameters]
    if isinstance(parameters, Mapping):
        parameters = parameters.values()
    weights = (
        torch.stack([torch.ones_like(lr), -lr]) if isinstance(lr, Tensor) else [1.0, -float(lr)]
    )
    adapted = combine([parameters, gradients], weights, missing="zero")
    return adapted if names is None else dict(zip(names, adapted, strict=True))


def interpolate(
    a: Iterable[Tensor],
    b: Iterable[Tensor],
    t: float | Tensor,
    out: Iterable[Tensor] | None = None,
) -> list[Tensor]:
    """A point on the line between two lists of tensors.

    Equals, in one launch per device:

        [(1 - t) * x + t * y for x, y in zip(a, b)]

    With it, under torch.no_grad():

        # A moving average of the weights, Reptile's outer step, a soup of two models:
        lists.interpolate(average, model.parameters(), 0.001, out=average)
        lists.interpolate(parameters, adapted, 0.1, out=parameters)
        lists.interpolate(one.parameters(), two.parameters(), 0.5)

    Source: arXiv 1803.02999 (Reptile); arXiv 2203.05482 (model soups).

    Args:
        a: tensors of any shape, the point at t = 0.
        b: tensors that correspond to a's, the point at t = 1.
        t: a number, or a scalar tensor (); also outside [0, 1].
        out: where the result goes: tensors of their own memory, or a or b itself, and then not with autograd;
            None makes new tensors (default None).

    Returns:
        the result, as a list of tensors.

    Raises:
        TypeError: an item is not a tensor of floating or complex dtype, is sparse or float8.
        ValueError: the lists do not correspond, or `out` shares memory with a tensor that is not the same.
        RuntimeError: `out` is given, and autograd would have to record its change.
    """
    weights = torch.stack([1 - t, t]) if isinstance(t, Tensor) else [1 - t, t]
    return combine([a, b], weights, out=out)  # type: ignore[return-value]  # without None, none comes back
