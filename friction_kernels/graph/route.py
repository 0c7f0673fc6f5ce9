"""Choose how a graph is computed. No other module makes this choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.graph import checks
from friction_kernels.graph.constants import MAX_BATCH_CLASSES, MAX_BATCH_NODES
from friction_kernels.scores.backend import Scores
from friction_kernels.scores.chunked import (
    LARGEST_SCORE,
    PRECISIONS,
    ExpDomainScores,
    LogDomainScores,
)
from friction_kernels.scores.devices import free_memory, triton_unavailable_reason
from friction_kernels.scores.route import Row
from friction_kernels.warn import warn

Solver = Literal["cg", "iterate"]
SOLVERS = get_args(Solver)
GraphBackend = Literal["auto", "triton", "chunked", "dense"]
GRAPH_BACKENDS = get_args(GraphBackend)
DENSE_LU_NODES = 512  # for small graphs, calling an operator costs more than its computation
FACTORISED_NODES = 768  # largest number of unlabelled nodes whose stored T_UU is factorised
STORED_BY_AUTO = 4096  # nodes: 64 MiB in float32
STORED_BY_DENSE = 16384  # nodes: 1 GiB in float32
SHARE_OF_FREE_MEMORY = 1 / 16  # eight processes on one machine then use at most half


class Settings(NamedTuple):
    """How a graph is solved; see `label_propagation`."""

    solver: str = "cg"
    tol: float = 1e-5
    max_iter: int = 64
    num_iters: int = 10
    precision: str = "fp32"
    backend: str = "auto"
    memory_budget: int | None = None

    def check(self) -> None:
        check_choice("solver", self.solver, SOLVERS)
        checks.check_positive("tol", self.tol)
        checks.check_integer("max_iter", self.max_iter, 1)
        checks.check_integer("num_iters", self.num_iters, 1)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("backend", self.backend, GRAPH_BACKENDS)
        if self.memory_budget is not None:
            checks.check_integer("memory_budget", self.memory_budget, 0)


ROUTES = {  # in this order; docs/gloss.md has the table
    "batch_kernel": Row(
        f'on a GPU with Triton: up to {MAX_BATCH_NODES} nodes and {MAX_BATCH_CLASSES} classes, "cg", "mean"',
        "loss and gradient in three launches",
    ),
    "triton": Row("on a GPU with Triton", "Triton passes over tiles, O(N) memory"),
    "dense_lu": Row(
        f'up to {DENSE_LU_NODES} nodes, 1 / sigma^2 up to {LARGEST_SCORE:g}, "cg", weights stored',
        "whole matrices in about 40 operators, T_UU factorised",
    ),
    "exp_domain": Row(
        f"1 / sigma^2 up to {LARGEST_SCORE:g}",
        "products with the weights exp(x): one exponential an element, none where they are stored",
    ),
    "log_domain": Row("any sigma", "everything in logarithms"),
}


@dataclass(frozen=True)
class Route:
    """How a graph is computed.

    Attributes:
        name: "batch_kernel", "triton", "dense_lu", "exp_domain" or "log_domain".
        reason: why this route was chosen.
        stored: what is stored between passes: "nothing", "T_UU" or "everything".
    """

    name: str
    reason: str
    stored: str = "nothing"
    transition_dtype: torch.dtype | None = field(default=None, repr=False)  # of a stored T_UU
    factorises: bool = field(default=False, repr=False)  # whether T_UU is factorised
    fallback_reason: str | None = field(default=None, repr=False)  # why Triton cannot serve


class Graph(NamedTuple):
    """The properties of a graph that determine its route."""

    device: torch.device
    dtype: torch.dtype  # of the computation
    num_nodes: int
    num_unlabelled: int
    num_classes: int
    sigma: float | None  # None: known only on the device
    reduction: str | None = None  # of the loss; None: F itself is returned


def check_backend(backend: str, embeddings: Tensor) -> None:
    """Raise RuntimeError if the requested backend cannot serve."""
    unavailable_reason = None
    if backend == "triton":
        unavailable_reason = triton_unavailable_reason(embeddings.device, embeddings.dtype)
    elif backend == "dense" and len(embeddings) > STORED_BY_DENSE:
        unavailable_reason = (
            f"it stores N x N numbers, and N is {len(embeddings)} (at most {STORED_BY_DENSE})"
        )
    if unavailable_reason is not None:
        raise RuntimeError(
            f"backend={backend!r} cannot serve: {unavailable_reason}; use backend='auto'"
        )


def choose_route(graph: Graph, settings: Settings) -> Route:
    """The first of ROUTES that can serve; an explicit backend has already passed `check_backend`."""
    backend, fallback_reason, cg = settings.backend, None, settings.solver == "cg"
    if backend == "auto" and graph.device.type == "cuda":
        fallback_reason = triton_unavailable_reason(graph.device, graph.dtype)
        backend = "triton" if fallback_reason is None else "auto"
    stores_all, transition_dtype = _storage(graph, backend, settings)
    moderate = graph.sigma is not None and graph.sigma**-2 <= LARGEST_SCORE
    if backend == "triton":
        fits = 2 <= graph.num_nodes <= MAX_BATCH_NODES and graph.num_classes <= MAX_BATCH_CLASSES
        name = "batch_kernel" if cg and fits and graph.reduction == "mean" else "triton"
    elif moderate and stores_all and cg and graph.num_nodes <= DENSE_LU_NODES:
        name = "dense_lu"
    else:
        name = "exp_domain" if moderate else "log_domain"
    return Route(
        name,
        ROUTES[name].when,
        "everything" if stores_all else "nothing" if transition_dtype is None else "T_UU",
        transition_dtype,
        cg and transition_dtype == graph.dtype and graph.num_unlabelled <= FACTORISED_NODES,
        fallback_reason,
    )


def _storage(graph: Graph, backend: str, settings: Settings) -> tuple[bool, torch.dtype | None]:
    """(whether the whole matrix is stored, the dtype of a stored T_UU or None)"""
    if backend == "dense" or (backend == "auto" and graph.num_nodes <= STORED_BY_AUTO):
        return True, graph.dtype
    budget = settings.memory_budget
    if budget is None:
        free = free_memory(graph.device) if backend == "auto" else 0
        budget = int(SHARE_OF_FREE_MEMORY * free)
    transition = graph.num_unlabelled**2
    everything = (graph.num_nodes**2 + transition) * graph.dtype.itemsize
    if backend == "auto" and everything <= budget:
        return True, graph.dtype
    types = (graph.dtype, torch.bfloat16)[: 2 if settings.precision == "bf16" else 1]
    return False, next((t for t in types if transition * t.itemsize <= budget), None)


def make_scores(route: Route, z: Tensor, inverse_sigma_squared: Tensor, precision: str) -> Scores:
    """The scores x_ij = z_i . z_j / sigma^2 of unit rows z with themselves, as computed by the route."""
    if route.name == "triton":
        from friction_triton.scores import TritonScores

        on_gpu: Scores = TritonScores(z, None, inverse_sigma_squared, precision, mask_diagonal=True)
        return on_gpu
    kind = LogDomainScores if route.name == "log_domain" else ExpDomainScores
    stored = route.stored == "everything"
    return kind(z, None, inverse_sigma_squared, precision, mask_diagonal=True, stored=stored)


def warn_of_fallback(route: Route, num_nodes: int) -> None:
    if route.fallback_reason is not None:
        same = "dense" if num_nodes <= STORED_BY_AUTO else "chunked"
        warn(
            f"backend='triton' cannot serve: {route.fallback_reason}. Plain torch computes the same, more "
            f"slowly; backend={same!r} asks for that and is not warned of"
        )
