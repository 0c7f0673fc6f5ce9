"""The three passes of every backend in torch, against the matrices that they stand for."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from graph_cases import clusters, relative

from friction_kernels.graph import tiles
from friction_kernels.graph.backend import Cotangents, Normalisers
from friction_kernels.graph.chunked import ChunkedSimilarity
from friction_kernels.graph.dense import log_transition, normalize
from friction_kernels.graph.transition import Transition
from friction_kernels.graph.weighted import WeightedSimilarity

KINDS = [
    (ChunkedSimilarity, 0.5),
    (ChunkedSimilarity, 0.1),
    (WeightedSimilarity, 0.5),
    (WeightedSimilarity, 0.23),  # 1 / sigma^2 = 18.9, near its limit
]


@contextmanager
def rows_per_tile(rows: int):
    with mock.patch.multiple(tiles, FEWEST_ROWS=1, MOST_ROWS=rows):
        yield


def make(kind, sigma, *, stored, dtype=torch.float64, num_nodes=23, dim=6):
    e, _ = clusters(num_nodes, dim, 3)
    z = normalize(e).to(dtype)
    scale = torch.tensor(sigma**-2, dtype=dtype)
    x = (z.double() @ z.double().T * sigma**-2).fill_diagonal_(-torch.inf)
    return kind(z, scale, stored=stored), x


@pytest.mark.parametrize("stored", (False, True))
@pytest.mark.parametrize(("kind", "sigma"), KINDS)
@pytest.mark.parametrize("rows", (1, 5, 7, 100))
def test_passes(kind, sigma, stored, rows):
    with rows_per_tile(rows):
        similarity, x = make(kind, sigma, stored=stored)
        n = len(x)
        t = Transition(similarity, 9)
        log_degree = x.logsumexp(dim=1)
        log_u = (x - log_degree / 2).logsumexp(dim=1)
        log_r = (x - log_u).logsumexp(dim=1)
        expected = Normalisers(log_degree, log_u, log_r)
        for ours, exact, first in zip(t.normalisers, expected, (0, 0, 9), strict=True):
            assert (
                relative(ours[first:], exact[first:]) < 1e-13
            )  # log r is needed of rows in U alone
        assert relative(similarity.logsumexp(-log_u), log_r) < 1e-13

        generator = torch.Generator().manual_seed(1)

        def random(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        p_t = (x - log_r[:, None] - log_u).exp()
        assert relative(p_t, log_transition(similarity.z, sigma)) < 1e-12
        for rows, columns in (
            (range(n), range(n)),
            (range(9, n), range(9)),
            (range(3, 11), range(5, n)),
        ):
            values = random(len(columns), 4)
            i, j = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
            ours = similarity.apply(rows, columns, -log_r[i], -log_u[j], values)
            assert relative(ours, p_t[i, j] @ values) < 1e-12

        p = (x - log_u[:, None] - log_degree / 2).exp()
        q = (x - log_degree[:, None]).exp()
        c = Cotangents(random(n, 3), random(n, 3), random(n), random(n), random(n))
        m = p_t * (c.left @ c.right.T - c.of_transition[:, None])
        m += p * c.of_log_u[:, None] + q * c.of_log_degree[:, None]
        exact = (m + m.T) @ similarity.z / sigma**2
        assert relative(similarity.gradient(expected, c), exact) < 1e-12


@pytest.mark.parametrize(("kind", "sigma"), KINDS)
def test_kept_transition_multiplies_like_a_recomputed_one(kind, sigma):
    with rows_per_tile(4):
        similarity, _ = make(kind, sigma, stored=False, dtype=torch.float32)
        values = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
        recomputed, float32, bfloat16 = (Transition(similarity, 9) for _ in range(3))
        assert float32.keep(torch.float32).dtype == torch.float32
        assert bfloat16.keep(torch.bfloat16).dtype == torch.bfloat16
        labels = torch.nn.functional.one_hot(torch.arange(9) % 3).float()
        exact = recomputed.from_labels(labels)
        exact_mass = exact.sum(dim=1, keepdim=True)
        for kept in (float32, bfloat16):
            assert relative(kept.from_labels(labels), exact) < 1e-5
        for product in ("times", "transposed_times"):
            exact = getattr(recomputed, product)(values)
            assert relative(getattr(float32, product)(values), exact) < 1e-5
            assert relative(getattr(bfloat16, product)(values), exact) < 2**-8
        ones = torch.ones(14, 1)  # whatever is rounded, rows pass all of their probability on
        assert relative(recomputed.times(ones) + exact_mass, ones) < 1e-6
        assert relative(bfloat16.times(ones), recomputed.times(ones)) < 1e-5


def test_precisions_round_what_a_tensor_core_reads():
    z = torch.tensor([1 + 2**-9, 1 + 2**-12, -(1 + 2**-10), 1e-30, 3.4e38])
    assert (tiles.round_to("fp32", z) == z).all()
    assert (tiles.round_to("bf16", z) == z.bfloat16().float()).all()
    # ten bits of mantissa: 2^-10 stays, 2^-12 goes
    assert tiles.round_to("tf32", z)[:3].tolist() == [1 + 2**-9, 1.0, -(1 + 2**-10)]
