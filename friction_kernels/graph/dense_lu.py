"""Harmonic propagation with whole matrices and LU factors, in few operators.

Up to some hundred nodes an operator costs more to call than to compute. So T is formed, I - T_UU
factorised, and the gradient of `harmonic` written with whole matrices: about 40 operators for both ways.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from friction_kernels.graph import solvers
from friction_kernels.scores.chunked import ChunkedScores


class Solved(NamedTuple):
    """A graph whose first len(targets) nodes are labelled."""

    weights: Tensor  # W (N, N), zero on the diagonal
    degree: Tensor  # (N,)
    u: Tensor  # W deg^(-1/2) (N,)
    transition: Tensor  # T's rows of U (M, N)
    factors: solvers.Factors  # LU of I - T_UU
    f: Tensor  # [Y_L; F_U] (N, C)
    image: Tensor  # T f on U (M, C)
    residual: Tensor  # ()


def solve(
    weights_of: ChunkedScores, targets: Tensor, error_of: solvers.Error, tol: float
) -> Solved | None:
    """None where LU factors do not reach `tol`, as where no label reaches some nodes."""
    n, everything = len(targets), range(len(weights_of.queries))
    weights = weights_of.tile(everything, everything)
    degree = weights.sum(dim=1)
    u = torch.mv(weights, degree.rsqrt())
    transition = weights[n:] / u  # T_ij = W_ij / u_j, but for its rows' sums
    transition /= transition.sum(dim=1, keepdim=True)
    factors = solvers.factorise(transition[:, n:])
    f_u = torch.linalg.lu_solve(*factors, transition[:, :n] @ targets)
    f = torch.cat((targets, f_u))
    image = transition @ f
    residual = image - f_u
    if not float(error_of(residual, f_u)) <= tol:
        return None
    residual = residual.abs().sum(dim=1).max()
    return Solved(weights, degree, u, transition, factors, f, image, residual)


def gradient(graph: Solved, z: Tensor, inverse_sigma_squared: Tensor, grad_f: Tensor) -> Tensor:
    """dL/dz (N, d) of dL/dF_U; `harmonic` has the equations."""
    n = len(z) - len(grad_f)
    adjoint = torch.linalg.lu_solve(*graph.factors, grad_f, adjoint=True)
    d = adjoint @ graph.f.T
    d -= (adjoint * graph.image).sum(dim=1, keepdim=True)
    d *= graph.transition  # dL/d(x_ij - log u_j)
    per_u = d.sum(dim=0).neg_().div_(graph.u)  # dL/dlog u_i / u_i
    root = graph.degree.rsqrt()
    per_degree = torch.mv(graph.weights, per_u).mul_(root).div_(graph.degree).mul_(-0.5)
    m = torch.outer(per_u, root).add_(per_degree[:, None]).mul_(graph.weights)
    m[n:] += d  # dL/dx_ij
    return torch.mm(m + m.T, z).mul_(inverse_sigma_squared)
