"""G-Loss of a small batch in one launch: graph, solve, loss, adjoint and gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from friction_kernels.graph.constants import MAX_BATCH_CLASSES, MAX_BATCH_NODES
from friction_triton.batch_kernel import ARRAYS, VECTORS, batch_kernel
from friction_triton.configurations import DOT_PRECISION, VALUE_PRECISION
from friction_triton.launches import launch


class BatchGLoss(NamedTuple):
    loss: Tensor  # ()
    grad_embeddings: Tensor  # (N, d) float32, for an upstream gradient of one
    grad_inverse_sigma_squared: Tensor  # (1,), likewise
    statistics: Tensor  # (7,): see batch_gloss


def batch_gloss(
    embeddings: Tensor,
    labels: Tensor,
    labelled: Tensor,
    num_classes: int,
    class_weight: Tensor | None,
    inverse_sigma_squared: Tensor,
    *,
    log_form: bool = False,
    tol: float = 1e-5,
    max_iter: int = 64,
    ignore_index: int = -100,
    precision: str = "fp32",
    propagated: Tensor | None = None,
) -> BatchGLoss:
    """The loss of GLoss(solver="cg") and its gradients, in one launch. The host does not wait for it.

    log_form: use the form "log" instead of "official".
    embeddings: (N, d) float32, bfloat16 or float16, of any nonzero length, N from 2 to 256.
    labels: (N,) integers in [0, num_classes) or ignore_index; labelled: (N,) bool, true only where the
        label is known. num_classes: at most 64. class_weight: (num_classes,) or None.
    inverse_sigma_squared: one float32 on the embeddings' device.
    propagated: (N, num_classes) float32, an optional output for F.

    statistics: iterations; residual, max_i sum_c |T F - F|_ic; correct, the number of counted nodes whose
        largest F is that of their label; counted, the nodes in the loss; unreached, nodes of U that no label
        reaches, whose rows of F are uniform and have no gradient; the errors of solve and adjoint, at most
        tol if they converged.

    Values are not checked, because the host would have to wait.
    """
    if precision not in DOT_PRECISION:
        raise ValueError(f"precision must be one of {', '.join(DOT_PRECISION)}, got {precision!r}")
    num_nodes, dim = embeddings.shape
    if not 2 <= num_nodes <= MAX_BATCH_NODES or not 2 <= num_classes <= MAX_BATCH_CLASSES:
        raise ValueError(
            f"the batch kernel takes 2 to {MAX_BATCH_NODES} nodes and 2 to {MAX_BATCH_CLASSES} classes, got "
            f"{num_nodes} and {num_classes}"
        )
    if embeddings.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"the batch kernel computes in float32, got {embeddings.dtype}")
    options = sizes(num_nodes, num_classes, precision)
    device = embeddings.device
    grad = torch.empty(num_nodes, dim, dtype=torch.float32, device=device)
    results = torch.empty(9, dtype=torch.float32, device=device)
    scratch = torch.empty(
        scratch_size(options["SIZE"], options["WIDTH"]), dtype=torch.float32, device=device
    )
    weight = results if class_weight is None else class_weight.detach().float().contiguous()
    launch(
        batch_kernel, (1,), device, embeddings.detach().contiguous(), labels.long().contiguous(),
        labelled.contiguous(), weight, inverse_sigma_squared.detach().float().reshape(1), grad,
        results, results if propagated is None else propagated, scratch, num_nodes, dim,
        num_classes, tol, max_iter, ignore_index, **options, LOG_FORM=log_form,
        WEIGHTED=class_weight is not None, WANTED=propagated is not None, HALF=precision == "bf16",
        PRECISION=DOT_PRECISION[precision], VALUE_PRECISION=VALUE_PRECISION[precision],
    )  # fmt: skip
    return BatchGLoss(results[0], grad, results[1:2], results[2:])


def sizes(num_nodes: int, num_classes: int, precision: str) -> dict[str, int]:
    """Compile-time sizes. Of these, only WIDTH affects the number of registers."""
    fp32 = precision == "fp32"
    chunk, depth = (16, 16) if fp32 else (32, 32)
    if triton.knobs.runtime.interpret:  # a step takes the same time for any size
        chunk, depth = 64, 64
    return {
        "SIZE": max(64, triton.next_power_of_2(num_nodes)),
        "WIDTH": max(16, triton.next_power_of_2(num_classes)),
        "STRIP": 64,
        "CHUNK": chunk,
        "BLOCK_N": 64,
        "BLOCK_D": depth,
        "num_warps": 8,
        "num_stages": 1,
    }


def scratch_size(size: int, width: int) -> int:
    return int(VECTORS) * size + size * size + int(ARRAYS) * size * width
