"""The Triton passes over a score matrix, against the same sums written densely in float64.

Without a GPU the kernels are interpreted on the CPU, which TRITON_INTERPRET asks for; Triton reads it when
it is first imported, so `device_of_triton` sets it before that.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_cases import Graph, assert_right_or_reported, graphs
from hypothesis import Phase, given, settings
from interpreter import device_of_triton
from torch import Tensor

DEVICE = device_of_triton()

from friction_triton import configurations, scores  # noqa: E402
from friction_triton.launches import counts  # noqa: E402
from friction_triton.scores import TritonScores  # noqa: E402

from friction_kernels.graph import dense  # noqa: E402
from friction_kernels.graph.harmonic import propagate  # noqa: E402
from friction_kernels.graph.route import Route, Settings  # noqa: E402
from friction_kernels.scores.backend import Term  # noqa: E402

pytestmark = pytest.mark.deep

SHAPES = [  # N, d, K: none a multiple of a tile, d below a tile's, exactly one, and beyond
    (2, 1, 2),
    (3, 17, 3),
    (127, 384, 52),
    (128, 768, 8),
    (129, 1025, 2),
    (257, 64, 333),
]


def on_device(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.float().to(DEVICE) for t in tensors]


class Case:
    """One graph and arguments of its passes in float32, and the exact results in float64."""

    def __init__(self, num_nodes: int, dim: int, width: int, sigma: float = 0.5, seed: int = 0):
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random)

        self.z = torch.nn.functional.normalize(normal(num_nodes, dim))
        self.scale = torch.tensor([sigma**-2])
        exact_scale = self.scale.double()
        z = self.z.double()
        self.x = (z @ z.T * exact_scale).fill_diagonal_(-torch.inf)
        log_degree = self.x.logsumexp(dim=1)
        log_u = (self.x - log_degree / 2).logsumexp(dim=1)
        self.log_r = (self.x - log_u).logsumexp(dim=1)
        self.log_u = log_u

        self.rows, self.columns = range(num_nodes // 3, num_nodes), range(1, max(2, num_nodes // 2))
        self.row_bias, self.column_bias = (
            -self.log_r[self.rows.start :],
            -log_u[1 : self.columns.stop],
        )
        self.values = normal(len(self.columns), width)
        t = (self.x - log_u - self.log_r[:, None]).exp()
        self.applied = t[self.rows.start :, 1 : self.columns.stop] @ self.values.double()

        unlabelled = torch.arange(num_nodes) >= num_nodes // 2
        left, right = normal(num_nodes, width) * unlabelled[:, None], normal(num_nodes, width)
        of_t, of_u, of_degree = normal(num_nodes) * unlabelled, normal(num_nodes), normal(num_nodes)
        self.terms = (
            Term(-self.log_r, -log_u, -of_t, left, right),
            Term(-log_u, log_degree / -2, of_u),
            Term(-log_degree, torch.zeros_like(log_degree), of_degree),
        )
        left, right, of_t, of_u, of_degree = (
            c.double() for c in (left, right, of_t, of_u, of_degree)
        )
        p = (self.x - log_degree / 2 - log_u[:, None]).exp()
        q = (self.x - log_degree[:, None]).exp()
        m = t * (left @ right.T - of_t[:, None]) + p * of_u[:, None] + q * of_degree[:, None]
        self.gradient = (m + m.T) @ z * exact_scale

    def scores(self, precision: str = "fp32", z: Tensor | None = None) -> TritonScores:
        return TritonScores(
            (self.z if z is None else z).to(DEVICE),
            None,
            self.scale.to(DEVICE),
            precision,
            mask_diagonal=True,
        )

    def run(self, graph: TritonScores) -> dict[str, Tensor]:
        applied = graph.apply(
            self.rows, self.columns, *on_device(self.row_bias, self.column_bias, self.values)
        )
        gradient, _ = graph.gradient([Term(*on_device(*term)) for term in self.terms])
        return {
            "log_r": graph.logsumexp(*on_device(-self.log_u)),
            "applied": applied,
            "gradient": gradient,
        }

    def errors(self, graph: TritonScores) -> dict[str, float]:
        """Relative to the largest number of each result; absolute for the logarithms."""
        results = {name: value.double().cpu() for name, value in self.run(graph).items()}
        errors = {"log_r": (results["log_r"] - self.log_r).abs().max()}
        for name in ("applied", "gradient"):
            exact = getattr(self, name)
            assert results[name].shape == exact.shape
            errors[name] = (results[name] - exact).abs().max() / exact.abs().max()
        return {name: float(error) for name, error in errors.items()}


@pytest.mark.parametrize(("num_nodes", "dim", "width"), SHAPES)
def test_every_pass_in_fp32(num_nodes: int, dim: int, width: int) -> None:
    case = Case(num_nodes, dim, width)
    errors = case.errors(case.scores())
    assert max(errors.values()) <= 2e-6, errors


@pytest.mark.parametrize(("precision", "bound"), [("tf32", 1e-3), ("bf16", 1e-2)])
def test_every_pass_in_lower_precision(precision: str, bound: float) -> None:
    for width in (1, 52):
        case = Case(257, 384, width)
        errors = case.errors(case.scores(precision))
        assert max(errors.values()) <= bound, errors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_storage(dtype: torch.dtype) -> None:
    case = Case(65, 40, 3)
    rounded = case.z.to(dtype)
    from_half = case.run(case.scores("bf16", rounded))
    from_float = case.run(case.scores("bf16", rounded.float()))
    for name, value in from_half.items():
        assert torch.equal(value, from_float[name]), name


@pytest.mark.parametrize("sigma", [0.02, 0.15, 50.0])
def test_any_sigma(sigma: float) -> None:
    """x reaches 1 / sigma^2, and so does the error of float32's dot products, here as in plain torch."""
    case = Case(130, 48, 5, sigma)
    errors = case.errors(case.scores())
    assert max(errors.values()) <= 1e-6 + 2e-7 * sigma**-2, errors


