"""The published equations against the authors' values, and what they coincide with elsewhere."""

import math
import warnings

import pytest
import torch
from graph_cases import GOLDEN, clusters, read_golden, relative
from torch.nn.functional import cross_entropy, one_hot

from friction_kernels.graph import dense, label_propagation


@pytest.mark.parametrize("transition", (dense.transition, dense.log_transition))
@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_authors_code(golden_dir, name, transition):
    golden = read_golden(golden_dir, name)
    n = golden.num_labelled
    e = golden.embeddings.double().requires_grad_()
    f = dense.harmonic(transition(e, golden.sigma), golden.labels[:n], golden.num_classes)
    loss = dense.official_loss(f, golden.labels[n:], golden.class_weight)
    loss.backward()
    assert relative(f.detach(), golden.propagated) <= 1e-10
    assert loss.item() == pytest.approx(golden.loss, rel=1e-10)
    assert relative(e.grad, golden.grad) <= 1e-10


def test_rows_of_the_transition_sum_to_one_at_any_sigma():
    e, _ = clusters(50, 8, 3)
    for sigma in (0.01, 0.1, 1.0, 100.0):
        t = dense.log_transition(e, sigma)
        assert t.sum(dim=1).allclose(torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-12)
        assert (t.diagonal() == 0).all()


def test_iteration_converges_to_the_harmonic_solution():
    e, labels = clusters(60, 8, 3)
    t = dense.transition(e, 0.5)
    exact = dense.harmonic(t, labels[:40], 3)
    errors = [relative(dense.iterate(t, labels[:40], 3, k), exact) for k in (1, 5, 200)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-12


def sklearn_label_distributions(kernel, points, labels, labelled, **options):
    from sklearn.semi_supervised import LabelPropagation

    model = LabelPropagation(kernel=kernel, tol=1e-14, max_iter=20_000, **options)
    target = torch.where(labelled, labels, -1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(points.numpy(), target.numpy())
    return torch.from_numpy(model.label_distributions_)


def test_equals_scikit_learn_where_all_nodes_are_alike():
    """Its T is the row-normalised Gaussian with a diagonal. The diagonal does not change the harmonic
    solution, and on a regular polygon the column normalisation divides by a constant."""
    angles = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    points = torch.stack((angles.cos(), angles.sin()), dim=1)
    labels = torch.arange(24) // 8
    labelled = torch.arange(24) % 3 == 0
    ours = label_propagation(points, labels, 3, sigma=0.6, labelled=labelled, tol=1e-14)
    theirs = sklearn_label_distributions("rbf", points, labels, labelled, gamma=1 / (2 * 0.6**2))
    assert relative(ours, theirs) < 1e-9


def test_equals_scikit_learn_with_the_column_normalised_kernel():
    """On any graph, given the symmetric kernel W_ij / (u_i u_j), whose row-normalised form is T."""
    e, labels = clusters(60, 8, 3)
    labelled = torch.arange(60) % 2 == 0
    ours = label_propagation(e, labels, 3, sigma=0.4, labelled=labelled, tol=1e-14)

    def kernel(x, y):
        z = dense.normalize(torch.from_numpy(x))
        w = torch.exp((z @ z.T - 1) / 0.4**2).fill_diagonal_(0)
        u = w @ w.sum(dim=1) ** -0.5
        return (w / u[:, None] / u[None, :]).numpy()

    theirs = sklearn_label_distributions(kernel, e, labels, labelled)
    assert relative(ours, theirs) < 1e-9


def test_forms_of_the_loss():
    f = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
    labels, weight = torch.tensor([0, 2]), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    official = dense.official_loss(f, labels, weight)
    assert official.item() == pytest.approx(cross_entropy(f, labels, weight).item())
    log = dense.log_loss(f, labels, weight)
    assert log.item() == pytest.approx(-(math.log(0.7) + 3 * math.log(0.4)) / 4)
    perfect = dense.official_loss(one_hot(labels, 3).double(), labels)
    assert perfect.item() == pytest.approx(math.log(1 + 2 / math.e))  # its least value
