"""Contrastive losses against plain torch, which stores their scores, and against other libraries' losses."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, normalize

from friction_kernels import GraphMemory, InfoNCELoss, RetrievalLoss, SupConLoss

pytestmark = pytest.mark.usefixtures("one_thread")

few = settings(max_examples=min(200, settings().max_examples))  # each takes long

SIZES = [1, 2, 5, 33, 127, 129]
WIDTHS = [1, 2, 33, 129]
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(count, seed=0, number=5):
    return torch.randint(number, (count,), generator=torch.Generator().manual_seed(seed))


def stored_supcon(z, labels, temperature=0.1, mask=None, columns=None, of_columns=None):
    """The mean over rows with positives; columns: the rows', or these, of which the first are the rows."""
    columns, of_columns = (z, labels) if columns is None else (columns, of_columns)
    meets = ~torch.eye(len(z), len(columns), dtype=torch.bool)
    meets = meets if mask is None else meets & mask
    scores = (z @ columns.T / temperature).masked_fill(~meets, -math.inf)
    log_p = scores.log_softmax(1).masked_fill(~meets, 0)
    positive = (labels[:, None] == of_columns) & meets
    some = positive.any(1)
    of_row = -(positive * log_p).sum(1) / positive.sum(1).clamp_min(1)
    return torch.where(some, of_row, 0).sum() / some.sum().clamp_min(1), (~some).sum()


def with_gradients(function, *tensors):
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    loss = function(*inputs)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def assert_same(found, expected, **bounds):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **(bounds or EXACT))


@few
@given(st.sampled_from(SIZES), st.sampled_from(WIDTHS), st.integers(0, 99), st.booleans())
def test_supcon_is_that_of_stored_scores(n, d, seed, masked):
    e, labels = random(n, d, seed=seed), classes(n, seed)
    mask = random(n, n, seed=seed) < 1 if masked else None
    temperature = torch.tensor(0.2, dtype=torch.float64)
    loss_fn = None

    def mine(e, temperature):
        nonlocal loss_fn
        loss_fn = SupConLoss(temperature)
        return loss_fn(e, labels, mask)

    def theirs(e, temperature):
        return stored_supcon(normalize(e), labels, temperature, mask)[0]

    assert_same(with_gradients(mine, e, temperature), with_gradients(theirs, e, temperature))
    assert loss_fn.without_positives == stored_supcon(normalize(e), labels, mask=mask)[1]


@few
@given(st.sampled_from(SIZES), st.integers(0, 20), st.sampled_from(WIDTHS), st.integers(0, 99))
def test_infonce_is_cross_entropy_of_stored_scores(n, k, d, seed):
    rows = [random(count, d, seed=seed + i) for i, count in enumerate((n, n, k)) if count]
    scale, labels = torch.tensor(7.0, dtype=torch.float64), torch.arange(n)

    def stored(q, key, *rest, symmetric):
        *rest, scale = rest
        q, key = normalize(q), normalize(key)
        columns = torch.cat((key, *(normalize(r) for r in rest)))
        loss = cross_entropy(scale * q @ columns.T, labels)
        return (loss + cross_entropy(scale * key @ q.T, labels)) / 2 if symmetric else loss

    for symmetric in (False, True):
        loss_fn = InfoNCELoss(symmetric=symmetric)
        found = with_gradients(lambda *r, f=loss_fn: f(*r[:-1], scale=r[-1]), *rows, scale)
        expected = with_gradients(lambda *r, s=symmetric: stored(*r, symmetric=s), *rows, scale)
        assert_same(found, expected)


