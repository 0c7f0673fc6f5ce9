"""GradientGuidance: regularise the direction and the size of gradients as a model trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from friction_kernels import lists
from friction_kernels.choices import check_choice
from friction_kernels.shards import is_dtensor, wrap

Mode = Literal["difference", "exact", "first_order"]
MOMENTA = ("exp_avg", "momentum_buffer")  # as our optimizers and torch's call the first moment


class GradientGuidance:
    """Gradients of a loss and of a regulariser of its gradient, R. With the loss L and its gradient g:

        R = consistency * (1 - cos(g, d)) + magnitude * max(0, norm(g) - threshold) ** 2

        guidance = GradientGuidance(opt, consistency=0.1)
        for x, y in batches:
            # Instead of loss.backward():
            loss = guidance.backward(lambda: loss_fn(model(x), y))
            opt.step()

    The reference direction d is held constant, so the gradient of R is a product with the Hessian H of L:

        v = consistency / norm(g) * (cos(g, d) * g / norm(g) - d / norm(d))
            + 2 * magnitude * max(0, norm(g) - threshold) * g / norm(g)

        "difference":   p.grad = g + H v,  with H v = (g(p + s * v) - g) / s
                        and s = epsilon * norm(p) / norm(v)
        "exact":        p.grad = g + H v,  by differentiating g * v
        "first_order":  p.grad = g - norm(g) ** 2 * v, of the consistency,
                        and g - v, of the magnitude

    "difference" takes a second forward and backward, and memory for a copy of the parameters and of the
    gradients; the parameters get their own bits back. Both passes draw the same random numbers; buffers, such
    as those of batch normalization, are updated twice. The difference sees units switch on its way, which H
    leaves out: with ReLU in a small network that can outweigh H v by far, so take "exact", or a smooth
    activation. "exact" keeps the graph of the gradient, and passes by the hooks of DistributedDataParallel
    and fully_shard. "first_order" descends R over the gradient instead of over the parameters: it turns g
    towards d, and shortens it towards `threshold`, which magnitude=0.5 makes its norm. Terms of a gradient or
    direction of norm 0 are dropped. The host does not wait for a GPU.

    Source: arXiv 2506.00726, of which only the abstract was read: it names directional consistency, the
    magnitude and the alignment with a source task. The form of R and the three ways to its gradient are this
    library's choice. No result of the paper is claimed.

    Args:
        optimizer: a torch.optim.Optimizer, whose parameters that require gradients are guided. Those to which
            the loss gives no gradient take no part.
        direction: "momentum", the optimizer's own first moment (`exp_avg` or `momentum_buffer`), which takes
            no memory and does not guide before the first step; or tensors of the parameters' shapes, one for
            each in the optimizer's order, such as a source task's gradient, None for zeros (default
            "momentum").
        consistency: weight of the direction's term (default 0.0).
        magnitude: weight of the norm's term; at most 0.5 in "first_order" (default 0.0).
        threshold: the norm above which the second term counts (default 0.0).
        mode: "difference", "exact" or "first_order" (default "difference").
        epsilon: how far "difference" moves the parameters, relative to their norm; None is twice the square
            root of the coarsest parameter's machine epsilon: 6.9e-4 for float32, where H v is exact to 1e-3
            in small smooth networks; 0.18 for bfloat16, whose gradients leave few digits of a difference
            (default None).

    Attributes:
        direction: as given. It may be set anew between two calls of backward().
        alignment: cos(g, d) in the last backward(), a 0-dim tensor, 0 where it is not defined; None before.
        penalty: R in the last backward(), a 0-dim tensor; None before.

    Raises:
        ValueError: a weight, `threshold`, `mode` or `epsilon` is out of range; a group has maximize; a
            direction does not correspond to the parameters; the optimizer keeps no momentum, or keeps it in 8
            bits.
        TypeError: `direction` is neither "momentum" nor tensors.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        direction: Literal["momentum"] | Sequence[Tensor | None] = "momentum",
        *,
        consistency: float = 0.0,
        magnitude: float = 0.0,
        threshold: float = 0.0,
        mode: Mode = "difference",
        epsilon: float | None = None,
    ) -> None:
        given = {"consistency": consistency, "magnitude": magnitude, "threshold": threshold}
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number of at least 0, got {value}")
        check_choice("mode", mode, get_args(Mode))
        if mode == "first_order" and magnitude > 0.5:
            raise ValueError(
                f"magnitude must be at most 0.5 in mode 'first_order', got {magnitude}: 0.5 shortens the "
                "gradient to the threshold"
            )
        if epsilon is not None and not 0 < epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number above 0, or None, got {epsilon}")
        if any(group.get("maximize", False) for group in optimizer.param_groups):
            raise ValueError(
                "the optimizer maximizes the loss, and guidance is for one that is minimised; negate the "
                "loss instead"
            )
        if isinstance(direction, str) and any(
            isinstance(momentum := group.get("momentum"), (int, float)) and momentum == 0
            for group in optimizer.param_groups
        ):
            raise ValueError(
                f"{type(optimizer).__name__} keeps no momentum with momentum=0; give tensors as the direction"
            )
        self.optimizer, self.direction = optimizer, direction
        self.consistency, self.magnitude, self.threshold = consistency, magnitude, threshold
        self.mode, self.epsilon = mode, epsilon
        self.alignment: Tensor | None = None
        self.penalty: Tensor | None = None
        self._directions()

    def backward(self, closure: Callable[[], Tensor]) -> Tensor:
        """Set the gradients of the loss and of R, in place of those that the parameters have.

        closure: computes the loss, a scalar (), and does not call backward(). "difference" calls it twice,
            and needs the same loss of the same data, which no GradScaler may have scaled.

        Returns the loss, detached.
        """
        if not callable(closure):
            raise TypeError(
                f"closure is {type(closure).__name__}; give a function that computes the loss: "
                "guidance.backward(lambda: loss_fn(model(x), y))"
            )
        every = self._directions()
        has_direction = any(direction is not None for direction in every.values())
        guides = self.magnitude > 0 or (self.consistency > 0 and has_direction)
        mode = self.mode if guides else None
        for parameter in every:
            parameter.grad = None
        with _same_random_numbers(every) if mode == "difference" else nullcontext():
            loss = closure()
            made: Sequence[Tensor | None]
            if mode == "exact":
                made = torch.autograd.grad(loss, [*every], create_graph=True, allow_unused=True)
            else:
                loss.backward()
                made = [parameter.grad for parameter in every]
        grads = {p: grad for p, grad in zip(every, made, strict=True) if grad is not None}
        parameters, directions = list(grads), [every[p] for p in grads]
        found = self._measure(parameters, [*grads.values()], directions)
        self.alignment, self.penalty = found.alignment, found.penalty
        if mode == "first_order":
            _combine_into(parameters, [[*grads.values()], directions], found.first_order)
        elif mode == "exact":
            _add_exact(grads, directions, found)
        elif mode == "difference":
            self._add_difference(closure, parameters, directions, found)
        return loss.detach()

    def _directions(self) -> dict[Tensor, Tensor | None]:
        """The direction of each parameter that requires a gradient."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        if isinstance(self.direction, str):
            if self.direction != "momentum":
                raise TypeError(f"direction must be 'momentum' or tensors, got {self.direction!r}")
            given = [self._momentum_of(p, index) for index, p in enumerate(parameters)]
        else:
            given = list(self.direction)
        if len(given) != len(parameters):
            raise ValueError(
                f"direction has {len(given)} tensors, and the optimizer {len(parameters)} parameters; give "
                "one for each, or None for zeros"
            )
        for index, (parameter, direction) in enumerate(zip(parameters, given, strict=True)):
            if direction is not None and not isinstance(direction, Tensor):
                raise TypeError(
                    f"direction {index} is {direction!r}, and no tensor; give None for zeros"
                )
            if direction is not None and direction.shape != parameter.shape:
                raise ValueError(
                    f"direction {index} is of shape {tuple(direction.shape)}, and parameter {index} of shape "
                    f"{tuple(parameter.shape)}; they must correspond"
                )
        return {p: d for p, d in zip(parameters, given, strict=True) if p.requires_grad}

    def _momentum_of(self, parameter: Tensor, index: int) -> Tensor | None:
        state = self.optimizer.state.get(parameter)
        if not state:
            return None
        name = next((name for name in MOMENTA if name in state), None)
        if name is None:
            raise ValueError(
                f"{type(self.optimizer).__name__} keeps no {' or '.join(MOMENTA)} of parameter {index}; give "
                "tensors as the direction"
            )
        momentum: Tensor | None = state[name]
        if momentum is None:
            return None
        if momentum.dtype == torch.uint8:
            raise ValueError(
                f"{name} of parameter {index} is kept in 8 bits; give state_dtype='bf16' for it, or tensors "
                "as the direction"
            )
        return momentum if is_dtensor(momentum) else wrap(momentum, parameter)

    def _measure(
        self, parameters: list[Tensor], grads: list[Tensor], directions: list[Tensor | None]
    ) -> _Found:
        products = lists.gram(parameters, grads, directions, missing="zero")
        parameter_norm, norm, direction_norm = products.diagonal().sqrt()
        per_norm = torch.where(norm > 0, 1 / norm, 0.0)
        per_both = torch.where(direction_norm > 0, per_norm / direction_norm, 0.0)
        cosine = (products[1, 2] * per_both).clamp(-1, 1)
        excess = (norm - self.threshold).clamp(min=0)
        has_angle = self.consistency * (per_both > 0).double()
        away = self.consistency * per_both
        turn = self.consistency * cosine * per_norm**2
        stretch = 2 * self.magnitude * excess * per_norm
        return _Found(
            alignment=cosine,
            penalty=has_angle * (1 - cosine) + self.magnitude * excess**2,
            v=torch.stack([turn + stretch, -away]),
            # The two parts of v are at right angles.
            v_norm=((has_angle * per_norm) ** 2 * (1 - cosine**2) + (stretch * norm) ** 2).sqrt(),
            parameter_norm=torch.where(parameter_norm > 0, parameter_norm, 1.0),
            first_order=torch.stack([1 - norm**2 * turn - stretch, norm**2 * away]),
        )

    def _add_difference(
        self,
        closure: Callable[[], Tensor],
        parameters: list[Tensor],
        directions: list[Tensor | None],
        found: _Found,
    ) -> None:
        epsilon = self.epsilon
        if epsilon is None:
            epsilon = 2 * max((torch.finfo(p.dtype).eps for p in parameters), default=0.0) ** 0.5
        length = epsilon * found.parameter_norm
        per_step = found.v_norm / length
        step = torch.where(per_step > 0, 1 / per_step, 0.0)
        # A copy: DistributedDataParallel writes every gradient to the same memory.
        grads = lists.combine([[p.grad for p in parameters]], [1.0])
        with _moved(parameters, [grads, directions], step * found.v):
            for parameter in parameters:
                parameter.grad = None
            closure().backward()
        _combine_into(
            parameters, [grads, [p.grad for p in parameters]], torch.stack([1 - per_step, per_step])
        )


class _Found(NamedTuple):
    """What is known of gradient g and direction d: scalars, and pairs, the weights of g and d."""

    alignment: Tensor
    penalty: Tensor
    v: Tensor
    v_norm: Tensor
    parameter_norm: Tensor
    first_order: Tensor


@torch.no_grad()
def _combine_into(
    parameters: list[Tensor], terms: list[list[Tensor | None]], weights: Tensor
) -> None:
    """Write a combination to the parameters' gradients."""
    lists.combine(terms, weights, out=[p.grad for p in parameters], missing="zero")


