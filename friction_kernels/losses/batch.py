"""G-Loss of a small batch in one launch, where friction_triton can serve it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from friction_kernels.graph.harmonic import warn_of_unreached
from friction_kernels.losses.statistics import GLossStats
from friction_kernels.warn import warn


def one_launch_serves(num_nodes: int, num_classes: int) -> bool:
    """Whether the batch kernel takes a graph of this size; asked only where backend "triton" serves."""
    from friction_triton.batch import MAX_CLASSES, MAX_NODES

    return bool(2 <= num_nodes <= MAX_NODES and num_classes <= MAX_CLASSES)


class Launched:
    """The statistics of a launch, which nobody waits for until they are read."""

    def __init__(self, statistics: Tensor, labelled: Tensor):
        self._statistics = statistics  # (7,), those of friction_triton.batch.batch_gloss
        self._labelled = labelled  # bool (N,)

    def stats(self) -> GLossStats:
        iterations, residual, num_right, num_scored, num_unreached, *_ = self._statistics
        return GLossStats(
            iterations=iterations,
            residual=residual,
            accuracy=num_right / num_scored,
            num_nodes=len(self._labelled),
            num_labelled=self._labelled.sum(),
            num_scored=num_scored,
            num_unreached=num_unreached,
        )

    def warn(self, tol: float) -> None:
        """Warn of a solve that did not converge, or of nodes out of reach. Waits for the device."""
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


def one_launch_loss(
    embeddings: Tensor, labelled: Tensor, inverse_sigma_squared: Tensor, **options: Any
) -> tuple[Tensor, Launched]:
    """The mean loss (), differentiable in embeddings and 1 / sigma^2, and what became of it.

    The gradient is computed with the loss, and backward only scales it. Arguments: those of
    friction_triton.batch.batch_gloss; nothing waits for the device.
    """
    options["labelled"] = labelled
    loss, statistics = _OneLaunch.apply(  # type: ignore[no-untyped-call]
        embeddings, inverse_sigma_squared, options
    )
    return loss, Launched(statistics, labelled)


class _OneLaunch(torch.autograd.Function):
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
        if torch.is_grad_enabled():
            raise RuntimeError(
                "GLoss cannot be differentiated twice; call backward() or torch.autograd.grad() "
                "without create_graph=True"
            )
        grads: list[Tensor | None] = [None, None]
        for i, (grad, dtype) in enumerate(zip(ctx.saved_tensors, ctx.dtypes, strict=True)):
            if ctx.needs_input_grad[i]:
                grads[i] = (grad * grad_loss).to(dtype)
        return grads[0], None if grads[1] is None else grads[1].reshape(()), None
