"""Importance of layers by the norms of their gradients, and ranks given out in proportion to it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from fractions import Fraction

from torch import Tensor

from friction_kernels.lists.products import gram


def layer_importance(
    gradients: Iterable[Tensor | None],
    by: Sequence[Hashable],
    temperature: float | Tensor = 1.0,
) -> tuple[list[Hashable], Tensor]:
    """The softmax of the layers' gradient norms.

    Equals, in one launch per device:

        labels = list(dict.fromkeys(by))
        norms = [
            torch.cat([g.flatten() for g, b in zip(gradients, by) if b == label]).norm()
            for label in labels
        ]
        importance = torch.softmax(torch.stack(norms).double() / temperature, dim=0)

    The host does not wait for a GPU.

    Source: arXiv 2501.14859 (dynamic LoRA), read second-hand: importance by softmax of layer gradients. The
    2-norm and the temperature are this library's choice.

    Args:
        gradients: tensors of any shape, such as [p.grad for p in model.parameters()]; None counts as zeros.
        by: a label for each of them, such as the name of its layer.
        temperature: what norms are divided by, a number or a scalar tensor (). The lower, the more the layer
            of the largest norm gets (default 1.0).

    Returns:
        (labels, importance): the S labels in the order in which they first occur, and a float64 tensor (S,)
        with sum 1 on the first tensor's device.

    Raises:
        TypeError: an item is not a tensor of floating or complex dtype, is sparse or float8.
        ValueError: there is no gradient, or not a label for each; `temperature` is a number not above 0.
    """
    given = list(gradients)
    if not given:
        raise ValueError("there is no gradient; give one at least")
    if isinstance(by, str) or len(by) != len(given):
        raise ValueError(f"by must be a label for each of {len(given)} gradients, got {by!r}")
    labels = list(dict.fromkeys(by))
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be a finite number above 0, got {temperature}")
    norms = gram(given, by=by, missing="zero")[:, 0, 0].sqrt()
    return labels, (norms / temperature).softmax(dim=0)


def allocate_ranks(
    importance: Tensor | Iterable[float], budget: int, minimum: int = 1
) -> list[int]:
    """Whole numbers with the sum `budget`, `minimum` for each layer and the rest in proportion to importance.

    The rest is rounded by largest remainders: down, and then up by one where the most was cut off, in order
    where that is equal. It is computed in exact fractions, so the sum is always the budget.

        labels, importance = lists.layer_importance(gradients, by)
        ranks = lists.allocate_ranks(importance, budget=8 * len(labels))

    Source: arXiv 2501.14859 (dynamic LoRA), read second-hand, gives layers ranks by their importance. The
    rounding and the minimum are this library's choice.

    Args:
        importance: a tensor (S,) or S numbers, none negative; only their proportions count.
        budget: the sum of all ranks.
        minimum: the least rank of a layer (default 1).

    Returns:
        the ranks of the S layers. Waits for a GPU if importance is there.

    Raises:
        ValueError: the budget is below S * minimum; minimum is negative; an importance is negative or not
            finite, or all are 0.
    """
    numbers = importance.tolist() if isinstance(importance, Tensor) else list(importance)
    if minimum < 0:
        raise ValueError(f"minimum must be at least 0, got {minimum}")
    if budget < minimum * len(numbers):
        raise ValueError(
            f"budget {budget} is less than {minimum} for each of {len(numbers)} layers; give more"
        )
    if not all(0 <= number < math.inf for number in numbers) or not any(numbers):
        raise ValueError(
            f"importance must be finite numbers of at least 0, one of them positive, got {numbers}"
        )
    exact = [Fraction(number) for number in numbers]
    rest, total = budget - minimum * len(exact), sum(exact)
    shares = [rest * number / total for number in exact]
    ranks = [minimum + math.floor(share) for share in shares]
    by_remainder = sorted(range(len(exact)), key=lambda i: math.floor(shares[i]) - shares[i])
    for index in by_remainder[: budget - sum(ranks)]:
        ranks[index] += 1
    return ranks
