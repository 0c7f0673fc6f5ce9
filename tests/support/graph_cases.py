"""Graphs that the tests of label propagation share."""

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from friction_kernels.graph import dense, label_propagation

GOLDEN = ("gloss_r8_n128", "gloss_r8_n128_sigma01", "gloss_r8_n512")


class Golden(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    labelled: Tensor
    num_labelled: int
    sigma: float
    class_weight: Tensor
    propagated: Tensor
    loss: float
    grad: Tensor

    @property
    def num_classes(self) -> int:
        return len(self.class_weight)


def read_golden(golden_dir, name: str) -> Golden:
    data = np.load(golden_dir / f"{name}.npz")
    labels = torch.from_numpy(data["labels"])
    num_labelled = int(data["num_labelled"])
    return Golden(
        torch.from_numpy(data["embeddings"]),
        labels,
        torch.arange(len(labels)) < num_labelled,
        num_labelled,
        float(data["sigma"]),
        torch.from_numpy(data["class_weights"]),
        torch.from_numpy(data["propagated"]),
        float(data["loss"]),
        torch.from_numpy(data["grad_embeddings"]),
    )


def relative(ours: Tensor, exact: Tensor) -> float:
    """Largest error in units of the largest number."""
    exact = exact.double()
    return ((ours.double() - exact).abs().max() / exact.abs().max()).item()


class Graph(NamedTuple):
    embeddings: Tensor  # (N, d) float64, labelled rows first
    labels: Tensor
    num_labelled: int
    num_classes: int
    sigma: float
    kind: str = ""

    @property
    def labelled(self) -> Tensor:
        return torch.arange(len(self.labels)) < self.num_labelled

    def __repr__(self) -> str:  # what hypothesis prints
        return (
            f"{self.kind} graph of {tuple(self.embeddings.shape)}, {self.num_labelled} labelled, "
            f"{self.num_classes} classes, sigma={self.sigma}"
        )


def clusters(
    num_nodes: int, dim: int, num_classes: int, *, spread: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(embeddings (N, d) float64, labels (N,)): one cluster a class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_nodes,), generator=generator)
    centres = torch.randn(num_classes, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_nodes, dim, generator=generator, dtype=torch.float64)
    return centres[labels] + spread * noise, labels


@st.composite
def graphs(draw) -> Graph:
    kind = draw(st.sampled_from(("clusters", "unrelated", "duplicates", "isolated")))
    num_nodes = draw(st.sampled_from((2, 3, 127, 128, 129, 257)))
    dim = draw(st.sampled_from((1, 17, 384, 768, 1025)))
    num_classes = draw(st.sampled_from((2, 3, 52, 333)))
    sigma = draw(st.sampled_from((0.02, 0.05, 0.1, 0.15, 0.22, 0.23, 0.3, 0.5, 1.0, 5.0, 50.0)))
    share = draw(st.sampled_from((0.0, 0.3, 0.7)))  # 0: one labelled node
    seed = draw(st.integers(0, 2**31))
    spread = 3.0 if kind == "unrelated" else 0.5
    e, labels = clusters(num_nodes, dim, num_classes, spread=spread, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    if kind == "duplicates":
        e = e[torch.randint(0, max(1, num_nodes // 3), (num_nodes,), generator=generator)]
    if kind == "isolated":  # the last row and the first, away from all others
        e[[0, -1]] = -4 * e[[0, -1]].sign() * e.abs().max()
    e = e * torch.rand(num_nodes, 1, generator=generator, dtype=torch.float64).add_(0.5)
    num_labelled = min(max(1, round(share * num_nodes)), num_nodes - 1)
    return Graph(e, labels, num_labelled, num_classes, sigma, f"{kind} (seed {seed})")


def loss_and_gradient(graph: Graph, dtype=torch.float64, device="cpu", **options):
    """(F_U, loss, dL/dembeddings, dL/dsigma, warnings)"""
    e = graph.embeddings.to(device, dtype, copy=True).requires_grad_()
    labels, labelled = graph.labels.to(device), graph.labelled.to(device)
    sigma = torch.tensor(graph.sigma, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        f = label_propagation(
            e, labels, graph.num_classes, sigma=sigma, labelled=labelled, **options
        )[graph.num_labelled :]
        loss = cross_entropy(f, labels[graph.num_labelled :])
        loss.backward()
    # Triton's interpreter lets numpy warn of what is computed where nothing is stored.
    said = [str(w.message) for w in caught if w.category is UserWarning]
    return f.detach().cpu(), loss.item(), e.grad.cpu(), sigma.grad, said


def dense_loss_and_gradient(graph: Graph):
    """(F_U, loss, dL/dembeddings, dL/dsigma) of the equations in logarithms."""
    e = graph.embeddings.clone().requires_grad_()
    sigma = torch.tensor(graph.sigma, dtype=torch.float64, requires_grad=True)
    n = graph.num_labelled
    f = dense.harmonic(dense.log_transition(e, sigma), graph.labels[:n], graph.num_classes)
    loss = cross_entropy(f, graph.labels[n:])
    loss.backward()
    return f.detach(), loss.item(), e.grad, sigma.grad


def amplification_of(graph: Graph) -> float:
    """|(I - T_UU)^(-1)| in the maximum norm: how much larger F's errors are than T's."""
    t_uu = dense.log_transition(graph.embeddings, graph.sigma)
    t_uu = t_uu[graph.num_labelled :, graph.num_labelled :]
    inverse, _ = torch.linalg.inv_ex(torch.eye(len(t_uu), dtype=torch.float64) - t_uu)
    return inverse.abs().sum(dim=1).max().nan_to_num(math.inf).item()  # NaN where it is singular


def assert_right_or_reported(graph: Graph, ways, dtype, tol: float, max_iter: int) -> None:
    """Within what rounding and tol allow, or a warning where the system is nearly singular."""
    amplification = amplification_of(graph)
    exponents = 2 / graph.sigma**2  # whose rounding is a relative error of each weight
    bound = amplification * (tol + 4 * torch.finfo(dtype).eps * (4 + exponents))
    exact = None
    for options in ways:
        ours = loss_and_gradient(graph, dtype, tol=tol, max_iter=max_iter, **options)
        f, loss, grad, of_sigma, caught = ours
        assert f.isfinite().all() and math.isfinite(loss)
        assert grad.isfinite().all() and of_sigma.isfinite()
        if caught:
            assert any(
                cause in caught[0] for cause in ("did not converge", "reached by no labelled")
            )
            assert amplification > 500 or bound > 1e-2, caught
        elif bound < 1e-2:  # else nothing can be said of the digits
            exact = exact or dense_loss_and_gradient(graph)
            assert (f - exact[0]).abs().max() <= bound
            assert abs(loss - exact[1]) <= bound
            if amplification > 1000:
                continue  # the adjoint is amplified likewise: the oracle's gradient is noise
            # Relative to the gradient, and to a weight's slope, because terms of that size cancel.
            slope = 1 / graph.sigma**2 / graph.embeddings.norm(dim=1).min().item()
            for index, size in ((2, slope), (3, 2 / graph.sigma**3)):
                error = (ours[index] - exact[index]).abs().max()
                assert error <= bound * (exact[index].abs().max() + size)
