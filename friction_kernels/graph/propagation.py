"""label_propagation: labels of unlabelled nodes by harmonic propagation on a similarity graph."""

from __future__ import annotations

import torch
from torch import Tensor

from friction_kernels.graph import checks
from friction_kernels.graph.harmonic import Report, propagate
from friction_kernels.graph.nodes import Nodes, arrange, check_sizes
from friction_kernels.graph.route import (
    Graph,
    GraphBackend,
    Route,
    Settings,
    Solver,
    check_backend,
    choose_route,
    warn_of_fallback,
)
from friction_kernels.graph.torch_modes import refuse_transforms, uncompiled
from friction_kernels.scores.chunked import Precision


@uncompiled
def label_propagation(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    sigma: float | Tensor = 0.5,
    labelled: Tensor | None = None,
    solver: Solver = "cg",
    tol: float = 1e-5,
    max_iter: int = 64,
    num_iters: int = 10,
    precision: Precision = "fp32",
    ignore_index: int = -100,
    backend: GraphBackend = "auto",
    memory_budget: int | None = None,
) -> Tensor:
    """Class probabilities F of all nodes, differentiable in embeddings and sigma.

    Equals, with L the labelled nodes and U the others, but without storing an N x N matrix:

        z = embeddings / embeddings.norm(dim=1, keepdim=True)
        W = exp(-cdist(z, z)**2 / (2 * sigma**2)).fill_diagonal_(0)
        S = W / sqrt(W.sum(1)[:, None] * W.sum(1)[None, :])
        T = S / S.sum(0, keepdim=True)
        T = T / T.sum(1, keepdim=True)
        F[L] = one_hot(labels[L])
        F[U] = torch.linalg.solve(I - T[U][:, U], T[U][:, L] @ F[L])

    Source: Sharma, Agarwal, Kumar, "G-Loss", arXiv 2604.25853, and its authors' code. Published: T and
    the harmonic solution. Ours: the initial value of "iterate", and uniform rows.

    Args:
        embeddings: (N, d), float16, bfloat16, float32 or float64, of any nonzero length.
        labels: (N,), integers of any type, in [0, num_classes), or ignore_index.
        num_classes: C, at least 2.
        sigma: width of the Gaussian in units of distance between normalised embeddings; a float, or a
            tensor of one element, to which gradients flow if it requires them (default 0.5).
        labelled: bool (N,), the nodes whose label is used; None uses all whose label is not ignore_index
            (default None).
        solver: "cg", conjugate gradients, or LU factors if the graph is small and stored, until the
            residual max_i sum_c |T F - F|_ic is at most tol, in at most max_iter iterations; "iterate",
            exactly num_iters steps F_U <- T_UU F_U + T_UL F_L from F_U = 0, whose gradient needs memory
            for 2 num_iters matrices of N x C (default "cg").
        tol: residual at which "cg" stops, above 0 (default 1e-5).
        max_iter: maximum number of iterations of "cg", at least 1 (default 64).
        num_iters: steps of "iterate", at least 1 (default 10).
        precision: of the products z_i . z_j: "fp32", or inputs rounded to "tf32" or "bf16". All other
            arithmetic is float32, or float64 if embeddings are (default "fp32").
        ignore_index: the label of nodes whose label is not known (default -100).
        backend: "triton" (CUDA), "chunked" (any device, O(N) memory), "dense" (stores N x N), or "auto",
            which stores up to 4,096 nodes in plain torch. Others raise if they cannot serve (default "auto").
        memory_budget: bytes that may hold weights between passes: all N x N of them (backend "auto"), or
            T_UU, for precision "bf16" in bfloat16 if only that fits, or nothing. None uses a sixteenth of
            the free memory for backend "auto" in plain torch, and zero otherwise. What is stored changes
            results within rounding and tol (default None).

    Returns:
        F (N, C), rows that sum to one, in float32, or float64 if embeddings are. A node that no labelled
        node reaches, in the arithmetic used, has a uniform row without gradient, which causes a warning.
        A solve that does not converge warns, and its result is still returned.

    Raises:
        ValueError, TypeError: an argument out of range, or invalid input; the message names the rows.
        RuntimeError: a backend that cannot serve; a transform of torch.func; from backward(), a second
            derivative.
    """
    checks.check_integer("num_classes", num_classes, 2)
    checks.check_sigma(sigma)
    settings = Settings(solver, tol, max_iter, num_iters, precision, backend, memory_budget)
    settings.check()
    checks.check_ignore_index(ignore_index)
    checks.check_batch(embeddings, labels, labelled)
    refuse_transforms("label_propagation", embeddings, sigma)
    labels = checks.int64_labels(labels)
    check_backend(backend, embeddings)
    if labelled is None:
        labelled = labels != ignore_index
    with torch.autocast(embeddings.device.type, enabled=False):
        nodes = arrange(
            embeddings,
            labels,
            labelled=labelled,
            num_classes=num_classes,
            sigma=sigma,
            ignore_index=ignore_index,
        )
        check_sizes(nodes)
        route = choose_route(graph_of(nodes, num_classes), settings)
        f, _ = propagate_nodes(nodes, num_classes, sigma, settings, route)
        of_labelled = one_hot(nodes.labels[: nodes.num_labelled], num_classes, f.dtype)
        return torch.cat((of_labelled, f)).index_select(0, nodes.order.argsort())


def graph_of(nodes: Nodes, num_classes: int, reduction: str | None = None) -> Graph:
    z, num_unlabelled = nodes.z, len(nodes.z) - nodes.num_labelled
    return Graph(z.device, z.dtype, len(z), num_unlabelled, num_classes, nodes.sigma, reduction)


def propagate_nodes(
    nodes: Nodes, num_classes: int, sigma: float | Tensor, settings: Settings, route: Route
) -> tuple[Tensor, Report]:
    """F_U (N - num_labelled, C) of ordered nodes, and a report of the solve."""
    z = nodes.z
    warn_of_fallback(route, len(z))
    targets = one_hot(nodes.labels[: nodes.num_labelled], num_classes, z.dtype)
    return propagate(z, inverse_square(sigma, z.device, z.dtype), targets, settings, route)


def inverse_square(sigma: float | Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """1 / sigma^2 (), differentiable in sigma."""
    if isinstance(sigma, Tensor):
        return sigma.to(device, dtype).reshape(()) ** -2
    return torch.full((), sigma**-2, device=device, dtype=dtype)


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """One-hot encode labels as Y (len(labels), C)."""
    y = torch.zeros(len(labels), num_classes, dtype=dtype, device=labels.device)
    return y.scatter_(1, labels[:, None], 1)
