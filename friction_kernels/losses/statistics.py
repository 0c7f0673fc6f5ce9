"""What a call of GLoss did."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class GLossStats:
    """What the last call did. Tensors have no dimension and stay on their device until they are read."""

    iterations: int | Tensor  # of the solver; 0 where the system was factorised
    residual: Tensor  # max_i sum_c |T F - F|_ic over the unlabelled nodes
    accuracy: Tensor  # share of the scored nodes whose largest F is that of their label
    num_nodes: int
    num_labelled: int | Tensor
    num_scored: int | Tensor  # unlabelled nodes whose label is known: those in the loss
    num_unreached: Tensor  # unlabelled nodes that no labelled node reaches: their rows are uniform
