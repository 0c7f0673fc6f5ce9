"""G-Loss's equations in plain torch with autograd, one commented line each: reference and test oracle.

Every function stores N x N matrices. Nodes are ordered: the first `num_labelled` rows of `embeddings`
have labels (set L); those of the others (set U) are to be recovered.
Source: Sharma, Agarwal, Kumar, arXiv 2604.25853, and its authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor


def normalize(embeddings: Tensor) -> Tensor:
    """embeddings (N, d) -> rows of unit length, in at least float32."""
    e = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    e = e / e.detach().abs().amax(dim=1, keepdim=True)  # prevents over- and underflow of squares
    z: Tensor = e / e.norm(dim=1, keepdim=True)  # z_i <- z_i / |z_i|
    return z


def transition(embeddings: Tensor, sigma: float | Tensor) -> Tensor:
    """T (N, N) as published. Its weights underflow for sigma below 0.03; in float32, below 0.14."""
    z = normalize(embeddings)
    # |z_i - z_j|^2; its square root would have infinite slope at 0
    squared = (2 - 2 * z @ z.T).clamp_min(0)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    w = torch.exp(-squared / (2 * sigma**2)).masked_fill(itself, 0)  # W_ij, W_ii = 0
    s = w.sum(dim=1) ** -0.5  # deg^(-1/2)
    s_matrix = s[:, None] * w * s[None, :]  # S = D^(-1/2) W D^(-1/2)
    by_column = s_matrix / s_matrix.sum(dim=0, keepdim=True)  # columns sum to one
    return by_column / by_column.sum(dim=1, keepdim=True)  # T: rows sum to one


def log_transition(embeddings: Tensor, sigma: float | Tensor) -> Tensor:
    """The same T as a row softmax of logarithms, valid for any sigma."""
    z = normalize(embeddings)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    x = ((z @ z.T) / sigma**2).masked_fill(itself, -torch.inf)  # log W_ij + 1 / sigma^2
    log_degree = x.logsumexp(dim=1)  # log deg_i
    log_u = (x - log_degree[:, None] / 2).logsumexp(dim=0)  # log u_j, u = W deg^(-1/2)
    return torch.softmax(x - log_u[None, :], dim=1)  # T_ij = softmax_j(x_ij - log u_j)


def harmonic(transition: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """F_U (N - num_labelled, C) for labels (num_labelled,): the limit of propagation."""
    y, t_ul, t_uu = _blocks(transition, labels, num_classes)
    identity = torch.eye(len(t_uu), dtype=t_uu.dtype, device=t_uu.device)
    f: Tensor = torch.linalg.solve(identity - t_uu, t_ul @ y)  # F_U = (I - T_UU)^(-1) T_UL Y_L
    return f


def iterate(transition: Tensor, labels: Tensor, num_classes: int, num_iters: int) -> Tensor:
    """F_U (N - num_labelled, C) after `num_iters` steps of propagation from F_U = 0 (our initial value)."""
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
    """The loss of the authors' code: F_U are the logits. labels (N - num_labelled,)."""
    return torch.nn.functional.cross_entropy(f, labels, class_weight)  # mean over U, weighted


def log_loss(f: Tensor, labels: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """The loss printed in the paper: -log F_U[i, y_i], averaged likewise."""
    return torch.nn.functional.nll_loss(f.log(), labels, class_weight)  # mean over U, weighted
