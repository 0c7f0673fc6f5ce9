"""Stored graphs: the few operators that serve up to 512 nodes, what comes beyond, and where one hands over
to the other. Both against the equations in float64 with autograd."""

import pytest
import torch
from graph_cases import clusters
from torch.nn.functional import cross_entropy

from friction_kernels.graph import dense, label_propagation

BOUNDS = {torch.float64: (1e-10, 1e-9), torch.float32: (1e-5, 5e-5)}  # of F, of gradients


def results(graph, labels, num_labelled, num_classes, sigma, propagate):
    """(F_U, dL/dembeddings, dL/dsigma)"""
    e = graph.detach().clone().requires_grad_()
    sigma = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    f = propagate(e, sigma)
    cross_entropy(f, labels[num_labelled:]).backward()
    return f.detach(), e.grad, sigma.grad


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("sigma", (0.3, 0.5, 5.0))
@pytest.mark.parametrize(
    ("num_nodes", "dim", "num_classes", "num_labelled"),
    (
        (2, 1025, 2, 1),
        (3, 17, 3, 2),
        (128, 384, 52, 90),
        (257, 768, 333, 100),
        (512, 16, 8, 150),
        (513, 16, 8, 360),  # from here on by passes over what is stored
        (1000, 16, 3, 900),  # few unlabelled nodes, which are factorised
        (1000, 16, 3, 200),  # many: conjugate gradients
    ),
)
def test_stored_graphs_of_any_size(num_nodes, dim, num_classes, num_labelled, sigma, dtype):
    e, labels = clusters(num_nodes, dim, num_classes)
    n = num_labelled
    tol = 1e-12 if dtype == torch.float64 else 1e-6

    def ours(e, sigma):
        labelled = torch.arange(num_nodes) < n
        return label_propagation(
            e, labels, num_classes, sigma=sigma, labelled=labelled, tol=tol, backend="dense"
        )[n:]

    def equations(e, sigma):
        return dense.harmonic(dense.log_transition(e, sigma), labels[:n], num_classes)

    case = (labels, n, num_classes, sigma)
    found, exact = results(e.to(dtype), *case, ours), results(e, *case, equations)
    of_f, of_gradient = BOUNDS[dtype]
    assert found[0].dtype == dtype
    assert (found[0] - exact[0]).abs().max() <= of_f
    for ours_, exact_ in zip(found[1:], exact[1:], strict=True):
        error, size = (ours_ - exact_).abs().max(), exact_.abs().max()
        assert error <= of_gradient * size


def two_islands(dtype):
    """Points around (1, 0, ...) and (-1, 0, ...), of which five of the first are labelled."""
    generator = torch.Generator().manual_seed(0)
    e = 0.02 * torch.randn(40, 6, generator=generator, dtype=torch.float64)
    e[:, 0] += torch.where(torch.arange(40) < 20, 1.0, -1.0)
    labels = (torch.arange(40) >= 20).long()
    return e.to(dtype).requires_grad_(), labels, torch.arange(40) < 5


def test_an_island_without_labels_is_uniform_whatever_solves():
    """Beside 1, its weights to the other, exp(-2 / sigma^2), are nothing in float32, as LU factors find."""
    e, labels, labelled = two_islands(torch.float32)
    with pytest.warns(UserWarning, match="20 of 35 unlabelled nodes are reached by no labelled"):
        f = label_propagation(e, labels, 2, sigma=0.25, labelled=labelled)
    assert f[20:].tolist() == [[0.5, 0.5]] * 20
    assert (f[5:20, 0] - 1).abs().max() < 1e-5
    f[:, 0].square().sum().backward()
    assert e.grad.isfinite().all()


def test_an_island_that_float64_can_see_is_reached():
    e, labels, labelled = two_islands(torch.float64)
    f = label_propagation(e, labels, 2, sigma=0.3, labelled=labelled)
    assert (f[:, 0] - 1).abs().max() < 1e-6
