"""Graphs that the tests of label propagation share."""

from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

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
