"""label_propagation without stored matrices, against the published equations in float64."""

import subprocess
import sys

import pytest
import torch
from graph_cases import (
    GOLDEN,
    Graph,
    assert_right_or_reported,
    clusters,
    graphs,
    loss_and_gradient,
    read_golden,
    relative,
)
from hypothesis import given, settings
from torch.nn.functional import cross_entropy

from friction_kernels.graph import dense, label_propagation

MATRIX_FREE = ({"backend": "chunked"}, {"backend": "dense"})
SOME_EXAMPLES = settings(max_examples=100)
# In float64, to a tolerance of 1e-12, an example takes longer.
FEW_EXAMPLES = settings(max_examples=50)


def golden_options(golden):
    return {"num_classes": golden.num_classes, "sigma": golden.sigma, "labelled": golden.labelled}


@pytest.mark.parametrize("options", MATRIX_FREE)
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize(
    ("dtype", "precision", "tol", "of_f", "of_grad"),
    (
        (torch.float64, "fp32", 1e-13, 1e-10, 1e-10),
        (torch.float32, "fp32", 1e-5, 1e-5, 5e-5),
        (torch.float32, "tf32", 1e-5, 2e-4, 4e-4),
        (torch.float32, "bf16", 1e-5, 1e-2, 1e-2),
    ),
)
def test_equals_the_authors_code(golden_dir, name, options, dtype, precision, tol, of_f, of_grad):
    golden = read_golden(golden_dir, name)
    e = golden.embeddings.to(dtype).requires_grad_()
    f = label_propagation(
        e, golden.labels, **golden_options(golden), precision=precision, tol=tol, **options
    )[golden.num_labelled :]
    truth = golden.labels[golden.num_labelled :]
    loss = cross_entropy(f, truth, golden.class_weight.to(dtype))
    loss.backward()
    assert relative(f.detach(), golden.propagated) <= of_f
    assert loss.item() == pytest.approx(golden.loss, rel=of_f)
    assert relative(e.grad, golden.grad) <= of_grad


@pytest.mark.parametrize(("dtype", "bound"), ((torch.bfloat16, 1e-2), (torch.float16, 2e-3)))
def test_half_precision_embeddings_are_computed_with_in_float32(golden_dir, dtype, bound):
    golden = read_golden(golden_dir, GOLDEN[0])
    e = golden.embeddings.to(dtype).requires_grad_()
    f = label_propagation(e, golden.labels, **golden_options(golden))
    assert f.dtype == torch.float32
    same = label_propagation(e.detach().float(), golden.labels, **golden_options(golden))
    assert torch.equal(f, same)
    cross_entropy(
        f[golden.num_labelled :],
        golden.labels[golden.num_labelled :],
        golden.class_weight.float(),
    ).backward()
    assert e.grad.dtype == dtype
    assert relative(e.grad, golden.grad) <= bound


@pytest.mark.deep
@FEW_EXAMPLES
@given(graph=graphs())
def test_float64_equals_the_dense_equations(graph):
    assert_right_or_reported(graph, MATRIX_FREE, torch.float64, tol=1e-12, max_iter=500)


@pytest.mark.deep
@SOME_EXAMPLES
@given(graph=graphs())
def test_float32_equals_the_dense_equations(graph):
    assert_right_or_reported(graph, MATRIX_FREE, torch.float32, tol=1e-5, max_iter=64)


SMALL = clusters(12, 4, 3, seed=3)


@pytest.mark.deep
@pytest.mark.parametrize("options", MATRIX_FREE)
@pytest.mark.parametrize("sigma", (0.2, 0.6))
@pytest.mark.parametrize("solver", ({"tol": 1e-14}, {"solver": "iterate", "num_iters": 4}))
def test_gradcheck(options, sigma, solver):
    e, labels = SMALL
    labelled = torch.arange(12) % 2 == 0

    def f(e, sigma):
        return label_propagation(e, labels, 3, sigma=sigma, labelled=labelled, **solver, **options)

    sigma = torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (e.clone().requires_grad_(), sigma))


@pytest.mark.parametrize("transition", (dense.transition, dense.log_transition))
def test_gradcheck_of_the_equations(transition):
    e, labels = SMALL

    def f(e, sigma):
        return dense.harmonic(transition(e, sigma), labels[:6], 3)

    sigma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (e.clone().requires_grad_(), sigma))


@pytest.mark.parametrize("options", MATRIX_FREE)
@pytest.mark.parametrize("sigma", (0.15, 0.6))
def test_steps_equal_the_published_steps(options, sigma):
    e, labels = clusters(40, 6, 3)
    grads = []
    for matrix_free in (True, False):
        x = e.clone().requires_grad_()
        if matrix_free:
            f = label_propagation(
                x,
                labels,
                3,
                sigma=sigma,
                labelled=torch.arange(40) < 20,
                solver="iterate",
                num_iters=3,
                **options,
            )[20:]
        else:
            f = dense.iterate(dense.log_transition(x, sigma), labels[:20], 3, 3)
        cross_entropy(f, labels[20:]).backward()
        grads.append((f.detach(), x.grad))
    assert relative(grads[0][0], grads[1][0]) < 1e-12
    assert relative(grads[0][1], grads[1][1]) < 1e-11


