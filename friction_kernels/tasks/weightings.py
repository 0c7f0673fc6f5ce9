"""Weightings of tasks: functions of the Gram matrix of their gradients.

A weighting takes the Gram matrix G (T, T), float64, and returns the weights w (T,); the combined gradient is
sum_i w_i g_i. Whatever is a function of inner products can be written so, with a dot product of gradients as
an element of G. These read no number back from a GPU. Gradients whose squares underflow (lists.gram) count as
zeros in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Weighting = Callable[[Tensor], Tensor]


def cosines(gramian: Tensor) -> Tensor:
    """The cosines (T, T) between gradients: G_ij / sqrt(G_ii G_jj), and 0 for a gradient of zeros."""
    norms = gramian.diagonal().sqrt()
    scale = norms[:, None] * norms
    return torch.where(scale == 0, 0.0, gramian / scale)


def mean() -> Weighting:
    """The mean of the gradients: w_i = 1/T."""

    def weights(gramian: Tensor) -> Tensor:
        return torch.full_like(gramian[0], 1 / len(gramian))

    return weights


def cosine(strength: float = 1.0) -> Weighting:
    """More weight for tasks whose gradients agree with the others'.

    With a_i the mean of the cosines between task i and each other task:

        w = softmax(strength * a)

    The weights add up to 1; strength 0 is the mean. arXiv 2412.06249 aligns tasks by the loss
    1 - cos(g_1, g_2), which would need derivatives of gradients. Weighting by these cosines instead is
    this library's choice.

    Args:
        strength: how much agreement counts (default 1.0). Negative: disagreement counts.

    Raises:
        ValueError: strength is not finite.
    """
    if not math.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")

    def weights(gramian: Tensor) -> Tensor:
        others = max(len(gramian) - 1, 1)
        agreement = cosines(gramian).fill_diagonal_(0).sum(1) / others
        return torch.softmax(strength * agreement, 0)

    return weights


def pcgrad(generator: torch.Generator | None = None) -> Weighting:
    """PCGrad (arXiv 2001.06782): each gradient is projected off those it conflicts with, then all are added.

    Equals, on gradients as flat vectors and with a random order for each task:

        total = 0
        for i in range(T):
            g = gradients[i]
            for j in order_i:  # of all tasks but i
                dot = g @ gradients[j]
                if dot < 0:
                    g = g - dot / (gradients[j] @ gradients[j]) * gradients[j]
            total = total + g

    A projected gradient is a combination of all gradients, so its products are known from G. It is a sum,
    as published: without conflicts, every weight is 1.

    Args:
        generator: draws the orders, on the CPU (default None: a new one, seeded with 0). Processes that
            train one model together must draw the same orders: give each a generator of the same seed.
    """
    drawn_by = torch.Generator().manual_seed(0) if generator is None else generator

    def weights(gramian: Tensor) -> Tensor:
        count = len(gramian)
        rows = torch.eye(count, dtype=gramian.dtype, device=gramian.device)
        for i, row in enumerate(rows):
            for j in torch.randperm(count, generator=drawn_by, device="cpu").tolist():
                if j != i:
                    square = gramian[j, j]
                    conflict = (gramian[j] @ row).clamp(max=0)
                    row[j] -= torch.where(square == 0, 0.0, conflict / square)
        return rows.sum(0)

    return weights


def mgda_two() -> Weighting:
    """MGDA for two tasks (arXiv 1810.04650): the shortest convex combination of their gradients.

    Equals, on gradients as flat vectors:

        gamma = clamp((g2 @ (g2 - g1)) / (g1 - g2).square().sum(), 0, 1)
        w = [gamma, 1 - gamma]

    Equal gradients have equal weights. The weights add up to 1. Another number of tasks is a ValueError in
    combine().
    """

    def weights(gramian: Tensor) -> Tensor:
        if len(gramian) != 2:
            raise ValueError(
                f"mgda_two is the closed form for two tasks, got {len(gramian)}; use a solver, such as "
                "torchjd's MGDAWeighting"
            )
        (first, product), (_, second) = gramian
        distance = first - 2 * product + second
        share = ((second - product) / distance).clamp(0, 1)
        share = torch.where(distance <= 0, 0.5, share)
        return torch.stack([share, 1 - share])

    return weights
