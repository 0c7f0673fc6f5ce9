"""The backward pass from dL/dF_U to the terms of dL/dx; see `harmonic` for the equations."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from friction_kernels.graph import solvers
from friction_kernels.graph.forward import without
from friction_kernels.graph.transition import Transition
from friction_kernels.scores.backend import Term
from friction_kernels.warn import warn


def steps(transition: Transition, grad_f: Tensor, num_iters: int) -> list[Tensor]:
    """dL/dF_U after 1, ..., num_iters steps."""
    adjoints = [grad_f]
    for _ in range(num_iters - 1):
        adjoints.append(transition.transposed_times(adjoints[-1]))
    return adjoints[::-1]


def solve(
    transition: Transition,
    grad_f: Tensor,
    lost: Tensor,
    factors: solvers.Factors | None,
    tol: float,
    max_iter: int,
) -> Tensor:
    """l = (I - T_UU)^(-T) dL/dF_U. lost: bool (M,), rows of F that are constant."""
    if factors is not None:
        adjoint: Tensor = torch.linalg.lu_solve(*factors, grad_f, adjoint=True)
        return adjoint
    smallest = torch.finfo(grad_f.dtype).tiny

    def size(values: Tensor) -> Tensor:
        """The largest sum over nodes of any class, a norm that T^T does not increase."""
        return values.abs().sum(dim=0).max()

    def error(residual: Tensor, adjoint: Tensor) -> Tensor:
        return size(residual) / size(adjoint).maximum(size(grad_f)).clamp_min(smallest)

    times = without(lost, transition.transposed_times)  # constants propagate no gradient
    log_weight = (-transition.log_weight).masked_fill_(lost, -torch.inf)
    solution = solvers.solve(times, grad_f, log_weight, error, tol, max_iter)
    if not solution.error <= tol:
        warn(
            f"the gradient of label propagation did not converge: relative residual "
            f"{solution.error:.1e} after {solution.iterations} iterations, tol={tol:g}; "
            "raise max_iter or sigma, or label more nodes"
        )
    return solution.values


def terms(
    transition: Transition, targets: Tensor, states: list[Tensor], adjoints: list[Tensor]
) -> tuple[Term, Term, Term]:
    """The terms of T, P and Q.

    states: F_U before the first step, after it, ...; adjoints: dL/dF_U after the first step, ...
    """
    before, after = states[: len(adjoints)], states[1:]
    left = torch.cat(adjoints, dim=1)
    right = torch.cat([torch.cat((targets, state)) for state in before], dim=1)
    delta = reduce(
        torch.add,
        ((adjoint * state).sum(dim=1) for adjoint, state in zip(adjoints, after, strict=True)),
    )
    pulled = transition.transposed_to_all(torch.cat((left, delta[:, None]), dim=1))
    of_log_u = pulled[:, -1] - (pulled[:, :-1] * right).sum(dim=1)

    log_degree, log_u, log_r = transition.normalisers
    everything = transition.everything
    of_log_degree = transition.scores.apply(
        everything, everything, log_degree / -2, -log_u, of_log_u[:, None]
    )[:, 0].div_(-2)
    # transposed_to_all used T with its rows divided by their sums; the scores' pass does not divide.
    left, delta = left * transition.row_factor, delta * transition.row_factor[:, 0]
    left = torch.cat((left.new_zeros(len(targets), left.shape[1]), left))
    delta = torch.cat((delta.new_zeros(len(targets)), delta))
    return (
        Term(-log_r, -log_u, -delta, left, right),
        Term(-log_u, log_degree / -2, of_log_u),
        Term(-log_degree, torch.zeros_like(log_degree), of_log_degree),
    )
