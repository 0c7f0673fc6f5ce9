"""Gradients of several tasks, taken one after another and combined."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from friction_kernels.lists import combine
from friction_kernels.lists.operands import MOST_LISTS, Operand
from friction_kernels.lists.products import segmented_products
from friction_kernels.tasks.checks import check_gradients, check_no_gradients, check_parameters
from friction_kernels.tasks.keeping import Keep, decoded, stored
from friction_kernels.tasks.weightings import Weighting, cosines

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class MultiTask:
    """Combine the gradients of several tasks by weights that depend on their inner products.

        tasks = MultiTask(trunk.parameters(), weightings.pcgrad())
        for x, targets in data:
            opt.zero_grad()
            for number, (head, target) in enumerate(zip(heads, targets)):
                with tasks.task(number):
                    loss(head(trunk(x)), target).backward()
            tasks.combine()
            opt.step()

    Equals, with a loss for each task that was entered, and zeros for gradients that are missing:

        gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
        weights = weighting(lists.gram(*gradients))
        for p, g in zip(parameters, lists.combine(gradients, weights)):
            p.grad = g

    Each task makes a backward of its own, or several that add up, and no graph is retained. Gradients are
    moved out of `.grad` after each task, not copied, and the combination is written into the memory of the
    last task's. That takes two launches, whatever the number of parameters, and the host does not wait for
    a GPU unless the weighting does. Parameters that are not given here, such as heads, gather the gradients
    of all tasks by autograd, as usual.

    If the Gram matrix is not finite, the weighting is given an identity matrix instead, and all weights are
    nan. So the combined gradients are nan, and a GradScaler or `skip_nonfinite=True` skips the step. With a
    GradScaler, scale each loss: the weights of `weightings` do not depend on the scale.

    DistributedDataParallel averages gradients in each task's backward. It needs
    `find_unused_parameters=True` where a task leaves parameters of the model out, and not
    `gradient_as_bucket_view=True`, which has one memory for the gradients of all tasks.

    Args:
        parameters: the tensors that tasks share, of any shape.
        weighting: a function of the Gram matrix (T, T), float64 and on the parameters' device, that returns
            the weights (T,): one of `friction_kernels.tasks.weightings`, one of torchjd's for a Gramian, or
            your own. T is the number of tasks entered in this step, in the order of their numbers.
        keep: how gradients are kept until combine(): as they are, "dtype"; in "bfloat16"; or in "8bit",
            blocks of 256 elements with a scale each, rounded to nearest (default "dtype"). With "8bit",
            combine() decodes the gradients of one parameter at a time, in two launches each.
        process_group: the processes over which parameters are sharded, if torch does not record it
            (default None).

    Attributes:
        gramian: the Gram matrix (T, T) of the last combine(), or None before.
        weights: the weights (T,) of the last combine(), or None before.

    Raises:
        TypeError: a parameter is not a tensor, or `weighting` no function.
        ValueError: there are no parameters; one is given twice; `keep` is none of the three; a parameter is
            complex, and `keep` is not "dtype".
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        weighting: Weighting,
        *,
        keep: Keep = "dtype",
        process_group: ProcessGroup | str | None = None,
    ) -> None:
        self._parameters = list(parameters)
        check_parameters(self._parameters, keep)
        if not callable(weighting):
            raise TypeError(
                f"weighting is {weighting!r}; give a function of the Gram matrix, such as weightings.pcgrad()"
            )
        self._weighting = weighting
        self._keep: Keep = keep
        self._process_group = process_group
        self._kept: dict[int, Operand] = {}
        self._open: int | None = None
        self.gramian: Tensor | None = None
        self.weights: Tensor | None = None

    @property
    def cosines(self) -> Tensor | None:
        """The cosines (T, T) between the gradients of the last combine(), or None before."""
        return None if self.gramian is None else cosines(self.gramian)

    @contextmanager
    def task(self, number: int) -> Iterator[None]:
        """A block in which backward() makes the gradients of one task.

        If the block raises, the task's gradients are dropped, and it can be entered again.

        Args:
            number: which task, 0 to 7. Tasks run in any order, each at most once before combine().

        Raises:
            ValueError: there is no such number.
            TypeError: a gradient is sparse.
            RuntimeError: a task is entered in another, or twice; a shared parameter has a gradient already;
                at the end of the block, none has one, or one is in the memory of another task's.
        """
        if isinstance(number, Tensor) or number not in range(MOST_LISTS):
            raise ValueError(f"tasks are numbered 0 to {MOST_LISTS - 1}, got {number!r}")
        if self._open is not None:
            raise RuntimeError(f"task {number} is entered within task {self._open}; end that first")
        if number in self._kept:
            raise RuntimeError(
                f"task {number} is entered twice; call combine() first, or clear() after a failed "
                "backward, or make both backwards in one block"
            )
        check_no_gradients(self._parameters, f"task {number}")
        self._open = number
        try:
            yield
            gradients = [parameter.grad for parameter in self._parameters]
        finally:
            self._open = None
            for parameter in self._parameters:
                parameter.grad = None
        check_gradients(number, self._parameters, gradients, self._kept)
        for index, gradient in enumerate(gradients):  # in place, so that each is freed at once
            if gradient is not None:
                gradients[index] = stored(gradient, self._keep)
        self._kept[number] = gradients

    @torch.no_grad()
    def combine(self) -> None:
        """Set `.grad` of the shared parameters to the weighted sum of the tasks' gradients.

        A parameter without a gradient in some tasks counts as zeros there; without one in any, its `.grad`
        stays None. Tasks that were not entered take no part.

        Raises:
            ValueError: the weighting did not return T real numbers.
            RuntimeError: no task was entered; one has not ended; a shared parameter has a gradient from
                outside of the tasks.
        """
        if self._open is not None:
            raise RuntimeError(f"combine() is called within task {self._open}; end that first")
        if not self._kept:
            raise RuntimeError("no task was entered since the last combine(); enter one by task()")
        check_no_gradients(self._parameters, "combine()")
        kept = [self._kept[number] for number in sorted(self._kept)]
        products = (
            segmented_products(gradients, [], 1, self._process_group, parameters)[0]
            for parameters, gradients in self._parts(kept)
        )
        gramian = reduce(lambda total, more: total + more.to(total.device), products)
        weights = self._weights_of(gramian)
        for parameters, gradients in self._parts(kept):
            places = map(_place, parameters, zip(*gradients, strict=True))
            results = combine(gradients, weights, out=places, missing="zero")
            for parameter, result in zip(parameters, results, strict=True):
                parameter.grad = result
        self.gramian, self.weights = gramian, weights
        self._kept.clear()

    def clear(self) -> None:
        """Drop the gradients that tasks have left since the last combine(), to skip a step."""
        self._kept.clear()

    def _parts(self, kept: list[Operand]) -> Iterator[tuple[list[Tensor], list[Operand]]]:
        """Parameters with their gradients by task: all at once or, where decoding takes memory, singly."""
        if self._keep != "8bit":
            yield self._parameters, kept
            return
        for parameter, *gradients in zip(self._parameters, *kept, strict=True):
            if any(gradient is not None for gradient in gradients):
                yield [parameter], [[g if g is None else decoded(g, parameter)] for g in gradients]

    def _weights_of(self, gramian: Tensor) -> Tensor:
        count, finite = len(gramian), gramian.isfinite().all()
        identity = torch.eye(count, dtype=gramian.dtype, device=gramian.device)
        weights = self._weighting(torch.where(finite, gramian, identity))
        if not isinstance(weights, Tensor) or weights.shape != (count,) or weights.is_complex():
            raise ValueError(
                f"the weighting must return a tensor of {count} real numbers, one a task, got {weights!r}"
            )
        return torch.where(finite, weights.detach().to(gramian), math.nan)


def _place(parameter: Tensor, gradients: tuple[Tensor | None, ...]) -> Tensor | None:
    """Where a parameter's combination goes: the memory of its last gradient, if of the same dtype."""
    last = next((gradient for gradient in reversed(gradients) if gradient is not None), None)
    return last if last is None or last.dtype == parameter.dtype else torch.empty_like(parameter)
