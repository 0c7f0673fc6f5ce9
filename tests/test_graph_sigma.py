"""gaussian_sigma against the rules written out on a whole matrix of distances."""

import math
from unittest import mock

import pytest
import torch
from graph_cases import clusters
from hypothesis import given, settings
from hypothesis import strategies as st

from friction_kernels.graph import gaussian_sigma, sigma
from friction_kernels.graph.dense import normalize


def distances(z):
    return (z[:, None] - z[None]).norm(dim=2)


def literal(z, labels, rule):
    d = distances(z)
    pairs = d[torch.ones_like(d, dtype=torch.bool).triu(1)]
    if rule == "root":
        return math.sqrt(d.median() / 3)
    if rule == "median":
        return pairs.median().item()
    between = d[(labels[:, None] != labels) & (d > 0)]
    return (between.min() if len(between) else pairs.median()).item() / 3


@settings(max_examples=50)
@given(
    num_nodes=st.sampled_from((3, 4, 5, 17, 64, 129)),
    dim=st.sampled_from((1, 2, 30)),
    seed=st.integers(0, 1000),
    normalized=st.booleans(),
    elements=st.sampled_from((1, 50, 1 << 21)),
)
def test_equals_the_rules_on_a_whole_matrix(num_nodes, dim, seed, normalized, elements):
    e, labels = clusters(num_nodes, dim + 1, 3, seed=seed)
    z = normalize(e) if normalized else e
    with mock.patch.object(sigma, "ELEMENTS_AT_ONCE", elements):
        for rule in sigma.RULES:
            ours = gaussian_sigma(e, labels, rule, normalize=normalized)
            assert ours == pytest.approx(literal(z, labels, rule), rel=1e-6)


def test_mst_passes_over_duplicates_unlabelled_nodes_and_equal_labels():
    e = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.01]])
    labels = torch.tensor([0, 1, 1, 1, -100])
    nearest = distances(e)[0, 3]  # 0 and 1 coincide, 4 has no label
    assert gaussian_sigma(e, labels, "mst") == pytest.approx(nearest.item() / 3, rel=1e-6)
    one_class = gaussian_sigma(e, torch.zeros(5, dtype=int), "mst")
    assert one_class == pytest.approx(gaussian_sigma(e, rule="median") / 3)


def test_two_points():
    e = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert gaussian_sigma(e, rule="median") == pytest.approx(math.sqrt(2))
    assert gaussian_sigma(e, rule="root") == pytest.approx(math.sqrt(math.sqrt(2) / 3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((torch.ones(1, 3),), "at least two embeddings"),
        ((torch.rand(4, 3), None, "mst"), "rule 'mst' needs labels"),
        ((torch.rand(4, 3), None, "mean"), "rule must be one of 'root', 'mst', 'median'"),
        ((torch.ones(4, 3),), "most embeddings are the same point"),
        ((torch.eye(3) * torch.tensor([1, 0, 1]),), "zero length in row 1"),
    ),
)
def test_input_without_meaning_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        gaussian_sigma(*arguments)
