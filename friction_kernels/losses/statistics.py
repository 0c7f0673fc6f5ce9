"""What a call of GLoss did."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from friction_kernels.graph.route import Route


@dataclass(frozen=True)
class GLossStats:
    """What the last call of GLoss did. Tensors have no dimension and stay on their device until read.

    Attributes:
        iterations: of the solver; 0 where the system was factorised.
        residual: max_i sum_c |T F - F|_ic over the unlabelled nodes.
        accuracy: share of the scored nodes whose largest F is that of their label.
        num_nodes: nodes of the graph.
        num_labelled: nodes that kept their label.
        num_scored: unlabelled nodes whose label is known: those in the loss.
        num_unreached: unlabelled nodes that no labelled node reaches: their rows are uniform.
        route: how the graph was computed: its `name`, the `reason`, and what was `stored` between passes;
            None where there was no graph.
    """

    iterations: int | Tensor
    residual: Tensor
    accuracy: Tensor
    num_nodes: int
    num_labelled: int | Tensor
    num_scored: int | Tensor
    num_unreached: Tensor
    route: Route | None = None
