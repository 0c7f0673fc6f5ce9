"""Solvers of v = A v + b for a transition A within U, all columns at once.

The rows of A = T_UU sum to at most one. A is self-adjoint in the inner product with the weights pi, where
pi_i T_ij = pi_j T_ji; for its transpose the weights are 1 / pi. So conjugate gradients apply to the unknowns
themselves: neither the similar symmetric matrix q W q nor its unknowns F / sqrt(pi) are ever formed.

At small sigma pi spans hundreds of orders of magnitude, and conjugate gradients then see only the nodes
with large weight. Convergence is therefore measured without weights. If it stalls, plain propagation
continues from the best point: |T_UU| <= 1 in the maximum norm (its transpose in the sum norm), so its error
never grows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from friction_kernels.graph.constants import ROUNDING, STALLED_AFTER

Product = Callable[[Tensor], Tensor]
Error = Callable[[Tensor, Tensor], Tensor]
Factors = tuple[Tensor, Tensor]  # LU of I - A


class Solution(NamedTuple):
    values: Tensor  # v (M, K)
    image: Tensor  # A v + b (M, K)
    error: float  # as returned by `measure`
    iterations: int


def solve(
    times: Product, b: Tensor, log_weight: Tensor, measure: Error, tol: float, max_iter: int
) -> Solution:
    """Conjugate gradients, then plain propagation, until the error is at most tol.

    times: v -> A v; b: (M, K); log_weight: (M,), log pi; measure: (A v + b - v, v) -> (), the error.
    The host waits for one number per iteration.
    """
    values, iterations = conjugate_gradients(times, b, log_weight, measure, tol, max_iter)
    while True:
        image = times(values).add_(b)
        residual = image - values
        error = float(measure(residual, values))
        if error <= tol or iterations >= max_iter or _is_rounding(residual, values):
            return Solution(values, image, error, iterations)
        values = image
        iterations += 1


def conjugate_gradients(
    times: Product, b: Tensor, log_weight: Tensor, measure: Error, tol: float, max_iter: int
) -> tuple[Tensor, int]:
    """Return (the best v found, iterations). A column with zero residual stops changing."""
    weight = (log_weight - log_weight.max()).exp_()[:, None]

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (weight * x * y).sum(dim=0)

    v, residual, direction = torch.zeros_like(b), b.clone(), b
    squared = dot(residual, residual)
    best, best_error, best_iteration, iteration = v.clone(), torch.inf, 0, 0
    while True:
        error = float(measure(residual, v))
        if error < best_error:
            best, best_error, best_iteration = v.clone(), error, iteration
        if error <= tol or iteration >= min(max_iter, best_iteration + STALLED_AFTER):
            return best, iteration
        image = direction - times(direction)
        curvature = dot(direction, image)
        step = torch.where(curvature > 0, squared / curvature, 0)
        v += step * direction
        residual -= step * image
        previous, squared = squared, dot(residual, residual)
        direction = residual + torch.where(previous > 0, squared / previous, 0) * direction
        iteration += 1


def _is_rounding(residual: Tensor, values: Tensor) -> bool:
    """Whether the residual is within rounding, so that further steps cannot improve the values."""
    floor: float = ROUNDING * torch.finfo(values.dtype).eps * float(values.abs().max())
    return float(residual.abs().max()) <= floor


def factorise(matrix: Tensor) -> Factors:
    """The LU factors of I - A, for `solve_directly`."""
    minus = matrix.neg()
    minus.diagonal().add_(1)
    factors, pivots, _ = torch.linalg.lu_factor_ex(minus)  # `error` will reveal a zero pivot
    return factors, pivots


def solve_directly(factors: Factors, times: Product, b: Tensor, measure: Error) -> Solution:
    """Compute v = (I - A)^(-1) b and its error from the LU factors of I - A."""
    values = torch.linalg.lu_solve(*factors, b)
    image = times(values).add_(b)
    return Solution(values, image, float(measure(image - values, values)), 0)
