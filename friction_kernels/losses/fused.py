"""Loss and gradient of a small batch by friction_triton's batch kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from friction_kernels.graph.forward import warn_of_unreached
from friction_kernels.graph.route import Route
from friction_kernels.losses.statistics import GLossStats
from friction_kernels.scores.derivatives import refuse_second_derivative
from friction_kernels.warn import warn


def fused_loss(
    embeddings: Tensor,
    inverse_sigma_squared: Tensor,
    labelled: Tensor,
    route: Route,
    **options: Any,
) -> tuple[Tensor, FusedStats]:
    """Return the mean loss (), differentiable in embeddings and 1 / sigma^2, and its statistics.

    The gradient is computed together with the loss; backward only scales it. options: arguments of
    friction_triton.batch.batch_gloss. The host does not wait for the device.
    """
    options["labelled"] = labelled
    loss, statistics = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        embeddings, inverse_sigma_squared, options
    )
    return loss, FusedStats(statistics, labelled, route)


class FusedStats:
    """The statistics of a batch; the host waits for the device only when they are read."""

    def __init__(self, statistics: Tensor, labelled: Tensor, route: Route):
        self._statistics = statistics  # (7,), from friction_triton.batch.batch_gloss
        self._labelled = labelled  # bool (N,)
        self._route = route

    def read(self) -> GLossStats:
        iterations, residual, num_right, num_scored, num_unreached, *_ = self._statistics
        return GLossStats(
            iterations=iterations,
            residual=residual,
            accuracy=num_right / num_scored,
            num_nodes=len(self._labelled),
            num_labelled=self._labelled.sum(),
            num_scored=num_scored,
            num_unreached=num_unreached,
            route=self._route,
        )

    def warn(self, tol: float) -> None:
        """Warn if a solve did not converge or nodes are unreachable. Waits for the device."""
        iterations, residual, _, _, num_unreached, error, of_adjoint = self._statistics.tolist()
        if not (error <= tol and of_adjoint <= tol):
            warn(
                f"label propagation did not converge: residual {residual:.1e}, of its gradient "
                f"{of_adjoint:.1e}, after {iterations:.0f} iterations, tol={tol:g}; "
                f"{num_unreached:.0f} rows of F do not sum to 1, and are uniform; raise max_iter or "
                "sigma, or label more nodes"
            )
        elif num_unreached:
            warn_of_unreached(int(num_unreached), int((~self._labelled).sum()))


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, inverse_sigma_squared: Tensor, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        from friction_triton.batch import batch_gloss

        result = batch_gloss(embeddings, inverse_sigma_squared=inverse_sigma_squared, **options)
        ctx.save_for_backward(result.grad_embeddings, result.grad_inverse_sigma_squared)
        ctx.dtypes = embeddings.dtype, inverse_sigma_squared.dtype
        ctx.mark_non_differentiable(result.statistics)
        return result.loss.clone(), result.statistics

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("GLoss")
        grads: list[Tensor | None] = [None, None]
        for i, (grad, dtype) in enumerate(zip(ctx.saved_tensors, ctx.dtypes, strict=True)):
            if ctx.needs_input_grad[i]:
                grads[i] = (grad * grad_loss).to(dtype)
        return grads[0], None if grads[1] is None else grads[1].reshape(()), None