def test_duplicates_and_an_isolated_node() -> None:
    case = Case(66, 8, 4, sigma=0.1)
    z = case.z.clone()
    z[1:4], z[60] = z[0], -z[0]
    graph = case.scores(z=z)
    x = (z.double() @ z.double().T * case.scale.double()).fill_diagonal_(-torch.inf)
    log_degree = graph.logsumexp(torch.zeros(66, device=DEVICE)).double().cpu()
    assert (log_degree - x.logsumexp(dim=1)).abs().max() <= 3e-5


@pytest.mark.parametrize("num_nodes", [2, 129, 257])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_binary_values(precision: str, num_nodes: int) -> None:
    """Products with zeros and ones are exact but for float32's rounding; the scores are, of such z."""
    for num_classes in (2, 52):
        case = Case(num_nodes, 48, num_classes)
        z, labels = case.z.bfloat16().float(), torch.arange(len(case.columns)) % num_classes
        one_hot = torch.nn.functional.one_hot(labels, num_classes)
        x = z.double() @ z.double().T * case.scale.double()
        x = x.fill_diagonal_(-torch.inf)[case.rows.start :, 1 : case.columns.stop]
        weights = (x + case.row_bias[:, None] + case.column_bias).exp()
        vectors = on_device(case.row_bias, case.column_bias, one_hot)
        graph = case.scores(precision, z)
        found, again = (
            graph.apply(case.rows, case.columns, *vectors, binary=True).cpu() for _ in range(2)
        )
        assert torch.equal(found, again)
        torch.testing.assert_close(
            found.double(), weights @ one_hot.double(), rtol=2e-6, atol=1e-12
        )


