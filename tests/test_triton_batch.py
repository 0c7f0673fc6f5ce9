"""The batch kernels, three launches for everything, against the equations in float64 with autograd.

Without a GPU it is interpreted; see test_triton_scores.py.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from interpreter import device_of_triton
from torch import Tensor

DEVICE = device_of_triton()

from friction_triton.batch import BatchGLoss, batch_gloss  # noqa: E402
from friction_triton.launches import counts  # noqa: E402

from friction_kernels.graph import dense  # noqa: E402

pytestmark = pytest.mark.deep

IGNORED = -100


class Batch(NamedTuple):
    embeddings: Tensor
    labels: Tensor
    labelled: Tensor
    num_classes: int
    class_weight: Tensor | None
    scale: Tensor


class Outcome(NamedTuple):
    loss: Tensor
    f: Tensor  # of the unlabelled nodes
    grad: Tensor
    grad_scale: Tensor


def make(
    num_nodes: int,
    dim: int,
    num_classes: int,
    sigma: float = 0.5,
    ignored: int = 0,
    spread: float = 2.0,
) -> Batch:
    """Clusters, of which a third of the nodes, at least one, is to be recovered."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(num_nodes) % num_classes
    centres = torch.randn(num_classes, dim, generator=random)
    embeddings = spread * centres[labels] + torch.randn(num_nodes, dim, generator=random)
    labelled = torch.randperm(num_nodes, generator=random) < num_nodes - max(1, num_nodes // 3)
    labels[(~labelled).nonzero()[:ignored, 0]] = IGNORED
    weight = torch.rand(num_classes, generator=random) + 0.5
    return Batch(embeddings, labels, labelled, num_classes, weight, torch.tensor([sigma**-2]))


def exactly(batch: Batch, form: str) -> Outcome:
    embeddings = batch.embeddings.double().requires_grad_()
    scale = batch.scale.double().requires_grad_()
    order = torch.cat((batch.labelled.nonzero()[:, 0], (~batch.labelled).nonzero()[:, 0]))
    t = dense.log_transition(embeddings[order], scale[0] ** -0.5)
    f = dense.harmonic(t, batch.labels[batch.labelled], batch.num_classes)
    truth = batch.labels[~batch.labelled]
    known = truth != IGNORED
    weight = None if batch.class_weight is None else batch.class_weight.double()
    if form == "official":
        loss = dense.official_loss(f[known], truth[known], weight)
    else:  # from 1e-6: the class of a scored node may have no labelled node
        loss = dense.log_loss(f[known].clamp_min(1e-6), truth[known], weight)
    return Outcome(loss.detach(), f.detach(), *torch.autograd.grad(loss, (embeddings, scale)))


def compute(
    batch: Batch, form: str, precision: str = "fp32", tol: float = 1e-6, max_iter: int = 64
) -> tuple[BatchGLoss, Tensor]:
    f = torch.full((len(batch.embeddings), batch.num_classes), torch.nan, device=DEVICE)
    on_device = [None if t is None else t.to(DEVICE) for t in batch if not isinstance(t, int)]
    embeddings, labels, labelled, weight, scale = on_device
    result = batch_gloss(
        embeddings,
        labels,
        labelled,
        batch.num_classes,
        weight,
        scale,
        log_form=form == "log",
        tol=tol,
        max_iter=max_iter,
        ignore_index=IGNORED,
        precision=precision,
        propagated=f,
    )
    return result, f.cpu()


def errors(result: BatchGLoss, f: Tensor, batch: Batch, exact: Outcome) -> dict[str, float]:
    """Relative; where the exact gradient is zero, that of the numbers it is made of."""

    def relative(ours: Tensor, theirs: Tensor) -> float:
        size = theirs.norm() if theirs.norm() > 1e-12 else torch.tensor(1.0)
        return float((ours.double().cpu() - theirs).norm() / size)

    return {
        "loss": relative(result.loss, exact.loss),
        "f": relative(f[~batch.labelled], exact.f),
        "gradient": relative(result.grad_embeddings, exact.grad),
        "gradient of scale": relative(result.grad_inverse_sigma_squared, exact.grad_scale),
    }


SHAPES = [  # N, d, C: around the compiled sizes 64, 128, 256 and 16, 64
    (2, 3, 2, "official"),
    (2, 3, 2, "log"),
    (3, 1, 2, "official"),
    (3, 1, 2, "log"),
    (64, 1025, 16, "official"),
    (65, 768, 17, "log"),
    (127, 40, 52, "official"),
    (129, 17, 64, "log"),
    (256, 33, 9, "official"),
]


@pytest.mark.parametrize(("num_nodes", "dim", "num_classes", "form"), SHAPES)
def test_loss_and_gradients(num_nodes: int, dim: int, num_classes: int, form: str) -> None:
    batch = make(num_nodes, dim, num_classes)
    result, f = compute(batch, form)
    found = errors(result, f, batch, exactly(batch, form))
    assert max(found.values()) <= 3e-6, found
    one_hot = torch.nn.functional.one_hot(batch.labels[batch.labelled], num_classes)
    assert torch.equal(f[batch.labelled], one_hot.float())


@pytest.mark.parametrize(("precision", "bound"), [("tf32", 1e-3), ("bf16", 1e-2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(precision: str, bound: float, dtype: torch.dtype) -> None:
    batch = make(100, 48, 6)
    batch = batch._replace(embeddings=batch.embeddings.to(dtype))
    result, f = compute(batch, "log", precision)
    assert result.grad_embeddings.dtype == torch.float32
    found = errors(result, f, batch, exactly(batch, "log"))
    assert max(found.values()) <= bound, found


@pytest.mark.parametrize("sigma", [0.15, 0.3, 2.0, 50.0])
def test_any_sigma(sigma: float) -> None:
    """x reaches 1 / sigma^2, and so does the error of float32's dot products, here as in plain torch.

    The clusters overlap: where F is certain, the gradient is a difference of nearly equal numbers.
    """
    batch = make(90, 24, 5, sigma, spread=0.2)
    result, f = compute(batch, "official")
    found = errors(result, f, batch, exactly(batch, "official"))
    assert max(found.values()) <= 2e-6 + 1e-6 * sigma**-2, found


def test_tiny_sigma_is_finite_and_reports() -> None:
    """Float32 knows no path between clusters at sigma = 0.02: such rows are uniform, and counted."""
    batch = make(64, 24, 5, 0.02)
    result, f = compute(batch, "log", max_iter=12)
    assert all(torch.isfinite(t).all() for t in (*result, f))
    uniform = (f == torch.tensor(1 / 5)).all(dim=1)
    assert uniform.sum() == result.statistics[4]


def test_statistics() -> None:
    batch = make(70, 12, 4, ignored=5)
    result, f = compute(batch, "official")
    iterations, residual, correct, counted, unreached, error, adjoint_error = (
        result.statistics.tolist()
    )
    scored = ~batch.labelled & (batch.labels != IGNORED)
    assert counted == scored.sum() < (~batch.labelled).sum()
    assert correct == (f.argmax(dim=1) == batch.labels)[scored].sum()
    assert 1 <= iterations <= 64 and unreached == 0
    assert max(error, adjoint_error) <= 1e-6
    order = torch.cat((batch.labelled.nonzero()[:, 0], (~batch.labelled).nonzero()[:, 0]))
    t = dense.log_transition(batch.embeddings[order].double(), 0.5)
    off = (t @ f[order].double() - f[order])[int(batch.labelled.sum()) :].abs().sum(dim=1).max()
    assert abs(residual - off) <= 1e-6


def test_ignored_nodes_are_nodes_of_the_graph() -> None:
    batch = make(70, 12, 4, ignored=5)
    result, f = compute(batch, "official")
    found = errors(result, f, batch, exactly(batch, "official"))
    assert max(found.values()) <= 3e-6, found
    ignored = (batch.labels == IGNORED).to(DEVICE)
    assert (result.grad_embeddings[ignored].norm(dim=1) > 0).all()


def test_without_class_weights() -> None:
    batch = make(40, 12, 4)._replace(class_weight=None)
    result, f = compute(batch, "log")
    found = errors(result, f, batch, exactly(batch, "log"))
    assert max(found.values()) <= 3e-6, found


def test_a_tolerance_met_early_takes_fewer_iterations() -> None:
    batch = make(60, 24, 5)
    iterations = [float(compute(batch, "log", tol=t)[0].statistics[0]) for t in (1e-1, 1e-6)]
    assert iterations == sorted(iterations) and iterations[0] < iterations[-1]
    stopped, _ = compute(batch, "log", max_iter=2)
    assert stopped.statistics[0] == 2 and (stopped.statistics[5:] > 1e-6).all()


def test_duplicates_and_one_labelled_node() -> None:
    batch = make(30, 6, 2)
    batch.embeddings[1:5] = batch.embeddings[0]
    batch = batch._replace(labelled=torch.arange(30) == 7, class_weight=None)
    result, f = compute(batch, "official", tol=1e-7)
    found = errors(result, f, batch, exactly(batch, "official"))
    assert found["f"] <= 1e-5 and found["loss"] <= 1e-5, found
    assert torch.isfinite(result.grad_embeddings).all()


def test_three_launches_and_the_same_bits_twice() -> None:
    batch = make(100, 24, 5)
    before = dict(counts)
    first, first_f = compute(batch, "official")
    launched = {name: n - before.get(name, 0) for name, n in counts.items()}
    assert {name: n for name, n in launched.items() if n} == {
        "batch_similarities_kernel": 1,
        "batch_kernel": 1,
        "batch_gradient_kernel": 1,
    }
    second, second_f = compute(batch, "official")
    for ours, again in zip((*first, first_f), (*second, second_f), strict=True):
        assert torch.equal(ours, again)


def test_permutation_of_the_nodes() -> None:
    batch = make(66, 12, 4)
    order = torch.randperm(66, generator=torch.Generator().manual_seed(1))
    permuted = batch._replace(
        embeddings=batch.embeddings[order],
        labels=batch.labels[order],
        labelled=batch.labelled[order],
    )
    (result, f), (moved, moved_f) = compute(batch, "log"), compute(permuted, "log")
    torch.testing.assert_close(moved.loss, result.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(moved_f, f[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(moved.grad_embeddings.cpu(), result.grad_embeddings.cpu()[order],
                               rtol=0, atol=1e-5 * float(result.grad_embeddings.abs().max()))  # fmt: skip


def test_refusals() -> None:
    batch = make(10, 4, 2)
    arguments = (*batch[:3], 2, None, batch.scale)
    with pytest.raises(ValueError, match="fp32, tf32, bf16"):
        batch_gloss(*arguments, precision="fp64")
    with pytest.raises(TypeError, match="float64"):
        batch_gloss(batch.embeddings.double(), *arguments[1:])
    with pytest.raises(ValueError, match="257 and 2"):
        batch_gloss(torch.zeros(257, 4), *arguments[1:])
    with pytest.raises(ValueError, match="10 and 65"):
        batch_gloss(*arguments[:3], 65, None, batch.scale)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gloss_r8_n128", "gloss_r8_n128_sigma01"])
def test_golden_values(golden_dir: Path, name: str, precision: str) -> None:
    saved = np.load(golden_dir / f"{name}.npz")
    labelled = torch.arange(len(saved["labels"])) < int(saved["num_labelled"])
    batch = Batch(
        torch.tensor(saved["embeddings"]),
        torch.tensor(saved["labels"]),
        labelled,
        len(saved["class_weights"]),
        torch.tensor(saved["class_weights"], dtype=torch.float32),
        torch.tensor([float(saved["sigma"]) ** -2], dtype=torch.float32),
    )
    result, f = compute(batch, "official", precision)
    exact = Outcome(
        *(torch.tensor(saved[key]) for key in ("loss", "propagated", "grad_embeddings")),
        torch.tensor(torch.nan),  # the authors' code has none
    )
    found = errors(result, f, batch, exact)
    bounds = (1e-5, 1e-5, 5e-5) if precision == "fp32" else (1e-2, 1e-2, 1e-2)
    for key, bound in zip(("loss", "f", "gradient"), bounds, strict=True):
        assert found[key] <= bound, found


def two_islands(num_islanders: int) -> Batch:
    """Clusters of which the last nodes, unlabelled, lie where no weight of float32 leads."""
    batch = make(70, 12, 4, 0.2)
    embeddings = batch.embeddings.clone()
    embeddings[:, 0] += 20
    islanders = torch.arange(70) >= 70 - num_islanders
    embeddings[islanders, 0] -= 40
    return batch._replace(embeddings=embeddings, labelled=batch.labelled & ~islanders)


@pytest.mark.parametrize("form", ["official", "log"])
def test_nodes_out_of_reach_are_uniform_and_the_others_converge(form: str) -> None:
    batch = two_islands(9)
    result, f = compute(batch, form)
    *_, unreached, error, adjoint_error = result.statistics.tolist()
    assert unreached == 9 and max(error, adjoint_error) <= 1e-6
    assert (f[-9:] == 0.25).all()
    reached = batch._replace(
        embeddings=batch.embeddings[:-9], labels=batch.labels[:-9], labelled=batch.labelled[:-9]
    )
    _, expected = compute(reached, form)
    assert (f[:-9] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("length", [1e-30, 1e20])
def test_rows_of_any_length(length: float) -> None:
    batch = make(40, 12, 4)
    scaled = batch._replace(embeddings=batch.embeddings * length)
    (result, f), (expected, expected_f) = compute(scaled, "log"), compute(batch, "log")
    assert (f - expected_f).abs().max() < 1e-5
    gradient = result.grad_embeddings * length
    assert (gradient - expected.grad_embeddings).norm() < 1e-4 * expected.grad_embeddings.norm()
