"""Compute F_U from a transition matrix: by LU factors of a stored T_UU, conjugate gradients, or steps."""

from __future__ import annotations

import torch
from torch import Tensor

from friction_kernels.graph import solvers
from friction_kernels.graph.constants import MASS_TOLERANCE, ROUNDING
from friction_kernels.graph.transition import Transition
from friction_kernels.warn import warn


def iterate(transition: Transition, b: Tensor, num_iters: int) -> list[Tensor]:
    """F_U after 0, 1, ..., num_iters steps."""
    states = [torch.zeros_like(b)]
    for _ in range(num_iters):
        states.append(transition.times(states[-1]).add_(b))
    return states


def size_of(residual: Tensor) -> Tensor:
    """The largest row residual. Rows of F are distributions, so it is summed over classes."""
    return residual.abs().sum(dim=1).max()


def error_of(residual: Tensor, f: Tensor) -> Tensor:
    mass_error: Tensor = (f.sum(dim=1) - 1).abs().max() / MASS_TOLERANCE
    return torch.maximum(size_of(residual), mass_error)


def solve(
    transition: Transition, b: Tensor, tol: float, max_iter: int, factorises: bool
) -> tuple[solvers.Solution, Tensor | None, solvers.Factors | None]:
    """Return the solution; bool (M,), the unreached nodes, or None if there are none; LU factors."""
    if factorises:
        factors = solvers.factorise(transition.stored_matrix())
        solution = solvers.solve_directly(factors, transition.times, b, error_of)
        if solution.error <= tol:
            return solution, None, factors
    log_weight = transition.log_weight
    solution = solvers.solve(transition.times, b, log_weight, error_of, tol, max_iter)
    if solution.error <= tol:
        return solution, None, None
    unreached = _find_unreached(transition.times, b, max_iter)
    if not unreached.any():
        return solution, None, None
    # No solver can bring mass to these rows. Exclude them, so that the others can converge.
    times, error = without(unreached, transition.times), _error_without(unreached)
    b = b.masked_fill(unreached[:, None], 0)
    log_weight = log_weight.masked_fill(unreached, -torch.inf)
    return solvers.solve(times, b, log_weight, error, tol, max_iter), unreached, None


def _find_unreached(times: solvers.Product, b: Tensor, max_steps: int) -> Tensor:
    """bool (M,): nodes that receive no inflow from labels along any path, in b's arithmetic.

    All false if max_steps do not suffice to find them.
    """
    floor: float = ROUNDING * torch.finfo(b.dtype).eps
    inflow = b.sum(dim=1, keepdim=True)
    reached = inflow > floor
    for _ in range(max_steps):
        further = reached | (times(reached.to(b.dtype)) + inflow > floor)
        if torch.equal(further, reached):
            return ~reached[:, 0]
        reached = further
    return torch.zeros_like(reached[:, 0])


def without(nodes: Tensor, times: solvers.Product) -> solvers.Product:
    """v -> A v with the rows of these nodes, bool (M,), set to zero."""
    return lambda values: times(values).masked_fill_(nodes[:, None], 0)


def _error_without(nodes: Tensor) -> solvers.Error:
    """`error_of` for solutions that are zero at these nodes."""

    def error(residual: Tensor, f: Tensor) -> Tensor:
        mass_error = (f.sum(dim=1) - 1).masked_fill(nodes, 0).abs().max()
        return torch.maximum(size_of(residual), mass_error / MASS_TOLERANCE)

    return error


def warn_of_unreached(count: int, num_unlabelled: int) -> None:
    warn(
        f"{count} of {num_unlabelled} unlabelled nodes are reached by no labelled node: their "
        "rows of F are uniform and have no gradient; raise sigma, or label more nodes"
    )


def warn_of_error(solution: solvers.Solution, residual: Tensor, lost: Tensor, tol: float) -> None:
    num_lost, mass = int(lost.sum()), solution.values.sum(dim=1)[~lost]
    causes = []
    if num_lost:
        causes.append(f"{num_lost} of {len(lost)} rows of F do not sum to 1, and are uniform")
    if len(mass):
        causes.append(f"rows of F sum to 1 within {float((mass - 1).abs().max()):.1e}")
    warn(
        f"label propagation did not converge: residual {float(residual):.1e} after "
        f"{solution.iterations} iterations, tol={tol:g}; {'; '.join(causes)}; raise max_iter or sigma, or "
        "label more nodes"
    )
