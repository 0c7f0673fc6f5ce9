"""Losses of a row softmax of scores against plain torch, which stores them."""

import math

import pytest
import torch
from hypothesis import given, settings
from row_softmax_cases import problems, random, stored, with_gradients

from friction_kernels import row_softmax_loss
from friction_kernels.scores import row_softmax
from friction_kernels.targets import Distilled, Index, Scores, TopK


@pytest.mark.parametrize("rows", [None, pytest.param(3, marks=pytest.mark.deep)])
@settings(max_examples=min(100, settings().max_examples))  # each takes a tenth of a second
@given(problems())
def test_losses_and_gradients_are_those_of_stored_scores(rows, problem):
    *given_, options = problem
    if not (torch.isfinite(stored(*given_, **options)).all()):
        return
    with pytest.MonkeyPatch.context() as patch:
        if rows is not None:  # several tiles, and several blocks in each
            row_bytes = 8 * len(given_[1])
            patch.setattr(row_softmax, "TILE_BYTES", rows * row_bytes)
            patch.setattr(row_softmax, "BLOCK_BYTES", 2 * row_bytes)
        found = with_gradients(row_softmax_loss, *given_, options)
    expected = with_gradients(stored, *given_, options)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_second_derivatives_are_refused(reduction):
    x, w = random(3, 2).requires_grad_(), random(5, 2)
    loss = row_softmax_loss(x, w, Index(torch.tensor([0, 1, 2])), reduction=reduction).sum()
    with pytest.raises(RuntimeError, match="a row softmax loss cannot be differentiated twice"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_a_second_backward_is_refused():
    x, w = random(3, 2).requires_grad_(), random(5, 2)
    loss = row_softmax_loss(x, w, Index(torch.tensor([0, 1, 2])))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward\\(\\) was called twice"):
        loss.backward()


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, w: row_softmax_loss(x, w, LABELS), TypeError, "target is Tensor; give one of"),
        (
            lambda x, w: row_softmax_loss(x, torch.nn.Linear(2, 5), Index(LABELS)),
            TypeError,
            "w is Linear, and no tensor; give its weight",
        ),
        (lambda x, w: row_softmax_loss(x, w.long(), Index(LABELS)), TypeError, "w is torch.int64"),
        (lambda x, w: row_softmax_loss(x, w[:, :1], Index(LABELS)), ValueError, "x has 2 columns"),
        (lambda x, w: row_softmax_loss(x, w, Index(LABELS[:2])), ValueError, "labels must be 3"),
        (
            lambda x, w: row_softmax_loss(x, w, Index(LABELS + 3)),
            ValueError,
            "label 5 of row 2 is none of 5 columns",
        ),
        (
            lambda x, w: row_softmax_loss(
                x, w, TopK(LABELS[:, None].repeat(1, 2), random(3, 2).log_softmax(1))
            ),
            ValueError,
            "ids of row 0 are not all different",
        ),
        (
            lambda x, w: row_softmax_loss(x, w, TopK(LABELS[:, None], torch.ones(3, 1))),
            ValueError,
            "logprobs of row 0 must be logarithms",
        ),
        (
            lambda x, w: row_softmax_loss(x, w, Scores(x, w[:4])),
            ValueError,
            "the teacher has 4 columns, and the student 5",
        ),
        (
            lambda x, w: row_softmax_loss(x, w, Index(LABELS), kind="jsd"),
            ValueError,
            "kind 'jsd' compares with the logarithm",
        ),
        (
            lambda x, w: row_softmax_loss(x, w, Index(LABELS), kind="mse"),
            ValueError,
            "kind must be",
        ),
        (
            lambda x, w: row_softmax_loss(x * math.nan, w, Index(LABELS)),
            ValueError,
            "3 rows are NaN",
        ),
        (
            lambda x, w: row_softmax_loss(x, w, Index(LABELS), mask=torch.ones(5)),
            TypeError,
            "mask is torch.float32",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call(random(3, 2), random(5, 2))


def test_without_a_row_that_counts_loss_and_gradients_are_zero():
    x, w = random(3, 2).requires_grad_(), random(5, 2).requires_grad_()
    loss = row_softmax_loss(x, w, Index(torch.full((3,), -100)))
    loss.backward()
    assert loss == 0 and not x.grad.any() and not w.grad.any()


def test_a_bucket_of_columns_that_the_student_gives_next_to_nothing():
    """float32 has no probability of e^-200, and its logarithm all the same."""
    x, w = torch.ones(1, 1), torch.tensor([[200.0], [0.0], [-1.0]])
    target = TopK(torch.tensor([[0]]), torch.tensor([[-0.7]]), "bucket")
    problem = x, w, target, {"scale": 1.0, "bias": None, "kind": "kl"}
    found = with_gradients(row_softmax_loss, *problem)
    expected = with_gradients(stored, x.double(), w.double(), *problem[2:])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-6, atol=1e-6)


def test_statistics_are_those_of_the_softmax():
    x, w = random(3, 2), random(5, 2)
    found = row_softmax_loss(x, w, Index(torch.tensor([0, -100, 2])), statistics=True)
    p = (x @ w.T).softmax(1)
    torch.testing.assert_close(found.lse, (x @ w.T).logsumexp(1))
    torch.testing.assert_close(found.entropy, -(p * p.log()).sum(1))
    spared = row_softmax_loss(x, w, Index(torch.tensor([0, -100, 2])), statistics="without entropy")
    assert spared.entropy is None and torch.equal(spared.lse, found.lse)
    assert found.counted.tolist() == [True, False, True]


@pytest.mark.parametrize("mask", [torch.arange(5) < 3, "causal", "diagonal"], ids=str)
def test_a_label_that_the_mask_takes_out_is_named(mask):
    x, w = random(3, 2), random(5, 2)
    diagonal = isinstance(mask, str) and mask == "diagonal"
    labels = torch.tensor([1, 1, 0] if diagonal else [0, 4, 1])
    with pytest.raises(ValueError, match=f"label {labels[1]} of row 1 is a column that mask takes"):
        row_softmax_loss(x, w, Index(labels), mask=mask)
    assert row_softmax_loss(x, w, Index(labels), mask=mask, validate=False) == torch.inf
    labels[1:] = -100
    assert row_softmax_loss(x, w, Index(labels), mask=mask) < torch.inf


def test_a_bucket_of_no_columns_holds_nothing():
    torch.manual_seed(0)
    x, w = torch.randn(4, 8), torch.randn(1000, 8)
    logprobs, ids = torch.randn(4, 1000).log_softmax(1).topk(1000)
    expected = -(logprobs.exp() * (x @ w.T).log_softmax(1).gather(1, ids)).sum(1).mean()
    for target in (
        TopK(ids, logprobs, "bucket"),
        Distilled(ids[:, 0], TopK(ids, logprobs, "bucket"), 1.0, 1.0),
    ):
        torch.testing.assert_close(row_softmax_loss(x, w, target), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_probabilities_may_be_stored_in_16_bits(dtype):
    torch.manual_seed(0)
    logprobs, ids = (4 * torch.randn(64, 1000)).log_softmax(1).topk(500)
    x, w = torch.randn(64, 8), torch.randn(1000, 8)
    exact = row_softmax_loss(x, w, TopK(ids, logprobs))
    rounded = row_softmax_loss(x, w, TopK(ids, logprobs.to(dtype)))
    torch.testing.assert_close(rounded, exact, rtol=1e-2, atol=0)
