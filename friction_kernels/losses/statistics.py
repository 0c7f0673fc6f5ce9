"""What a call of GLoss did."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from friction_kernels.graph.forward import warn_of_unreached
from friction_kernels.graph.route import Route
from friction_kernels.warn import warn


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


class FusedStats:
    """The statistics of one launch, for which nothing waits until they are read."""

    def __init__(self, statistics: Tensor, labelled: Tensor, route: Route):
        self._statistics = statistics  # (7,), those of friction_triton.batch.batch_gloss
        self._labelled = labelled  # bool (N,)
        self._route = route

    def read(self) -> GLossStats:
        iterations, residual, num_right, num_scored, num_unreached, *_ = self._statistics
        return GLossStats(
            iterations=iterations,
            residual=residual,
            accuracy=num_right / num_scored,
            num_nodes=len(self._labelled),
            num_labelled=self._labelled.sum(),
            num_scored=num_scored,
            num_unreached=num_unreached,
            route=self._route,
        )

    def warn(self, tol: float) -> None:
        """Warn of a solve that did not converge, or of nodes out of reach. Waits for the device."""
        iterations, residual, _, _, num_unreached, error, of_adjoint = self._statistics.tolist()
        if not (error <= tol and of_adjoint <= tol):
            warn(
                f"label propagation did not converge: residual {residual:.1e}, of its gradient "
                f"{of_adjoint:.1e}, after {iterations:.0f} iterations, tol={tol:g}; "
                f"{num_unreached:.0f} rows of F do not sum to 1, and are uniform; raise max_iter or "
                "sigma, or label more nodes"
            )
        elif num_unreached:
            warn_of_unreached(int(num_unreached), int((~self._labelled).sum()))
