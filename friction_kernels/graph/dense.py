"""G-Loss's equations in plain torch with autograd, one commented line each: reference and oracle.

Everything here stores N x N matrices. Nodes are ordered: the first `num_labelled` rows of `embeddings`
carry labels (set L), the others are to be recovered (set U).
Source: Sharma, Agarwal, Kumar, arXiv 2604.25853, and its authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalize(embeddings: Tensor) -> Tensor:
    """embeddings (N, d) -> rows of length one, in float32 at least."""
    e = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    e = e / e.detach().abs().amax(
        dim=1, keepdim=True
    )  # so that squares neither over- nor underflow
    z: Tensor = e / e.norm(dim=1, keepdim=True)  # z_i <- z_i / |z_i|
    return z


def transition(embeddings: Tensor, sigma: float | Tensor) -> Tensor:
    """T (N, N) as published, weights and all: for sigma below 0.03 they underflow, in float32 below 0.14."""
    z = normalize(embeddings)
    squared = (2 - 2 * z @ z.T).clamp_min(
        0
    )  # |z_i - z_j|^2; no square root, whose slope is infinite at 0
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    w = torch.exp(-squared / (2 * sigma**2)).masked_fill(itself, 0)  # W_ij, W_ii = 0
    s = w.sum(dim=1) ** -0.5  # deg^(-1/2)
    s_matrix = s[:, None] * w * s[None, :]  # S = D^(-1/2) W D^(-1/2)
    by_column = s_matrix / s_matrix.sum(dim=0, keepdim=True)  # columns sum to one
    return by_column / by_column.sum(dim=1, keepdim=True)  # T: rows sum to one


def log_transition(embeddings: Tensor, sigma: float | Tensor) -> Tensor:
    """The same T as a row softmax of logarithms: it holds at any sigma."""
    z = normalize(embeddings)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    x = ((z @ z.T) / sigma**2).masked_fill(itself, -torch.inf)  # log W_ij + 1 / sigma^2
    log_degree = x.logsumexp(dim=1)  # log deg_i
    log_u = (x - log_degree[:, None] / 2).logsumexp(dim=0)  # log u_j, u = W deg^(-1/2)
    return torch.softmax(x - log_u[None, :], dim=1)  # T_ij = softmax_j(x_ij - log u_j)


def harmonic(transition: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """F_U (N - num_labelled, C) of labels (num_labelled,): what propagation converges to."""
    y, t_ul, t_uu = _blocks(transition, labels, num_classes)
    identity = torch.eye(len(t_uu), dtype=t_uu.dtype, device=t_uu.device)
    f: Tensor = torch.linalg.solve(identity - t_uu, t_ul @ y)  # F_U = (I - T_UU)^(-1) T_UL Y_L
    return f


def iterate(transition: Tensor, labels: Tensor, num_classes: int, num_iters: int) -> Tensor:
    """F_U (N - num_labelled, C) after `num_iters` steps of propagation from F_U = 0 (our choice of start)."""
    y, t_ul, t_uu = _blocks(transition, labels, num_classes)
    f = y.new_zeros(len(t_uu), num_classes)
    for _ in range(num_iters):
        f = t_uu @ f + t_ul @ y  # F_U <- T_UU F_U + T_UL Y_L
    return f


def _blocks(transition: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    n = len(labels)
    y = torch.nn.functional.one_hot(labels.long(), num_classes).to(transition.dtype)  # Y_L
    return y, transition[n:, :n], transition[n:, n:]


def official_loss(f: Tensor, labels: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """What the authors' code computes: F_U are the logits. labels (N - num_labelled,)."""
    return torch.nn.functional.cross_entropy(f, labels, class_weight)  # mean over U, weighted


def log_loss(f: Tensor, labels: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """What the paper prints: -log F_U[i, y_i], averaged likewise."""
    return torch.nn.functional.nll_loss(f.log(), labels, class_weight)  # mean over U, weighted
