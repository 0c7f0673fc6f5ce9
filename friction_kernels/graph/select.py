"""Which implementation serves a graph, and why not the others."""

from __future__ import annotations

import os
from typing import Literal, get_args

from torch import Tensor

from friction_kernels.graph.backend import Similarity
from friction_kernels.graph.chunked import ChunkedSimilarity
from friction_kernels.graph.weighted import LARGEST_EXPONENT, WeightedSimilarity
from friction_kernels.warn import warn

GraphBackend = Literal["auto", "triton", "chunked", "dense"]
GRAPH_BACKENDS = get_args(GraphBackend)
STORED_BY_AUTO = 4096  # nodes: 64 MiB in float32
STORED_AT_MOST = 16384  # nodes: 1 GiB in float32


def why_not(backend: str, z: Tensor) -> str | None:
    """Why this backend cannot serve these embeddings, or None where it can."""
    if backend == "dense" and len(z) > STORED_AT_MOST:
        return f"it stores N x N numbers, and N is {len(z)} (at most {STORED_AT_MOST})"
    if backend == "triton":
        return _why_not_triton(z)
    return None


def _why_not_triton(z: Tensor) -> str | None:
    if z.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the embeddings are on {z.device}, and its kernels run on CUDA devices"
    if z.element_size() == 8:
        return "the embeddings are float64, and its kernels compute in float32"
    try:
        import friction_triton.similarity  # noqa: F401
    except ImportError as error:
        return f"it cannot be imported ({error}); install with `pip install 'friction-kernels[triton]'`"
    return None


def choose(backend: str, z: Tensor) -> str:
    """The backend that serves; RuntimeError where the one asked for cannot."""
    if backend != "auto":
        reason = why_not(backend, z)
        if reason is not None:
            raise RuntimeError(f"backend={backend!r} cannot serve: {reason}; use backend='auto'")
        return backend
    chosen = "dense" if len(z) <= STORED_BY_AUTO else "chunked"
    if z.device.type != "cuda":
        return chosen
    reason = why_not("triton", z)
    if reason is None:
        return "triton"
    warn(
        f"backend='triton' cannot serve: {reason}. Plain torch computes the same, more slowly; "
        f"backend={chosen!r} asks for that and is not warned of"
    )
    return chosen


def similarity(
    backend: str, z: Tensor, inverse_sigma_squared: Tensor, sigma: float, precision: str
) -> Similarity:
    """backend: not "auto"; sigma: the same number as in inverse_sigma_squared, known to the host."""
    if backend == "triton":
        from friction_triton.similarity import TritonSimilarity

        on_gpu: Similarity = TritonSimilarity(z, inverse_sigma_squared, precision)
        return on_gpu
    moderate = sigma**-2 <= LARGEST_EXPONENT
    chosen = WeightedSimilarity if moderate else ChunkedSimilarity
    return chosen(z, inverse_sigma_squared, precision, stored=backend == "dense")