@pytest.mark.parametrize("options", MATRIX_FREE)
@pytest.mark.parametrize("sigma", (0.1, 0.6))
def test_same_bits_in_two_runs(options, sigma):
    e, labels = clusters(300, 20, 4)
    graph = Graph(e, labels, 200, 4, sigma)
    first, second = (loss_and_gradient(graph, torch.float32, **options) for _ in range(2))
    for a, b in zip(first[:4], second[:4], strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize("options", MATRIX_FREE)
def test_the_order_of_nodes_does_not_matter(options):
    e, labels = clusters(130, 20, 4)
    e, labelled = e.float(), torch.arange(130) % 3 > 0
    order = torch.randperm(130, generator=torch.Generator().manual_seed(0))
    f = label_propagation(e, labels, 4, labelled=labelled, **options)
    of_order = label_propagation(e[order], labels[order], 4, labelled=labelled[order], **options)
    assert (f[order] - of_order).abs().max() < 2e-5
    assert torch.equal(f[labelled], torch.nn.functional.one_hot(labels, 4)[labelled].float())


def test_labelled_nodes_are_by_default_those_with_a_label():
    e, labels = clusters(20, 4, 3)
    labels[5:9] = -100
    f = label_propagation(e, labels, 3)
    explicit = label_propagation(e, labels, 3, labelled=labels != -100)
    assert torch.equal(f, explicit)
    assert f.sum(dim=1).allclose(torch.ones(20, dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_memory_budget_keeps_the_result(precision):
    e, labels = clusters(400, 16, 4)
    graph = Graph(e, labels, 200, 4, 0.4)
    plain, kept, half = (
        loss_and_gradient(
            graph, torch.float32, backend="chunked", precision=precision, memory_budget=budget
        )
        for budget in (0, 200 * 200 * 4, 200 * 200 * 2)
    )
    for other, bound in ((kept, 2e-5), (half, 2e-5 if precision == "fp32" else 1e-2)):
        assert relative(other[0], plain[0]) < bound
        assert relative(other[2], plain[2]) < bound
        assert not other[4]


@pytest.mark.parametrize("options", MATRIX_FREE)
def test_a_node_that_no_label_reaches_is_uniform_and_reported(options):
    """Two pairs of opposite points: the weight between pairs is exp(-2 / sigma^2) = 0 beside 1."""
    e = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0], [-1.0, 0.01]], requires_grad=True)
    labels = torch.tensor([1, 1, 0, 0])
    labelled = torch.tensor([True, False, False, False])
    with pytest.warns(
        UserWarning, match=r"2 of 3 unlabelled nodes are reached by no labelled node"
    ):
        f = label_propagation(e, labels, 2, sigma=0.1, labelled=labelled, **options)
    assert f.tolist() == [[0, 1], [0, pytest.approx(1)], [0.5, 0.5], [0.5, 0.5]]
    f.log_softmax(dim=1)[:, 0].sum().backward()
    assert e.grad.isfinite().all()
    steps = label_propagation(
        e, labels, 2, sigma=0.1, labelled=labelled, solver="iterate", num_iters=5, **options
    )
    assert steps[2:].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_too_few_iterations_are_reported_with_the_residual():
    e, labels = clusters(200, 3, 2)
    with pytest.warns(UserWarning, match=r"residual \d\.\de-\d+ after 2 iterations, tol=1e-06"):
        f = label_propagation(
            e,
            labels,
            2,
            sigma=0.2,
            labelled=torch.arange(200) < 5,
            backend="chunked",
            tol=1e-6,
            max_iter=2,
        )
    assert f.isfinite().all()


@pytest.mark.parametrize("options", MATRIX_FREE)
def test_gradients_of_gradients_are_refused(options):
    e, labels = clusters(20, 4, 2)
    e.requires_grad_()
    f = label_propagation(e, labels, 2, labelled=torch.arange(20) < 10, **options)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(f[:, 0].sum(), e, create_graph=True)


def test_autocast_does_not_lower_the_precision():
    e, labels = clusters(60, 8, 3)
    e = e.float().requires_grad_()
    labelled = torch.arange(60) < 30

    def run():
        f = label_propagation(e, labels, 3, labelled=labelled)
        return (f, *torch.autograd.grad(f[:, 0].sum(), e))

    outside = run()
    with torch.autocast("cpu", torch.bfloat16):
        inside = run()
    assert all(torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_backend_that_cannot_serve_raises():
    e, labels = clusters(20, 4, 2)
    with pytest.raises(RuntimeError, match=r"backend='triton' cannot serve: .*use backend='auto'"):
        label_propagation(e, labels, 2, labelled=torch.arange(20) < 9, backend="triton")
    many = torch.ones(16385, 1)
    with pytest.raises(RuntimeError, match=r"backend='dense' cannot serve: it stores N x N"):
        label_propagation(
            many,
            torch.zeros(16385, dtype=int),
            2,
            labelled=many[:, 0].cumsum(0) < 9,
            backend="dense",
        )


PEAK_MEMORY = """
import resource, torch
from friction_kernels.graph import label_propagation
from torch.nn.functional import cross_entropy

def run(n):
    labels = torch.arange(n) % 4
    generator = torch.Generator().manual_seed(0)
    e = (torch.eye(4, 8)[labels] + torch.rand(n, 8, generator=generator)).requires_grad_()
    labelled = torch.arange(n) < n * 7 // 10
    f = label_propagation(e, labels, 4, labelled=labelled, memory_budget=0)
    cross_entropy(f[n * 7 // 10 :], labels[n * 7 // 10 :]).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = run(300)
print((run(20_000) - before) * 1024)
"""


@pytest.mark.deep
def test_memory_at_20000_nodes_is_far_below_a_matrix():
    run = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, timeout=300, check=True
    )
    assert int(run.stdout) < 20_000**2 * 4 / 10
