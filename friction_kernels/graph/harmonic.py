"""Harmonic label propagation and its gradient, over the passes of any `scores.backend.Scores`.

Forward, nodes ordered labelled first: F_U = (I - T_UU)^(-1) T_UL Y_L, or some steps of
F_U <- T_UU F_U + T_UL Y_L from F_U = 0. With Fbar = [Y_L; F_U] both are rows of T Fbar.

Backward, g = dL/dF_U. The adjoint l = (I - T_UU)^(-T) g on U and 0 on L gives dL/dT_ij = l_i . Fbar_j
(for steps: the sum over steps of such terms, l of a step being T_UU^T times that of the next). T is a row
softmax of x_ij - log u_j, so with delta_i = l_i . (T Fbar)_i, exact for an unconverged F too,

    D_ij = T_ij (l_i . Fbar_j - delta_i)                              dL/d(x_ij - log u_j)
    dL/dlog u_j = -sum_i D_ij = (T^T delta)_j - Fbar_j . (T^T l)_j
    dL/dlog deg_j = -1/2 sum_i P_ij dL/dlog u_i                       log u_i = LSE_j(x_ij - log deg_j / 2)
    dL/dx_ij = D_ij + P_ij dL/dlog u_i + Q_ij dL/dlog deg_i

and one pass makes dL/dz of these three terms. No denominator can become small, and no sigma is special.
`transition` has T, P and Q.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from friction_kernels.graph import adjoint, dense_lu, forward
from friction_kernels.graph.route import Route, make_scores
from friction_kernels.graph.torch_modes import refuse_second_derivative, uncompiled
from friction_kernels.graph.transition import Transition
from friction_kernels.scores.backend import Scores
from friction_kernels.scores.chunked import ChunkedScores


@dataclass(frozen=True)
class Settings:
    """How a graph is solved; see GLoss for what users may set."""

    route: Route
    solver: str = "cg"
    tol: float = 1e-5
    max_iter: int = 64
    num_iters: int = 10
    precision: str = "fp32"


@dataclass
class Report:
    """What became of a forward pass. Tensors have no dimension; on a GPU nothing waits for them."""

    route: Route
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
    report, graph = Report(settings.route), None
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        scores = make_scores(settings.route, z, inverse_sigma_squared, settings.precision)
        if settings.route.name == "dense_lu":
            assert isinstance(scores, ChunkedScores)
            graph = dense_lu.solve(scores, targets, forward.error_of, settings.tol)
    if graph is not None:
        report.residual, report.unreached = graph.residual, graph.residual.new_zeros(())
        f = _DenseLU.apply(z, inverse_sigma_squared, graph)  # type: ignore[no-untyped-call]
        return f, report
    if settings.route.name == "dense_lu":
        reason = "LU factors of the whole graph did not reach tol"
        report.route = replace(settings.route, name="exp_domain", reason=reason)
    f = _Propagation.apply(  # type: ignore[no-untyped-call]
        z, inverse_sigma_squared, targets, scores, settings, report
    )
    return f, report


def _gradient_of_scale(z: Tensor, grad_z: Tensor, inverse_sigma_squared: Tensor) -> Tensor:
    # dL/d(1/sigma^2) = sum_ij M_ij z_i . z_j, and grad_z_i = sum_j (M_ij + M_ji) z_j / sigma^2
    return (z * grad_z).sum() / (2 * inverse_sigma_squared)


class _DenseLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, inverse_sigma_squared: Tensor, graph: dense_lu.Solved
    ) -> Tensor:
        ctx.save_for_backward(z, inverse_sigma_squared)
        ctx.graph = graph
        return graph.f[len(z) - len(graph.image) :]

    @staticmethod
    @uncompiled
    def backward(ctx: Any, grad_f: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("label propagation")
        z, inverse_sigma_squared = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            grad_z = dense_lu.gradient(ctx.graph, z, inverse_sigma_squared, grad_f)
            grad_scale = None
            if ctx.needs_input_grad[1]:
                grad_scale = _gradient_of_scale(z, grad_z, inverse_sigma_squared)
        return grad_z, grad_scale, None


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        inverse_sigma_squared: Tensor,
        targets: Tensor,
        scores: Scores,
        settings: Settings,
        report: Report,
    ) -> Tensor:
        with torch.autocast(z.device.type, enabled=False):
            transition = Transition(scores, len(targets))
            if settings.route.transition_dtype is not None:
                transition.store(settings.route.transition_dtype)
            b = transition.from_labels(targets)
            if settings.solver == "iterate":
                states = forward.iterate(transition, b, settings.num_iters)
                residual = forward.size_of(transition.times(states[-1]) + b - states[-1])
                lost = states[-1].sum(dim=1) <= torch.finfo(b.dtype).tiny
                report.iterations, f = settings.num_iters, states[-1]
            else:
                solution, unreached, ctx.factors = forward.solve(
                    transition, b, settings.tol, settings.max_iter, settings.route.factorises
                )
                states, f = [solution.values, solution.image], solution.values
                residual = forward.size_of(solution.image - solution.values)
                # A row's exact sum is one. Where it is far from that, its values mean nothing.
                lost = ~((f.sum(dim=1) - 1).abs() < 0.5)
                report.iterations = solution.iterations
                if unreached is not None:
                    forward.warn_of_unreached(int(unreached.sum()), len(unreached))
                if not solution.error <= settings.tol:
                    forward.warn_of_error(solution, residual, lost, settings.tol)
            report.residual, report.unreached = residual, lost.sum()
            ctx.transition, ctx.states, ctx.settings = transition, states, settings
            ctx.save_for_backward(z, inverse_sigma_squared, targets, lost)
            return f.masked_fill(lost[:, None], 1 / targets.shape[1])

    @staticmethod
    @uncompiled
    def backward(ctx: Any, grad_f: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("label propagation")
        z, inverse_sigma_squared, targets, lost = ctx.saved_tensors
        transition, settings = ctx.transition, ctx.settings
        with torch.autocast(z.device.type, enabled=False):
            grad_f = grad_f.masked_fill(lost[:, None], 0)
            if settings.solver == "iterate":
                adjoints = adjoint.steps(transition, grad_f, settings.num_iters)
            else:
                adjoints = [
                    adjoint.solve(
                        transition, grad_f, lost, ctx.factors, settings.tol, settings.max_iter
                    )
                ]
            terms = adjoint.terms(transition, targets, ctx.states, adjoints)
            grad_z, _ = transition.scores.gradient(terms)
            grad_scale = None
            if ctx.needs_input_grad[1]:
                grad_scale = _gradient_of_scale(z, grad_z, inverse_sigma_squared)
        return grad_z, grad_scale, None, None, None, None
