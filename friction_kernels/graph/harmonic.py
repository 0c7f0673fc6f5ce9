"""Harmonic label propagation and its gradient, over any `backend.Similarity`, without N x N matrices.

Forward, nodes ordered labelled first: F_U = (I - T_UU)^(-1) T_UL Y_L, or some steps of
F_U <- T_UU F_U + T_UL Y_L from F_U = 0. With Fbar = [Y_L; F_U] both are rows of T Fbar.

Backward, g = dL/dF_U. The adjoint l = (I - T_UU)^(-T) g on U and 0 on L gives dL/dT_ij = l_i . Fbar_j
(for steps: the sum over steps of such terms, l of a step being T_UU^T times that of the next). T is a row
softmax of x_ij - log u_j, so with delta_i = l_i . (T Fbar)_i, exact for an unconverged F too,

    D_ij = T_ij (l_i . Fbar_j - delta_i)                              dL/d(x_ij - log u_j)
    dL/dlog u_j = -sum_i D_ij = (T^T delta)_j - Fbar_j . (T^T l)_j
    dL/dlog deg_j = -1/2 sum_i P_ij dL/dlog u_i                       log u_i = LSE_j(x_ij - log deg_j / 2)
    dL/dx_ij = D_ij + P_ij dL/dlog u_i + Q_ij dL/dlog deg_i

and one pass makes dL/dz of that. No denominator can become small, and no sigma is special.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from friction_kernels.graph import small, solvers
from friction_kernels.graph.backend import Cotangents, Similarity
from friction_kernels.graph.compiling import uncompiled
from friction_kernels.graph.transition import Transition
from friction_kernels.warn import warn

# In units of tol: rows of F sum to one, and how nearly they do is a measure of its error.
MASS_TOLERANCE = 100
INFLOW_TOLERANCE = 4  # in units of eps: less than that, beside a row's sum of one, is rounding
DIRECT_UP_TO = 768  # unlabelled nodes of which a stored T_UU is factorised

Factors = tuple[Tensor, Tensor]  # LU of I - T_UU


@dataclass(frozen=True)
class Settings:
    """How a graph is solved; see GLoss for what users may set."""

    similarity: Callable[[Tensor, Tensor], Similarity]  # of (z, 1 / sigma^2)
    solver: str = "cg"
    tol: float = 1e-5
    max_iter: int = 64
    num_iters: int = 10
    keep_dtype: torch.dtype | None = None  # of a stored T_UU; None stores none


@dataclass
class Report:
    """What became of a forward pass. Tensors have no dimension; on a GPU nothing waits for them."""

    iterations: int = 0
    residual: Tensor = field(init=False)  # max_i sum_c |T Fbar - F|_ic on U
    unreached: Tensor = field(init=False)  # how many rows of F were made uniform


def propagate(
    z: Tensor, inverse_sigma_squared: Tensor, targets: Tensor, settings: Settings
) -> tuple[Tensor, Report]:
    """F_U (N - num_labelled, C), differentiable in z and 1 / sigma^2, and what became of the solve.

    z: (N, d), float32 or float64, rows of length one, labelled nodes first; inverse_sigma_squared: ();
    targets: Y_L (num_labelled, C). Rows of F that no label reaches are uniform and have no gradient.
    """
    report, graph = Report(), None
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        similarity = settings.similarity(z, inverse_sigma_squared)
        if small.serves(similarity, settings.solver):
            graph = small.solve(similarity, targets, _error, settings.tol)
    if graph is not None:
        report.residual, report.unreached = graph.residual, graph.residual.new_zeros(())
        f = _SmallPropagation.apply(z, inverse_sigma_squared, graph)  # type: ignore[no-untyped-call]
        return f, report
    f = _Propagation.apply(  # type: ignore[no-untyped-call]
        z, inverse_sigma_squared, targets, similarity, settings, report
    )
    return f, report


class _SmallPropagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, inverse_sigma_squared: Tensor, graph: small.Solved) -> Tensor:
        ctx.save_for_backward(z, inverse_sigma_squared)
        ctx.graph = graph
        return graph.f[len(z) - len(graph.image) :]

    @staticmethod
    @uncompiled
    def backward(ctx: Any, grad_f: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        z, inverse_sigma_squared = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            grad_z = small.gradient(ctx.graph, z, inverse_sigma_squared, grad_f)
            grad_scale = None
            if ctx.needs_input_grad[1]:
                grad_scale = _gradient_of_scale(z, grad_z, inverse_sigma_squared)
        return grad_z, grad_scale, None


def _refuse_second_derivative() -> None:
    # torch's once_differentiable lets a gradient of a constant pass, with a wrong second derivative.
    if torch.is_grad_enabled():
        raise RuntimeError(
            "label propagation cannot be differentiated twice; call backward() or "
            "torch.autograd.grad() without create_graph=True"
        )


def _gradient_of_scale(z: Tensor, grad_z: Tensor, inverse_sigma_squared: Tensor) -> Tensor:
    # dL/d(1/sigma^2) = sum_ij M_ij z_i . z_j, and grad_z_i = sum_j (M_ij + M_ji) z_j / sigma^2
    return (z * grad_z).sum() / (2 * inverse_sigma_squared)


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        inverse_sigma_squared: Tensor,
        targets: Tensor,
        similarity: Similarity,
        settings: Settings,
        report: Report,
    ) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            transition = Transition(similarity, len(targets))
            kept = None
            if settings.keep_dtype is not None:
                kept = transition.keep(settings.keep_dtype)
            b = transition.from_labels(targets)
            if settings.solver == "iterate":
                states = _iterate(transition, b, settings.num_iters)
                residual = _size(transition.times(states[-1]) + b - states[-1])
                lost = states[-1].sum(dim=1) <= torch.finfo(b.dtype).tiny
                report.iterations = settings.num_iters
            else:
                solution, unreached, factors = _solve(transition, b, kept, settings)
                states = [solution.values, solution.image]
                residual = _size(solution.image - solution.values)
                # A row's exact sum is one. Where it is far from that, its values mean nothing.
                lost = ~((solution.values.sum(dim=1) - 1).abs() < 0.5)
                report.iterations = solution.iterations
                if unreached is not None:
                    warn_of_unreached(int(unreached.sum()), len(unreached))
                if not solution.error <= settings.tol:
                    _warn_of_error(solution, residual, lost, settings)
                ctx.factors = factors
            report.residual, report.unreached = residual, lost.sum()
            ctx.transition, ctx.states, ctx.settings = transition, states, settings
            ctx.save_for_backward(z, inverse_sigma_squared, targets, lost)
            return states[-2 if settings.solver == "cg" else -1].masked_fill(
                lost[:, None], 1 / targets.shape[1]
            )

    @staticmethod
    @uncompiled
    def backward(ctx: Any, grad_f: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        z, inverse_sigma_squared, targets, lost = ctx.saved_tensors
        transition, settings = ctx.transition, ctx.settings
        with torch.autocast(z.device.type, enabled=False):
            grad_f = grad_f.masked_fill(lost[:, None], 0)
            if settings.solver == "iterate":
                adjoints = _adjoint_steps(transition, grad_f, settings.num_iters)
            else:
                adjoints = [_solve_adjoint(transition, grad_f, lost, ctx.factors, settings)]
            cotangents = _cotangents(transition, targets, ctx.states, adjoints)
            grad_z = transition.similarity.gradient(transition.normalisers, cotangents)
            grad_scale = None
            if ctx.needs_input_grad[1]:
                grad_scale = _gradient_of_scale(z, grad_z, inverse_sigma_squared)
        return grad_z, grad_scale, None, None, None, None


def _iterate(transition: Transition, b: Tensor, num_iters: int) -> list[Tensor]:
    """F_U after 0, 1, ..., num_iters steps."""
    states = [torch.zeros_like(b)]
    for _ in range(num_iters):
        states.append(transition.times(states[-1]).add_(b))
    return states


def _adjoint_steps(transition: Transition, grad_f: Tensor, num_iters: int) -> list[Tensor]:
    """dL/dF_U after 1, ..., num_iters steps."""
    adjoints = [grad_f]
    for _ in range(num_iters - 1):
        adjoints.append(transition.transposed_times(adjoints[-1]))
    return adjoints[::-1]


def _size(residual: Tensor) -> Tensor:
    """Rows of F are distributions, so they differ by the sum over classes; the worst node counts."""
    return residual.abs().sum(dim=1).max()


def _error(residual: Tensor, f: Tensor) -> Tensor:
    mass_error = (f.sum(dim=1) - 1).abs().max()
    return torch.maximum(_size(residual), mass_error / MASS_TOLERANCE)


def _solve(
    transition: Transition, b: Tensor, kept: Tensor | None, settings: Settings
) -> tuple[solvers.Solution, Tensor | None, Factors | None]:
    """The solution; bool (M,), which nodes no label reaches, or None where all are reached; LU factors."""
    tol, max_iter = settings.tol, settings.max_iter
    if kept is not None and kept.dtype == b.dtype and len(kept) <= DIRECT_UP_TO:
        factors = solvers.direct(kept * transition.row_factor)
        solution = solvers.solve_directly(factors, transition.times, b, _error)
        if solution.error <= tol:
            return solution, None, factors
    log_weight = transition.log_weight
    solution = solvers.solve(transition.times, b, log_weight, _error, tol, max_iter)
    if solution.error <= tol:
        return solution, None, None
    unreached = _find_unreached(transition.times, b, max_iter)
    if not unreached.any():
        return solution, None, None
    # No solver can bring mass to these rows. Without them, the others can be solved for, and measured.
    times, error = _without(unreached, transition.times), _error_without(unreached)
    b = b.masked_fill(unreached[:, None], 0)
    log_weight = log_weight.masked_fill(unreached, -torch.inf)
    return solvers.solve(times, b, log_weight, error, tol, max_iter), unreached, None


def _find_unreached(times: solvers.Product, b: Tensor, max_steps: int) -> Tensor:
    """bool (M,): nodes into which nothing flows, in b's arithmetic, from labels through whatever nodes.

    None of them where max_steps do not suffice to find out.
    """
    floor = INFLOW_TOLERANCE * torch.finfo(b.dtype).eps
    inflow = b.sum(dim=1, keepdim=True)
    reached = inflow > floor
    for _ in range(max_steps):
        further = reached | (times(reached.to(b.dtype)) + inflow > floor)
        if torch.equal(further, reached):
            return ~reached[:, 0]
        reached = further
    return torch.zeros_like(reached[:, 0])


def _without(nodes: Tensor, times: solvers.Product) -> solvers.Product:
    """v -> A v in which these nodes, bool (M,), have no rows."""
    return lambda values: times(values).masked_fill_(nodes[:, None], 0)


def _error_without(nodes: Tensor) -> solvers.Error:
    """`_error` of a solution that is zero at these nodes, which may be."""

    def error(residual: Tensor, f: Tensor) -> Tensor:
        mass_error = (f.sum(dim=1) - 1).masked_fill(nodes, 0).abs().max()
        return torch.maximum(_size(residual), mass_error / MASS_TOLERANCE)

    return error


def _solve_adjoint(
    transition: Transition,
    grad_f: Tensor,
    lost: Tensor,
    factors: Factors | None,
    settings: Settings,
) -> Tensor:
    if factors is not None:
        adjoint: Tensor = torch.linalg.lu_solve(*factors, grad_f, adjoint=True)
        return adjoint
    smallest = torch.finfo(grad_f.dtype).tiny

    def size(values: Tensor) -> Tensor:
        """T^T does not enlarge sums over nodes; the largest class counts."""
        return values.abs().sum(dim=0).max()

    def error(residual: Tensor, adjoint: Tensor) -> Tensor:
        return size(residual) / size(adjoint).maximum(size(grad_f)).clamp_min(smallest)

    # Lost rows of F are constants: nothing flows through them.
    times = _without(lost, transition.transposed_times)
    log_weight = (-transition.log_weight).masked_fill_(lost, -torch.inf)
    solution = solvers.solve(times, grad_f, log_weight, error, settings.tol, settings.max_iter)
    if not solution.error <= settings.tol:
        warn(
            f"the gradient of label propagation did not converge: relative residual "
            f"{solution.error:.1e} after {solution.iterations} iterations, tol={settings.tol:g}; "
            "raise max_iter or sigma, or label more nodes"
        )
    return solution.values


def _cotangents(
    transition: Transition, targets: Tensor, states: list[Tensor], adjoints: list[Tensor]
) -> Cotangents:
    """states: of U before the first step, after it, ...; adjoints: of U after the first step, ..."""
    num_labelled = len(targets)
    before, after = states[: len(adjoints)], states[1:]
    left_u = torch.cat(adjoints, dim=1)
    right = torch.cat([torch.cat((targets, state)) for state in before], dim=1)
    delta = reduce(
        torch.add,
        ((adjoint * state).sum(dim=1) for adjoint, state in zip(adjoints, after, strict=True)),
    )
    pulled = transition.transposed_to_all(torch.cat((left_u, delta[:, None]), dim=1))
    of_log_u = pulled[:, -1] - (pulled[:, :-1] * right).sum(dim=1)

    log_degree, log_u, _ = transition.normalisers
    everything = transition.everything
    of_log_degree = transition.similarity.apply(
        everything, everything, log_degree / -2, -log_u, of_log_u[:, None]
    )[:, 0].div_(-2)
    # The pass has T's rows as they are, not divided by their sums.
    left_u, delta = left_u * transition.row_factor, delta * transition.row_factor[:, 0]
    left = torch.cat((left_u.new_zeros(num_labelled, left_u.shape[1]), left_u))
    of_transition = torch.cat((delta.new_zeros(num_labelled), delta))
    return Cotangents(left, right, of_transition, of_log_u, of_log_degree)


def warn_of_unreached(count: int, num_unlabelled: int) -> None:
    warn(
        f"{count} of {num_unlabelled} unlabelled nodes are reached by no labelled node: their "
        "rows of F are uniform and have no gradient; raise sigma, or label more nodes"
    )


def _warn_of_error(
    solution: solvers.Solution, residual: Tensor, lost: Tensor, settings: Settings
) -> None:
    num_lost, mass = int(lost.sum()), solution.values.sum(dim=1)[~lost]
    causes = []
    if num_lost:
        causes.append(f"{num_lost} of {len(lost)} rows of F do not sum to 1, and are uniform")
    if len(mass):
        causes.append(f"rows of F sum to 1 within {float((mass - 1).abs().max()):.1e}")
    warn(
        f"label propagation did not converge: residual {float(residual):.1e} after "
        f"{solution.iterations} iterations, tol={settings.tol:g}; {'; '.join(causes)}; raise max_iter or "
        "sigma, or label more nodes"
    )