@torch.no_grad()
def _add_exact(grads: dict[Tensor, Tensor], directions: list[Tensor | None], found: _Found) -> None:
    """Set the parameters' gradients, given those of the loss with their graph."""
    plain = [grad.detach() for grad in grads.values()]
    v = [torch.empty_like(grad) for grad in plain]
    lists.combine([plain, directions], found.v, out=v, missing="zero")
    curved = [
        (grad, along) for grad, along in zip(grads.values(), v, strict=True) if grad.requires_grad
    ]
    products: Sequence[Tensor | None] = [None] * len(plain)
    if curved:
        outputs, along = zip(*curved, strict=True)
        products = torch.autograd.grad(outputs, [*grads], along, allow_unused=True)
    for parameter, grad in zip(
        grads, lists.combine([plain, products], [1.0, 1.0], missing="zero"), strict=True
    ):
        parameter.grad = grad


@contextmanager
def _moved(
    parameters: list[Tensor], along: list[list[Tensor | None]], weights: Tensor
) -> Iterator[None]:
    """The parameters plus a combination of lists; afterwards their own bits again."""
    with torch.no_grad():
        copy = lists.combine([parameters], [1.0])
    try:
        with torch.no_grad():
            weights = torch.cat([weights.new_ones(1), weights])
            lists.combine([parameters, *along], weights, out=parameters, missing="zero")
        yield
    finally:
        with torch.no_grad():
            lists.combine([copy], [1.0], out=parameters)


def _same_random_numbers(parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
    """What follows this block draws the random numbers that were drawn in it."""
    devices = {p.device for p in parameters if p.device.type != "cpu"}
    kind = next((device.type for device in devices), "cuda")
    return torch.random.fork_rng([device.index for device in devices], device_type=kind)
