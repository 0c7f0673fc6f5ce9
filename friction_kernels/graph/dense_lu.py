"""Harmonic propagation with whole matrices and LU factors, in few operators.

Up to a few hundred nodes, calling an operator costs more than its computation. So T is formed, I - T_UU is
factorised, and the gradient of `harmonic` uses whole matrices: about 40 operators forward and backward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from friction_kernels.graph import solvers
from friction_kernels.scores.chunked import ChunkedScores


@dataclass
class Solved:
    """The solution of a graph whose first nodes are labelled."""

    scores: ChunkedScores
    weights: Tensor  # W (N, N), zero on the diagonal
    degree: Tensor  # (N,)
    u: Tensor  # W deg^(-1/2) (N,)
    transition: Tensor  # the rows of T for U (M, N)
    factors: solvers.Factors  # LU of I - T_UU
    f: Tensor  # [Y_L; F_U] (N, C)
    f_u: Tensor
    image: Tensor  # T f on U (M, C)
    residual: Tensor  # ()
    iterations: int = 0

    @property
    def unreached(self) -> Tensor:
        return self.residual.new_zeros(())

    def gradient(self, grad_f: Tensor) -> Tensor:
        """dL/dz (N, d) from dL/dF_U; see `harmonic` for the equations."""
        n = len(self.f) - len(grad_f)
        adjoint = torch.linalg.lu_solve(*self.factors, grad_f, adjoint=True)
        d = adjoint @ self.f.T
        d -= (adjoint * self.image).sum(dim=1, keepdim=True)
        d *= self.transition  # dL/d(x_ij - log u_j)
        per_u = d.sum(dim=0).neg_().div_(self.u)  # dL/dlog u_i / u_i
        root = self.degree.rsqrt()
        per_degree = torch.mv(self.weights, per_u).mul_(root).div_(self.degree).mul_(-0.5)
        m = torch.outer(per_u, root).add_(per_degree[:, None]).mul_(self.weights)
        m[n:] += d  # dL/dx_ij
        return torch.mm(m + m.T, self.scores.queries).mul_(self.scores.scale)


def solve(
    scores: ChunkedScores, targets: Tensor, error_of: solvers.Error, tol: float
) -> Solved | None:
    """Solve a graph, or return None if LU factors miss `tol`, as when labels do not reach all nodes."""
    n, everything = len(targets), range(len(scores.queries))
    weights = scores.tile(everything, everything)
    degree = weights.sum(dim=1)
    u = torch.mv(weights, degree.rsqrt())
    transition = weights[n:] / u  # T_ij = W_ij / u_j, before its rows are divided by their sums
    transition /= transition.sum(dim=1, keepdim=True)
    factors = solvers.factorise(transition[:, n:])
    f_u = torch.linalg.lu_solve(*factors, transition[:, :n] @ targets)
    f = torch.cat((targets, f_u))
    image = transition @ f
    residual = image - f_u
    if not float(error_of(residual, f_u)) <= tol:
        return None
    residual = residual.abs().sum(dim=1).max()
    return Solved(scores, weights, degree, u, transition, factors, f, f_u, image, residual)
