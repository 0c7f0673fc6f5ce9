"""The passes of every backend in torch, against the matrices that they stand for in plain torch."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from graph_cases import clusters, relative

from friction_kernels.graph.dense import log_transition, normalize
from friction_kernels.graph.transition import Normalisers, Transition
from friction_kernels.scores import chunked
from friction_kernels.scores.backend import Term
from friction_kernels.scores.chunked import ExpDomainScores, LogDomainScores

KINDS = [
    (LogDomainScores, 0.5),
    (LogDomainScores, 0.1),
    (ExpDomainScores, 0.5),
    (ExpDomainScores, 0.23),  # 1 / sigma^2 = 18.9, near its limit
]


@contextmanager
def rows_per_tile(rows: int):
    with mock.patch.multiple(chunked, FEWEST_ROWS=1, MOST_ROWS=rows):
        yield


def make(kind, sigma, *, stored, dtype=torch.float64, num_nodes=23, dim=6):
    e, _ = clusters(num_nodes, dim, 3)
    z = normalize(e).to(dtype)
    scale = torch.tensor(sigma**-2, dtype=dtype)
    x = (z.double() @ z.double().T * sigma**-2).fill_diagonal_(-torch.inf)
    return kind(z, None, scale, mask_diagonal=True, stored=stored), x


class Random:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)


@pytest.mark.parametrize("mask_diagonal", (False, True))
@pytest.mark.parametrize("stored", (False, True))
@pytest.mark.parametrize(("kind", "scale"), ((LogDomainScores, 300.0), (ExpDomainScores, 9.0)))
@pytest.mark.parametrize(
    ("num_queries", "num_keys", "dim", "rows"), ((1, 2, 1, 1), (7, 23, 6, 3), (23, 7, 5, 100))
)
def test_queries_and_keys_equal_plain_torch_with_autograd(
    num_queries, num_keys, dim, rows, kind, scale, stored, mask_diagonal
):
    """A cross-entropy of rows against weighted keys, and its gradient in terms."""
    random = Random()
    q, k = (normalize(random(n, dim)).requires_grad_() for n in (num_queries, num_keys))
    factor = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    bias, values = random(num_keys), random(num_keys, 2)
    x = factor * q @ k.T
    if mask_diagonal:
        x = x.masked_fill(torch.eye(num_queries, num_keys, dtype=bool), -torch.inf)
    lse = (x + bias).logsumexp(dim=1)
    p = (x + bias - lse[:, None]).exp()
    to_lse, to_applied = random(num_queries), random(num_queries, 2)
    of_q, of_k, of_factor = torch.autograd.grad(
        (to_lse * lse).sum() + (to_applied * (p @ values)).sum(), (q, k, factor)
    )
    with rows_per_tile(rows), torch.no_grad():
        scores = kind(q, k, factor, mask_diagonal=mask_diagonal, stored=stored)
        assert relative(scores.logsumexp(bias), lse) < 1e-13
        some = range(num_queries // 2, num_queries)
        assert relative(scores.logsumexp(bias, some), lse[some.start :]) < 1e-13
        applied = scores.apply(range(num_queries), range(num_keys), -lse, bias, values)
        assert relative(applied, p @ values) < 1e-12
        part = scores.apply(some, range(1, num_keys), -lse[some.start :], bias[1:], values[1:])
        assert relative(part, p[some.start :, 1:] @ values[1:]) < 1e-12
        # dL/dx_ij = p_ij (to_lse_i + to_applied_i . values_j - to_applied_i . applied_i), in two terms
        terms = (
            Term(-lse, bias, -(to_applied * applied).sum(dim=1), to_applied, values),
            Term(-lse, bias, to_lse),
        )
        ours_q, ours_k = scores.gradient(terms)
        size = max(of_q.abs().max(), of_k.abs().max(), torch.tensor(1e-3))
        assert (ours_q - of_q).abs().max() < 1e-12 * size
        assert (ours_k - of_k).abs().max() < 1e-12 * size
        assert abs((q * ours_q).sum() / factor - of_factor) < 1e-11 * size


@pytest.mark.parametrize("kind", (LogDomainScores, ExpDomainScores))
def test_a_row_whose_only_key_is_masked_has_no_weight(kind):
    z = torch.ones(1, 3, dtype=torch.float64)
    scores = kind(z, None, torch.tensor(1.0, dtype=torch.float64), mask_diagonal=True)
    assert scores.logsumexp(z.new_zeros(1)) == -torch.inf


@pytest.mark.parametrize("stored", (False, True))
@pytest.mark.parametrize(("kind", "sigma"), KINDS)
@pytest.mark.parametrize("rows", (1, 5, 7, 100))
def test_passes_of_a_graph(kind, sigma, stored, rows):
    with rows_per_tile(rows):
        scores, x = make(kind, sigma, stored=stored)
        n = len(x)
        t = Transition(scores, 9)
        log_degree = x.logsumexp(dim=1)
        log_u = (x - log_degree / 2).logsumexp(dim=1)
        log_r = (x - log_u).logsumexp(dim=1)
        expected = Normalisers(log_degree, log_u, log_r)
        for ours, exact, first in zip(t.normalisers, expected, (0, 0, 9), strict=True):
            assert (
                relative(ours[first:], exact[first:]) < 1e-13
            )  # log r is needed of rows in U alone
        assert relative(scores.logsumexp(-log_u), log_r) < 1e-13

        random = Random()
        p_t = (x - log_r[:, None] - log_u).exp()
        assert relative(p_t, log_transition(scores.queries, sigma)) < 1e-12
        for rows, columns in (
            (range(n), range(n)),
            (range(9, n), range(9)),
            (range(3, 11), range(5, n)),
        ):
            values = random(len(columns), 4)
            i, j = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
            ours = scores.apply(rows, columns, -log_r[i], -log_u[j], values)
            assert relative(ours, p_t[i, j] @ values) < 1e-12

        p = (x - log_u[:, None] - log_degree / 2).exp()
        q = (x - log_degree[:, None]).exp()
        left, right = random(n, 3), random(n, 3)
        of_t, of_u, of_degree = random(n), random(n), random(n)
        m = p_t * (left @ right.T + of_t[:, None]) + p * of_u[:, None] + q * of_degree[:, None]
        terms = (
            Term(-log_r, -log_u, of_t, left, right),
            Term(-log_u, log_degree / -2, of_u),
            Term(-log_degree, torch.zeros_like(log_degree), of_degree),
        )
        ours, nothing = scores.gradient(terms)
        assert nothing is None
        assert relative(ours, (m + m.T) @ scores.queries / sigma**2) < 1e-12


@pytest.mark.parametrize(("kind", "sigma"), KINDS)
def test_a_stored_transition_multiplies_like_a_recomputed_one(kind, sigma):
    with rows_per_tile(4):
        scores, _ = make(kind, sigma, stored=False, dtype=torch.float32)
        values = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
        recomputed, float32, bfloat16 = (Transition(scores, 9) for _ in range(3))
        float32.store(torch.float32)
        bfloat16.store(torch.bfloat16)
        labels = torch.nn.functional.one_hot(torch.arange(9) % 3).float()
        exact = recomputed.from_labels(labels)
        exact_mass = exact.sum(dim=1, keepdim=True)
        for stored in (float32, bfloat16):
            assert relative(stored.from_labels(labels), exact) < 1e-5
        for product in ("times", "transposed_times"):
            exact = getattr(recomputed, product)(values)
            assert relative(getattr(float32, product)(values), exact) < 1e-5
            assert relative(getattr(bfloat16, product)(values), exact) < 2**-8
        ones = torch.ones(14, 1)  # whatever is rounded, rows pass all of their probability on
        assert relative(recomputed.times(ones) + exact_mass, ones) < 1e-6
        assert relative(bfloat16.times(ones), recomputed.times(ones)) < 1e-5


def test_precisions_round_what_a_tensor_core_reads():
    z = torch.tensor([1 + 2**-9, 1 + 2**-12, -(1 + 2**-10), 1e-30, 3.4e38])
    assert (chunked.round_to("fp32", z) == z).all()
    assert (chunked.round_to("bf16", z) == z.bfloat16().float()).all()
    # ten bits of mantissa: 2^-10 stays, 2^-12 goes
    assert chunked.round_to("tf32", z)[:3].tolist() == [1 + 2**-9, 1.0, -(1 + 2**-10)]
