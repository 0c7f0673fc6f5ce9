"""Harmonic label propagation and its gradient, using the passes of any `scores.backend.Scores`.

Forward, with labelled nodes first: F_U = (I - T_UU)^(-1) T_UL Y_L, or num_iters steps of
F_U <- T_UU F_U + T_UL Y_L from F_U = 0. With Fbar = [Y_L; F_U], both are rows of T Fbar.

Backward, with g = dL/dF_U. The adjoint l = (I - T_UU)^(-T) g on U and 0 on L gives dL/dT_ij = l_i . Fbar_j.
(For steps, sum such terms over steps, where the l of a step is T_UU^T times that of the next.) T is a row
softmax of x_ij - log u_j. With delta_i = l_i . (T Fbar)_i, which is exact even for an unconverged F,

    D_ij = T_ij (l_i . Fbar_j - delta_i)                              dL/d(x_ij - log u_j)
    dL/dlog u_j = -sum_i D_ij = (T^T delta)_j - Fbar_j . (T^T l)_j
    dL/dlog deg_j = -1/2 sum_i P_ij dL/dlog u_i                       log u_i = LSE_j(x_ij - log deg_j / 2)
    dL/dx_ij = D_ij + P_ij dL/dlog u_i + Q_ij dL/dlog deg_i

One pass computes dL/dz from these three terms. No denominator can become small, and any sigma is valid.
`transition` defines T, P and Q.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from friction_kernels.graph import adjoint, dense_lu, forward
from friction_kernels.graph.route import Route, Settings, make_scores
from friction_kernels.graph.solvers import Factors
from friction_kernels.graph.torch_modes import uncompiled
from friction_kernels.graph.transition import Transition
from friction_kernels.scores.backend import Scores
from friction_kernels.scores.chunked import ChunkedScores
from friction_kernels.scores.derivatives import refuse_second_derivative


@dataclass(frozen=True)
class Report:
    """The outcome of a forward pass. Tensors are scalars; the host does not wait for a GPU."""

    route: Route
    iterations: int
    residual: Tensor  # max_i sum_c |T Fbar - F|_ic on U
    unreached: Tensor  # the number of rows of F that were set to uniform


def propagate(
    z: Tensor, inverse_sigma_squared: Tensor, targets: Tensor, settings: Settings, route: Route
) -> tuple[Tensor, Report]:
    """Return F_U (N - num_labelled, C), differentiable in z and 1 / sigma^2, and a report of the solve.

    z: (N, d), float32 or float64, rows of unit length, labelled nodes first; inverse_sigma_squared: ();
    targets: Y_L (num_labelled, C), one-hot. Rows of F that no label reaches are uniform and have no gradient.
    """
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        scores = make_scores(route, z, inverse_sigma_squared, settings.precision)
        solved: dense_lu.Solved | Solved | None = None
        if route.name == "dense_lu":
            assert isinstance(scores, ChunkedScores)
            solved = dense_lu.solve(scores, targets, forward.error_of, settings.tol)
            if solved is None:
                reason = "LU factors of the whole graph did not reach tol"
                route = replace(route, name="exp_domain", reason=reason)
        if solved is None:
            solved = _solve(scores, targets, settings, route)
    f: Tensor = _Propagation.apply(z, inverse_sigma_squared, solved)  # type: ignore[no-untyped-call]
    return f, Report(route, solved.iterations, solved.residual, solved.unreached)


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, inverse_sigma_squared: Tensor, solved: dense_lu.Solved | Solved
    ) -> Tensor:
        ctx.save_for_backward(z, inverse_sigma_squared)
        ctx.solved = solved
        return solved.f_u.detach()  # avoids a reference cycle through ctx

    @staticmethod
    @uncompiled
    def backward(ctx: Any, grad_f: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("label propagation")
        z, inverse_sigma_squared = ctx.saved_tensors
        with torch.autocast(z.device.type, enabled=False):
            grad_z, grad_scale = ctx.solved.gradient(grad_f), None
            if ctx.needs_input_grad[1]:
                # dL/d(1/sigma^2) = sum_ij M_ij z_i . z_j; grad_z_i = sum_j (M_ij + M_ji) z_j / sigma^2
                grad_scale = (z * grad_z).sum() / (2 * inverse_sigma_squared)
        return grad_z, grad_scale, None


@dataclass
class Solved:
    """A graph solved by passes over tiles."""

    transition: Transition
    targets: Tensor
    settings: Settings
    states: list[Tensor]  # F_U before the differentiated steps, and after each of them
    factors: Factors | None
    iterations: int
    residual: Tensor
    lost: Tensor  # bool (M,): rows of F that were set to uniform
    f_u: Tensor

    @property
    def unreached(self) -> Tensor:
        return self.lost.sum()

    def gradient(self, grad_f: Tensor) -> Tensor:
        """dL/dz from dL/dF_U."""
        transition, settings = self.transition, self.settings
        grad_f = grad_f.masked_fill(self.lost[:, None], 0)
        if settings.solver == "iterate":
            adjoints = adjoint.steps(transition, grad_f, settings.num_iters)
        else:
            adjoints = [
                adjoint.solve(
                    transition, grad_f, self.lost, self.factors, settings.tol, settings.max_iter
                )
            ]
        terms = adjoint.terms(transition, self.targets, self.states, adjoints)
        return transition.scores.gradient(terms)[0]


def _solve(scores: Scores, targets: Tensor, settings: Settings, route: Route) -> Solved:
    transition, factors = Transition(scores, len(targets)), None
    if route.transition_dtype is not None:
        transition.store(route.transition_dtype)
    b = transition.from_labels(targets)
    if settings.solver == "iterate":
        states, iterations = forward.iterate(transition, b, settings.num_iters), settings.num_iters
        f = states[-1]
        residual = forward.size_of(transition.times(f) + b - f)
        lost = f.sum(dim=1) <= torch.finfo(b.dtype).tiny
    else:
        solution, unreached, factors = forward.solve(
            transition, b, settings.tol, settings.max_iter, route.factorises
        )
        f, iterations = solution.values, solution.iterations
        states = [f, solution.image]
        residual = forward.size_of(solution.image - f)
        # A row's exact sum is one. If its sum is far from one, its values are meaningless.
        lost = ~((f.sum(dim=1) - 1).abs() < 0.5)
        if unreached is not None:
            forward.warn_of_unreached(int(unreached.sum()), len(unreached))
        if not solution.error <= settings.tol:
            forward.warn_of_error(solution, residual, lost, settings.tol)
    f = f.masked_fill(lost[:, None], 1 / targets.shape[1])
    return Solved(transition, targets, settings, states, factors, iterations, residual, lost, f)
