"""Who is compared in operations on lists of tensors: products, combinations, and PCGrad made of both."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from friction_kernels import lists
from friction_kernels.tasks.weightings import pcgrad

Lists = list[list[Tensor]]
PASS_OF_TWO, GRAM_OF_TWO = "in place of 2 lists", "gram of 2"
PER_TENSOR, DOTS, CONCATENATED = "products per tensor", "torch.dot per tensor", "concatenated"
COMBINE, FOREACH = "combine of 2, in place", "torch._foreach_lerp_"
PCGRAD, PORT = "PCGrad of {}", "PCGrad of {}, flattened"


class InPlace:
    """What memory can do: numbers of as many bytes as two lists, multiplied where they lie."""

    def __init__(self, given: Lists) -> None:
        self.numbers = torch.cat([tensor.flatten() for one in given[:2] for tensor in one])

    def __call__(self) -> None:
        self.numbers.mul_(1.0)


def per_tensor(product: Callable[[Tensor, Tensor], Tensor], given: Lists) -> Tensor:
    pairs = [(a, b) for i, a in enumerate(given[:2]) for b in given[i:2]]
    return torch.stack([sum(map(product, a, b)) for a, b in pairs])


def concatenated(given: Lists) -> Tensor:
    """One row of a matrix for each list, as aggregators of Jacobians have it."""
    matrix = torch.stack([torch.cat([tensor.flatten() for tensor in one]) for one in given[:2]])
    return matrix @ matrix.T


def ours(given: Lists, tasks: int) -> None:
    weights = pcgrad()(lists.gram(*given[:tasks]))
    lists.combine(given[:tasks], weights, out=given[-1])


def flattened(given: Lists, tasks: int) -> None:
    """PCGrad as public ports have it: flattened gradients, and the host asks for the sign of each product."""
    flat = [torch.cat([tensor.flatten() for tensor in one]) for one in given[:tasks]]
    projected = [vector.clone() for vector in flat]
    for vector in projected:
        for other in random.sample(flat, len(flat)):
            product = torch.dot(vector, other)
            if product < 0:
                vector -= product * other / other.norm().square()
    total, begin = torch.stack(projected).sum(0), 0
    for tensor in given[-1]:
        tensor.copy_(total[begin : begin + tensor.numel()].view_as(tensor))
        begin += tensor.numel()


@dataclass
class Entry:
    """Something to do in a round."""

    name: str
    step: Callable[[], object]
    ours: bool = False
    baseline: str | None = None
    slow: bool = False
    new_gradients: bool = False
    repeats: int = 1

    def prepare(self) -> None:
        pass


def entries_of(given: Lists) -> list[Entry]:
    found = [
        Entry(PASS_OF_TWO, InPlace(given)),
        Entry(GRAM_OF_TWO, lambda: lists.gram(*given[:2]), True, PER_TENSOR),
        Entry(
            "gram of 2, by tensor", lambda: lists.gram(*given[:2], by="tensor"), True, PER_TENSOR
        ),
        Entry(PER_TENSOR, lambda: per_tensor(lambda a, b: (a * b).sum(), given)),
        Entry(DOTS, lambda: per_tensor(lambda a, b: torch.dot(a.flatten(), b.flatten()), given)),
        Entry(CONCATENATED, lambda: concatenated(given)),
        Entry("gram of 4", lambda: lists.gram(*given[:4]), True),
        Entry(COMBINE, lambda: lists.combine(given[:2], [0.5, 0.5], out=given[0]), True, FOREACH),
        Entry(FOREACH, lambda: torch._foreach_lerp_(given[0], given[1], 0.5)),
    ]
    for tasks in (2, 4):
        port = PORT.format(tasks)
        found += [
            Entry(PCGRAD.format(tasks), lambda tasks=tasks: ours(given, tasks), True, port),
            Entry(port, lambda tasks=tasks: flattened(given, tasks), slow=True),
        ]
    return found
