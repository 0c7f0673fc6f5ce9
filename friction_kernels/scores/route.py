"""Choose how a row softmax loss is computed. No other module makes this choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from friction_kernels.scores.devices import triton_unavailable_reason
from friction_kernels.scores.targets import Distilled, Target, TopK
from friction_kernels.warn import warn

RowBackend = Literal["auto", "triton", "chunked"]
ROW_BACKENDS = get_args(RowBackend)
TILES_DIM = 256  # up to which computing a score again is sure to take less than moving twelve bytes


class Row(NamedTuple):
    """A row of a table of routes, in code and in docs. The first route that can serve is taken."""

    when: str
    how: str


ROUTES = {
    "tiles": Row(
        f"on a GPU with Triton: rows of up to {TILES_DIM} numbers, of student and teacher alike and in one "
        "dtype; no stored top k",
        "each pass computes the scores of a tile; dL/dz of a stripe of rows is stored for the products",
    ),
    "fused_chunks": Row(
        "on a GPU with Triton",
        "a product stores the scores of a chunk of rows, which two fused passes read; dL/dz as above",
    ),
    "chunked": Row("elsewhere, and in float64", "scores of some rows at a time, in plain torch"),
}


@dataclass(frozen=True)
class Route:
    """How a row softmax loss is computed.

    Attributes:
        name: "tiles", "fused_chunks" or "chunked".
        reason: why this route was chosen.
    """

    name: str
    reason: str
    fallback_reason: str | None = field(default=None, repr=False)  # why Triton cannot serve


def product_dtype(*tensors: Tensor) -> torch.dtype:
    """In which tensors are multiplied: their own if they have one, else float32, or float64 if any has."""
    dtypes = {tensor.dtype for tensor in tensors}
    if torch.float64 in dtypes:
        return torch.float64
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def choose_route(x: Tensor, w: Tensor, target: Target, backend: RowBackend = "auto") -> Route:
    """The first of ROUTES that can serve.

    Raises:
        RuntimeError: backend is "triton", and its kernels cannot serve.
    """
    teacher = target.teacher
    operands = [(x, w)] if teacher is None else [(x, w), (teacher.x, teacher.w)]
    dtypes = {product_dtype(*pair) for pair in operands}
    fallback_reason = None
    if backend == "triton" or (backend == "auto" and x.device.type == "cuda"):
        widest = torch.float64 if torch.float64 in dtypes else torch.float32
        fallback_reason = triton_unavailable_reason(x.device, widest)
        if fallback_reason is not None and backend == "triton":
            raise RuntimeError(
                f"backend='triton' cannot serve: {fallback_reason}; use backend='auto'"
            )
        backend = "triton" if fallback_reason is None else "chunked"
    if backend != "triton":
        return Route("chunked", ROUTES["chunked"].when, fallback_reason)
    soft = target.soft if isinstance(target, Distilled) else target
    narrow = all(pair[0].shape[1] <= TILES_DIM for pair in operands)
    name = "tiles" if narrow and len(dtypes) == 1 and not isinstance(soft, TopK) else "fused_chunks"
    return Route(name, ROUTES[name].when)


def warn_of_fallback(route: Route) -> None:
    if route.fallback_reason is not None:
        warn(
            f"Triton cannot serve a row softmax loss: {route.fallback_reason}. Plain torch computes the "
            "same, more slowly; row_softmax_loss(..., backend='chunked') asks for that and is not warned of"
        )
