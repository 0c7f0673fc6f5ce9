"""G-Loss of a small batch in three launches: similarities; solve, loss and adjoint; gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from friction_kernels.graph.constants import MAX_BATCH_CLASSES, MAX_BATCH_NODES
from friction_triton.batch_graph import ARRAYS, VECTORS
from friction_triton.batch_kernel import batch_kernel
from friction_triton.batch_products import batch_gradient_kernel, batch_similarities_kernel
from friction_triton.configurations import DOT_PRECISION, VALUE_PRECISION
from friction_triton.launches import launch

BLOCK, BLOCK_K = 32, 64  # rows and channels of a program of the two products
OF_PRODUCTS = {"num_warps": 4, "num_stages": 1}


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
    """The loss of GLoss(solver="cg") and its gradients, in three launches. The host does not wait for them.

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
    size, embeddings = options["SIZE"], embeddings.detach().contiguous()
    scale = inverse_sigma_squared.detach().float().reshape(1)
    launch(
        batch_similarities_kernel, (size // BLOCK, size // BLOCK), device, embeddings, scale, scratch,
        num_nodes, dim, SIZE=size, BLOCK=BLOCK, BLOCK_D=128, HALF=precision == "bf16",
        PRECISION=DOT_PRECISION[precision], **OF_PRODUCTS,
    )  # fmt: skip
    launch(
        batch_kernel, (1,), device, labels.long().contiguous(), labelled.contiguous(), weight, scale,
        results, results if propagated is None else propagated, scratch, num_nodes,
        num_classes, tol, max_iter, ignore_index, **options, LOG_FORM=log_form,
        WEIGHTED=class_weight is not None, WANTED=propagated is not None,
        VALUE_PRECISION=VALUE_PRECISION[precision],
    )  # fmt: skip
    blocks = triton.cdiv(num_nodes, BLOCK), triton.cdiv(dim, BLOCK_K)
    launch(
        batch_gradient_kernel, blocks, device, embeddings, grad, scratch, num_nodes, dim,
        SIZE=size, BLOCK_M=BLOCK, BLOCK_N=BLOCK_K, CHUNK=32,
        PRECISION=VALUE_PRECISION[precision], **OF_PRODUCTS,
    )  # fmt: skip
    return BatchGLoss(results[0], grad, results[1:2], results[2:])


def sizes(num_nodes: int, num_classes: int, precision: str) -> dict[str, int]:
    """Compile-time sizes of batch_kernel: tiles of STRIP rows and CHUNK columns, as large as registers allow.

    A pass over x is a chain of such tiles, one after the other, so their number decides its time.
    """
    size, width = triton.next_power_of_2(num_nodes), triton.next_power_of_2(num_classes)
    size, width = max(64, size), max(16, width)
    strip, chunk = (128, 32) if width == 16 else (64, 16 if precision == "fp32" else 32)
    if triton.knobs.runtime.interpret:  # a step takes the same time for any size
        chunk = 64
    return {
        "SIZE": size,
        "WIDTH": width,
        "STRIP": min(size, strip),
        "CHUNK": chunk,
        "num_warps": 8,
        "num_stages": 1,
    }


def scratch_size(size: int, width: int) -> int:
    return int(VECTORS) * size + size * size + int(ARRAYS) * size * width