@few
@given(st.sampled_from(SIZES), st.sampled_from(SIZES), st.sampled_from(WIDTHS), st.booleans())
def test_retrieval_is_that_of_stored_scores(n, m, d, unit):
    q, documents, positives = random(n, d), random(m, d, seed=1), classes(n, number=m)
    positives[n // 2 + 1 :] = -100
    temperature = torch.tensor(0.7, dtype=torch.float64)

    def scores(q, documents, temperature):
        pair = (normalize(q), normalize(documents, dim=-1)) if unit else (q, documents)
        if documents.dim() == 2:
            return pair[0] @ pair[1].T / temperature
        return (pair[1] @ pair[0][:, :, None])[:, :, 0] / temperature

    found = with_gradients(
        lambda q, w, t: RetrievalLoss(t, unit)(q, w, positives), q, documents, temperature
    )
    expected = with_gradients(
        lambda *given_: cross_entropy(scores(*given_), positives), q, documents, temperature
    )
    assert_same(found, expected)
    for some in (documents, random(n, 3, d, seed=2)):
        found = with_gradients(
            lambda q, w, t: RetrievalLoss(t, unit).mix(q, w).square().sum(), q, some, temperature
        )
        product = "nk,kd->nd" if some.dim() == 2 else "nk,nkd->nd"
        expected = with_gradients(
            lambda q, w, t, p=product: (
                torch.einsum(p, scores(q, w, t).softmax(1), w).square().sum()
            ),
            q,
            some,
            temperature,
        )
        assert_same(found, expected)


def test_a_mixture_trains_the_retriever():
    q, documents = random(2, 4).requires_grad_(), random(2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(RetrievalLoss(0.5).mix, (q, documents))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_embeddings_give_float32_losses(dtype):
    e, labels = random(257, 65, dtype=torch.float32).to(dtype), classes(257)
    losses = [lambda f: SupConLoss()(f, labels), lambda f: InfoNCELoss()(f, f.flip(0))]
    for loss_of in losses:
        loss, gradient = with_gradients(loss_of, e)
        expected, of_exact = with_gradients(loss_of, e.double())
        assert loss.dtype == torch.float32 and gradient.dtype == dtype
        assert abs(loss - expected) / expected < 1e-5
        bound = 5e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        assert (gradient - of_exact).abs().max() < bound * of_exact.abs().max()


def test_rows_without_positives_leave_the_mean_and_are_counted():
    e, labels = random(6, 3), torch.tensor([0, 0, 1, 2, -100, -100])
    loss_fn = SupConLoss()
    loss, gradient = with_gradients(lambda e: loss_fn(e, labels), e)
    assert loss_fn.without_positives == 2
    expected = with_gradients(lambda e: stored_supcon(normalize(e[:4]), labels[:4])[0], e)
    assert_same((loss, gradient), expected)
    rows = SupConLoss(reduction="none")(e, labels)
    assert rows.shape == (6,) and not rows[2:].any() and torch.allclose(rows.sum() / 2, loss)


@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [-100, -100]], ids=str)
def test_without_any_positives_loss_and_gradient_are_zero(labels):
    loss_fn = SupConLoss()
    labels = torch.tensor(labels)
    loss, gradient = with_gradients(lambda e: loss_fn(e, labels), random(len(labels), 3))
    assert loss == 0 and not gradient.any()
    assert loss_fn.without_positives == (labels != -100).sum()


def test_one_pair_has_a_loss_of_zero():
    loss, *gradients = with_gradients(InfoNCELoss(symmetric=True), random(1, 3), random(1, 3))
    assert loss == 0 and not any(g.any() for g in gradients)


@pytest.mark.parametrize("seed", range(3))
def test_pytorch_metric_learning_gives_the_same(seed):
    reason = "pytorch-metric-learning is not installed"
    their = pytest.importorskip("pytorch_metric_learning.losses", reason=reason)
    e, labels = random(65, 17, seed=seed), classes(65, seed, number=20)
    found = with_gradients(lambda e: SupConLoss(0.2)(e, labels), e)
    assert_same(found, with_gradients(lambda e: their.SupConLoss(0.2)(e, labels), e))


def test_a_trained_temperature_is_a_parameter():
    for loss_fn, count in (
        (SupConLoss(torch.nn.Parameter(torch.tensor(0.1))), 1),
        (InfoNCELoss(torch.nn.Parameter(torch.tensor([0.1]))), 1),
        (SupConLoss(0.1), 0),
    ):
        assert len(list(loss_fn.parameters())) == count
        assert "temperature=0.1" in repr(loss_fn)


def test_a_memorys_rows_are_further_columns():
    memory = GraphMemory(50, 8)
    loss_fn = SupConLoss(0.2, memory=memory)
    first, second = random(20, 8, dtype=torch.float32), random(12, 8, seed=1, dtype=torch.float32)
    labels, of_second = classes(20), classes(12, 1)
    loss_fn(first, labels, ids=torch.arange(20))
    assert len(memory) == 20
    ids = torch.arange(15, 27)  # five documents come again
    mask = random(12, 12) < 1

    def stored(e):
        z = normalize(e)
        columns = torch.cat((z, normalize(first[:15])))
        meets = torch.cat((mask, torch.ones(12, 15, dtype=torch.bool)), 1)
        return stored_supcon(
            z, of_second, 0.2, meets, columns, torch.cat((of_second, labels[:15]))
        )[0]

    found = with_gradients(lambda e: loss_fn(e, of_second, mask, ids), second)
    assert_same(found, with_gradients(stored, second), rtol=1e-5, atol=1e-6)
    assert len(memory) == 27
    loss_fn.eval()
    loss_fn(second, of_second)
    loss_fn.train()
    with torch.no_grad():
        loss_fn(second, of_second)
    assert len(memory) == 27


