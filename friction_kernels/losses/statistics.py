"""Statistics of a call of GLoss."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from friction_kernels.graph.route import Route


@dataclass(frozen=True)
class GLossStats:
    """Statistics of the last call of GLoss. Tensors are scalars and stay on their device until read.

    Attributes:
        iterations: of the solver; 0 if the system was factorised.
        residual: max_i sum_c |T F - F|_ic over the unlabelled nodes.
        accuracy: fraction of the scored nodes whose largest F is that of their label.
        num_nodes: nodes of the graph.
        num_labelled: nodes that kept their label.
        num_scored: unlabelled nodes with a known label, over which the loss is computed.
        num_unreached: unlabelled nodes that no labelled node reaches; their rows of F are uniform.
        route: how the graph was computed: its `name`, the `reason`, and what was `stored` between passes;
            None if there was no graph.
    """

    iterations: int | Tensor
    residual: Tensor
    accuracy: Tensor
    num_nodes: int
    num_labelled: int | Tensor
    num_scored: int | Tensor
    num_unreached: Tensor
    route: Route | None = None