def test_logsumexp_of_some_rows() -> None:
    case = Case(150, 20, 2)
    graph, bias = case.scores(), torch.zeros(150, device=DEVICE)
    some = graph.logsumexp(bias, rows=range(41, 150))
    torch.testing.assert_close(some, graph.logsumexp(bias)[41:], rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("num_nodes", [1, 2, 127, 128, 129, 257, 600])
def test_symmetric_logsumexp(
    monkeypatch: pytest.MonkeyPatch, num_nodes: int, precision: str
) -> None:
    """Each tile once, in one band of columns and in one of each tile's: as in full, and as in float64."""
    random = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(num_nodes, 40, generator=random))
    bias = torch.randn(num_nodes, generator=random)
    rounded = z.bfloat16().double() if precision == "bf16" else z.double()
    for mask_diagonal in (False, True):
        graph = TritonScores(
            z.to(DEVICE), None, torch.tensor([4.0], device=DEVICE), precision, mask_diagonal=mask_diagonal
        )  # fmt: skip
        monkeypatch.setattr(configurations, "SYMMETRIC_FROM", 1 << 30)
        in_full = graph.logsumexp(*on_device(bias)).cpu()
        monkeypatch.setattr(configurations, "SYMMETRIC_FROM", 0)
        x = 4 * rounded @ rounded.T + bias
        if mask_diagonal:
            x.fill_diagonal_(-torch.inf)
        for band_bytes in (1, scores.BAND_BYTES):
            monkeypatch.setattr(scores, "BAND_BYTES", band_bytes)
            before = counts.get("symmetric_logsumexp_kernel", 0)
            found, again = (graph.logsumexp(*on_device(bias)).cpu() for _ in range(2))
            bands = -(-num_nodes // 128) if band_bytes == 1 else 1
            assert counts["symmetric_logsumexp_kernel"] - before == 2 * bands
            assert torch.equal(found, again)
            torch.testing.assert_close(found.double(), x.logsumexp(dim=1), rtol=0, atol=2e-6)
            torch.testing.assert_close(found, in_full, rtol=0, atol=2e-6)


def test_symmetric_logsumexp_at_small_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns of a tile keep a maximum each: nothing under- or overflows."""
    monkeypatch.setattr(configurations, "SYMMETRIC_FROM", 0)
    case = Case(130, 48, 5, sigma=0.02)
    assert case.errors(case.scores())["log_r"] <= 1e-6 + 2e-7 * 0.02**-2


def test_which_logsumexps_are_computed_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "SYMMETRIC_FROM", 64)
    z, scale = torch.eye(64, device=DEVICE), torch.ones(1, device=DEVICE)
    bias, before = torch.zeros(64, device=DEVICE), counts.get("symmetric_logsumexp_kernel", 0)
    TritonScores(z, z, scale).logsumexp(bias)
    TritonScores(z, None, scale).logsumexp(bias, range(64))
    TritonScores(z[:63], None, scale).logsumexp(bias[:63])
    assert counts.get("symmetric_logsumexp_kernel", 0) == before


@pytest.mark.parametrize("mask_diagonal", [False, True])
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "dim", "width"),
    [(1, 2, 1, 1), (130, 300, 33, 20), (300, 130, 70, 3)],
)
def test_queries_and_keys(
    monkeypatch: pytest.MonkeyPatch,
    num_queries: int,
    num_keys: int,
    dim: int,
    width: int,
    mask_diagonal: bool,
) -> None:
    """A softmax of other rows' scores, in two stripes at least; in float64 by autograd."""
    monkeypatch.setattr(scores, "STRIPE_BYTES", 1)
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    q, k = normal(num_queries, dim), normal(num_keys, dim)
    scale, bias, values = torch.tensor([2 * dim**-0.5]), normal(num_keys), normal(num_keys, width)
    to_lse, to_applied = normal(num_queries), normal(num_queries, width)
    exact_q, exact_k = q.double().requires_grad_(), k.double().requires_grad_()
    x = scale.double() * exact_q @ exact_k.T
    if mask_diagonal:
        x = x.masked_fill(torch.eye(num_queries, num_keys, dtype=torch.bool), -torch.inf)
    lse = (x + bias).logsumexp(dim=1)
    applied = (x + bias - lse[:, None]).exp() @ values.double()
    loss = (to_lse * lse).sum() + (to_applied * applied).sum()
    exact = torch.autograd.grad(loss, (exact_q, exact_k))

    ours = TritonScores(q.to(DEVICE), k.to(DEVICE), scale.to(DEVICE), mask_diagonal=mask_diagonal)
    every, row_bias = (range(num_queries), range(num_keys)), -lse.detach()
    first = Term(row_bias, bias, -(to_applied * applied.detach()).sum(dim=1), to_applied, values)
    second = Term(row_bias, bias, to_lse)
    results = (
        ours.logsumexp(*on_device(bias)),
        ours.apply(*every, *on_device(row_bias, bias, values)),
        *ours.gradient([Term(*on_device(*term)) for term in (first, second)]),
    )
    for found, expected in zip(results, (lse, applied, *exact), strict=True):
        assert found.shape == expected.shape
        assert (found.cpu() - expected).abs().max() <= 3e-6 * max(expected.abs().max(), 1), (
            found - expected
        )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stripes_of_the_gradient(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Three stripes, of which the later ones take from the earlier what lies to their left."""
    monkeypatch.setattr(scores, "STRIPE_BYTES", 1)
    case = Case(300, 17, 20)
    before = dict(counts)
    errors = case.errors(case.scores(precision))
    assert counts["coefficients_kernel"] - before.get("coefficients_kernel", 0) == 3
    assert errors["gradient"] <= (1e-2 if precision == "bf16" else 2e-6)


@pytest.mark.parametrize("architecture", [80, 100])
def test_tiles_of_other_architectures(monkeypatch: pytest.MonkeyPatch, architecture: int) -> None:
    """Their sizes are compiled for them alone, and are computed with here."""
    if DEVICE == "cuda":
        pytest.skip("this device has its own tiles, which every other test uses")
    monkeypatch.setattr(scores, "architecture", lambda device: architecture)
    for width in (8, 52):
        case = Case(200, 33, width)
        errors = case.errors(case.scores())
        assert max(errors.values()) <= 2e-6, errors


def test_same_bits_twice() -> None:
    case = Case(257, 50, 20)
    first, second = (case.run(case.scores("bf16")) for _ in range(2))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(("programs", "blocks"), [(1, 1), (3, 7), (154, 77), (512, 256), (4, 100)])
def test_splits_fill_the_processors(
    monkeypatch: pytest.MonkeyPatch, programs: int, blocks: int
) -> None:
    monkeypatch.setattr(configurations, "_processors", lambda device: 132)
    chosen = configurations.splits(programs, blocks, torch.device("cpu"))
    assert 1 <= chosen <= min(blocks, 16)

    def idle(count: int) -> float:
        rounds = -(-programs * count // 132)
        return 1 - programs * count / (132 * rounds)

    assert idle(chosen) <= 0.1 or idle(chosen) == min(
        idle(c) for c in range(1, min(blocks, 16) + 1)
    )


def test_split_into_uneven_parts_leaves_no_part_empty() -> None:
    """An empty split would add log 0 = -inf, which is right, or uninitialised memory, which is not."""
    graph = Case(64, 4, 2).scores()
    for blocks in range(1, 60):
        num_splits, per_split = graph._divide(1, blocks)
        starts = [split * per_split for split in range(num_splits)] + [blocks]
        assert all(start < stop for start, stop in pairwise(starts))


def test_refusals() -> None:
    z, scale, ones = torch.eye(3), torch.ones(1), torch.ones(3)
    with pytest.raises(TypeError, match="float64"):
        TritonScores(z.double(), None, scale)
    with pytest.raises(ValueError, match="fp32, tf32, bf16"):
        TritonScores(z, None, scale, "fp8")
    with pytest.raises(ValueError, match="only the first term may have left and right"):
        TritonScores(z, None, scale).gradient([Term(ones, ones, ones, z, z)] * 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["gloss_r8_n128", "gloss_r8_n128_sigma01", "gloss_r8_n512"])
def test_golden_values(golden_dir: Path, name: str, precision: str) -> None:
    """The authors' F, loss and gradient, through the solver that the library uses."""
    saved = np.load(golden_dir / f"{name}.npz")
    embeddings = torch.tensor(saved["embeddings"], device=DEVICE, requires_grad=True)
    num_labelled, num_classes = int(saved["num_labelled"]), len(saved["class_weights"])
    labels = torch.tensor(saved["labels"], device=DEVICE)
    targets = torch.nn.functional.one_hot(labels[:num_labelled], num_classes).float()
    settings, route = Settings(tol=1e-6, precision=precision), Route("triton", "asked for")
    scale = torch.tensor(float(saved["sigma"]) ** -2, device=DEVICE)
    f, _ = propagate(dense.normalize(embeddings), scale, targets, settings, route)
    weights = torch.tensor(saved["class_weights"], dtype=torch.float32, device=DEVICE)
    loss = dense.official_loss(f, labels[num_labelled:], weights)
    loss.backward()

    def error(ours: Tensor, theirs: np.ndarray) -> float:
        exact = torch.tensor(theirs)
        return float((ours.detach().double().cpu() - exact).norm() / exact.norm())

    bounds = (1e-5, 1e-5, 5e-5) if precision == "fp32" else (1e-2, 1e-2, 1e-2)
    errors = (
        error(f, saved["propagated"]),
        error(loss, saved["loss"]),
        error(embeddings.grad, saved["grad_embeddings"]),
    )
    assert all(e <= b for e, b in zip(errors, bounds, strict=True)), errors


# Interpreted, each takes seconds: few, found and not shrunk; test_every_pass_in_fp32 has 333 classes.
@settings(max_examples=5 if DEVICE == "cpu" else 50, phases=[Phase.generate])
@given(graph=graphs().filter(lambda g: DEVICE != "cpu" or g.num_classes < 333))
def test_graphs_of_every_kind(graph: Graph) -> None:
    """As tests/test_graph_propagation.py asks it of the backends in torch."""
    ways = [{"backend": "triton", "device": DEVICE}]
    assert_right_or_reported(graph, ways, torch.float32, tol=1e-5, max_iter=64)
