"""Loss and gradient of a small batch in one launch of friction_triton's batch kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from friction_kernels.graph.torch_modes import refuse_second_derivative


def fused_loss(
    embeddings: Tensor, inverse_sigma_squared: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """The mean loss (), differentiable in embeddings and 1 / sigma^2, and the launch's statistics (7,).

    The gradient is computed with the loss, and backward only scales it. options: those of
    friction_triton.batch.batch_gloss; nothing waits for the device.
    """
    loss, statistics = _FusedLoss.apply(  # type: ignore[no-untyped-call]
        embeddings, inverse_sigma_squared, options
    )
    return loss, statistics


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