PEAK_MEMORY = """
import resource, torch
from friction_kernels import SupConLoss

def run(n):
    e = torch.randn(n, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    SupConLoss()(e, torch.arange(n) % 100).backward()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = run(300)
print((run(16_384) - before) * 1024)
"""


@pytest.mark.deep
def test_memory_at_16384_rows_is_far_below_a_matrix():
    run = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, timeout=300, check=True
    )
    assert int(run.stdout) < 16_384**2 * 4 / 8


E, LABELS = random(4, 3), torch.tensor([0, 0, 1, 1])
ERRORS = [
    (ValueError, "temperature must be positive", lambda: SupConLoss(0)),
    (ValueError, "temperature must be positive", lambda: InfoNCELoss(torch.tensor(-1.0))),
    (ValueError, r"temperature as a tensor .* \(2,\)", lambda: RetrievalLoss(torch.ones(2))),
    (TypeError, "temperature must be a number", lambda: SupConLoss("low")),
    (ValueError, "reduction must be one of", lambda: SupConLoss(reduction="average")),
    (TypeError, "memory must be a GraphMemory, got int", lambda: SupConLoss(memory=100)),
    (
        ValueError,
        "needs normalize=True",
        lambda: SupConLoss(memory=GraphMemory(4, 3), normalize=False),
    ),
    (ValueError, r"embeddings must have shape \(N, d\)", lambda: SupConLoss()(E[0], LABELS)),
    (ValueError, r"labels must have shape \(4,\)", lambda: SupConLoss()(E, LABELS[:3])),
    (TypeError, "labels must be an integer tensor", lambda: SupConLoss()(E, LABELS.float())),
    (TypeError, "mask must be a bool tensor", lambda: SupConLoss()(E, LABELS, torch.ones(4, 4))),
    (
        ValueError,
        r"mask must have shape \(4, 4\), got \(4,\)",
        lambda: SupConLoss()(E, LABELS, LABELS > 0),
    ),
    (TypeError, "keys must be a floating-point tensor", lambda: InfoNCELoss()(E, LABELS)),
    (ValueError, "keys must be 4, .* as negatives", lambda: InfoNCELoss()(E, torch.cat((E, E)))),
    (ValueError, "negatives have 2 columns and queries 3", lambda: InfoNCELoss()(E, E, E[:, :2])),
    (ValueError, "label 4 of row 1", lambda: RetrievalLoss()(E, E, torch.tensor([0, 4, 1, 1]))),
    (
        ValueError,
        r"documents must have shape \(M, d\), or \(4, K, d\)",
        lambda: RetrievalLoss().mix(E, E[None]),
    ),
]


@pytest.mark.parametrize("error, said, call", ERRORS, ids=[said for _, said, _ in ERRORS])
def test_errors_name_what_is_wrong(error, said, call):
    with pytest.raises(error, match=said):
        call()


def test_a_rows_direction_is_asked_for_by_name():
    rows = E.clone()
    rows[1], rows[2, 0] = 0, math.nan
    for call in (
        lambda: SupConLoss()(rows, LABELS),
        lambda: InfoNCELoss()(E, E, rows),
        lambda: RetrievalLoss(normalize=True)(E, rows, LABELS),
    ):
        with pytest.raises(ValueError, match="have NaN, infinite or zero length in rows 1, 2;"):
            call()


@pytest.mark.deep
@pytest.mark.skipif(not torch.distributed.is_available(), reason="no torch.distributed")
class TestGathered:
    """Several processes (gloo) against one that has all rows."""

    @pytest.mark.parametrize("loss", ["supcon", "infonce"])
    def test_losses_and_gradients_are_those_of_one_process(self, processes, loss):
        import contrastive_ranks

        assert max(processes.run(getattr(contrastive_ranks, loss))) < 1e-12

    def test_gradients_averaged_by_ddp_are_those_of_one_process(self, processes):
        import contrastive_ranks

        assert max(processes.run(contrastive_ranks.averaged_by_ddp)) < 1e-12

    def test_memories_are_the_same(self, processes):
        import contrastive_ranks

        found = processes.run(contrastive_ranks.remembered)
        assert all(one == found[0] for one in found)

    def test_a_mask_is_of_one_rank(self, processes):
        import contrastive_ranks

        assert all(
            "one rank's rows" in said for said in processes.run(contrastive_ranks.mask_refused)
        )
