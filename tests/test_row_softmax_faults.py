"""Row softmax losses under torch's modes, and of numbers that are not finite."""

import math

import pytest
import torch
from row_softmax_cases import random
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from friction_kernels import (
    FeatureAlignment,
    GraphMemory,
    LinearCrossEntropyLoss,
    SupConLoss,
    row_softmax_loss,
)
from friction_kernels.scores import row_softmax
from friction_kernels.targets import Distilled, Index, SameLabel, Scores, TopK

LABELS = torch.tensor([0, 1, 2, -100, 4, 3])


def operands():
    return random(6, 4).requires_grad_(), random(5, 4, seed=1).requires_grad_()


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.deep)])
def test_a_compiled_loss_is_that_of_the_loss(backend):
    hidden, weight = operands()
    expected = functional.cross_entropy(hidden @ weight.T, LABELS)
    compiled = torch.compile(LinearCrossEntropyLoss(), backend=backend)
    loss = compiled(hidden, weight, LABELS)
    gradients = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    of_stored = torch.autograd.grad(expected, (hidden, weight))
    for mine, theirs in zip((loss, *gradients), (expected, *of_stored), strict=True):
        torch.testing.assert_close(mine, theirs)
    with pytest.raises(RuntimeError, match="called twice"):
        loss.backward()


def test_rows_as_wide_as_the_widest_models():
    hidden, weight = (random(n, 8192, seed=n).float().requires_grad_() for n in (3, 5))
    labels = torch.tensor([0, 4, 2])
    loss = LinearCrossEntropyLoss()(hidden, weight, labels)
    expected = functional.cross_entropy(hidden.double() @ weight.double().T, labels)
    found = (loss, *torch.autograd.grad(loss, (hidden, weight)))
    exact = (expected, *torch.autograd.grad(expected, (hidden, weight)))
    for mine, theirs in zip(found, exact, strict=True):
        error = torch.linalg.vector_norm(mine.double() - theirs.double())
        assert error < 5e-5 * torch.linalg.vector_norm(theirs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_makes_no_gradients(mode, monkeypatch):
    (hidden, weight), asked_for = operands(), []
    chunked = row_softmax.chunked

    def seen(*args):
        asked_for.append(args[5])
        return chunked(*args)

    monkeypatch.setattr(row_softmax, "chunked", seen)
    with mode():
        loss = row_softmax_loss(hidden, weight, Index(LABELS))
    assert not any(asked_for[0])
    torch.testing.assert_close(loss, functional.cross_entropy(hidden @ weight.T, LABELS))


def test_a_memory_is_not_recomputed():
    memory, rows = GraphMemory(4, 3), random(4, 3).float().requires_grad_()
    loss_fn, labels = SupConLoss(memory=memory), torch.tensor([0, 0, 1, 1])
    loss = checkpoint(lambda e: loss_fn(e, labels), rows, use_reentrant=False)
    with pytest.raises(RuntimeError, match=r"SupConLoss was called by backward\(\)"):
        loss.backward()


@pytest.mark.parametrize("changed", ["labels", "teacher", "mask"])
def test_what_backward_reads_again_may_not_change(changed):
    x, w = operands()
    given = {
        "labels": LABELS.clone(),
        "teacher": random(5, 3, seed=2),
        "mask": torch.ones(5, dtype=torch.bool),
    }
    target = Distilled(given["labels"], Scores(random(6, 3, seed=3), given["teacher"]))
    losses = row_softmax_loss(
        x, w, target, kind="kl", mask=given["mask"], reduction="none", backend="chunked"
    )
    given[changed][0] = 1
    with pytest.raises(RuntimeError, match=r"target or the mask .* was changed in place"):
        losses.sum().backward()


def test_an_infinite_factor_of_a_row_that_does_not_count_is_nothing():
    x, w = operands()
    losses = row_softmax_loss(x, w, Index(LABELS), reduction="none")
    factors = torch.ones_like(losses)
    factors[3] = math.inf
    dx, dw = torch.autograd.grad(losses, (x, w), factors)
    expected = functional.cross_entropy(x @ w.T, LABELS, reduction="sum")
    for mine, theirs in zip((dx, dw), torch.autograd.grad(expected, (x, w)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_number_that_scales_does_not_widen_a_sum():
    x, w = (t.detach().float() for t in operands())
    scale = torch.tensor(2.0, dtype=torch.float64)
    assert row_softmax_loss(x, w, Index(LABELS), scale=scale, reduction="sum").dtype == x.dtype


@pytest.mark.parametrize("kind", ["ce", "kl", "reverse_kl", "jsd"])
def test_a_teacher_that_is_not_a_number_is_named(kind):
    x, w = operands()
    theirs = random(6, 3)
    theirs[2, 0] = math.nan
    with pytest.raises(ValueError, match="the teacher's scores or logprobs of 1 rows are NaN: 2;"):
        row_softmax_loss(x, w, Scores(theirs, random(5, 3)), kind=kind)
    with torch.no_grad():
        x[4] = math.nan
    with pytest.raises(ValueError, match="scores of 1 rows are NaN: 4;"):
        row_softmax_loss(x, w, Scores(random(6, 3), random(5, 3)), kind=kind)
    loss = row_softmax_loss(x, w, Scores(random(6, 3), random(5, 3)), kind=kind, validate=False)
    (dx,) = torch.autograd.grad(loss, x)
    assert loss.isnan() and dx[4].isnan().all() and dx[3].isfinite().all()


@pytest.mark.parametrize(
    ("kind", "of_teacher"), [("kl", False), ("ce", False), ("reverse_kl", True)]
)
def test_what_one_side_excludes_and_the_other_expects_is_infinitely_far(kind, of_teacher):
    x, w = operands()
    bias = torch.tensor([0.0, 0.0, -math.inf, 0.0, 0.0], dtype=x.dtype)
    teacher = Scores(random(6, 3), random(5, 3), bias=bias if of_teacher else None)
    loss = row_softmax_loss(x, w, teacher, kind=kind, bias=None if of_teacher else bias)
    assert loss == math.inf
    both = Scores(random(6, 3), random(5, 3), bias=bias)
    loss = row_softmax_loss(x, w, both, kind=kind, bias=bias)
    fewer = torch.tensor([0, 1, 3, 4])
    expected = row_softmax_loss(x, w[fewer], Scores(both.x, both.w[fewer]), kind=kind)
    torch.testing.assert_close(loss, expected)


def test_labels_that_a_loss_does_not_weigh_may_be_impossible():
    x, w = operands()
    bias = torch.tensor([-math.inf, 0.0, 0.0, 0.0, 0.0], dtype=x.dtype)
    teacher = Scores(random(6, 3), random(5, 3), bias=bias)
    loss = row_softmax_loss(x, w, Distilled(LABELS, teacher, alpha=1.0), kind="kl", bias=bias)
    assert loss < math.inf
    assert row_softmax_loss(x, w, Distilled(LABELS, teacher), kind="kl", bias=bias) == math.inf


def test_probabilities_below_what_a_number_can_be_are_renormalised():
    x, w = (t.detach().float() for t in operands())
    ids = torch.arange(3).expand(6, 3)
    loss = row_softmax_loss(x, w, TopK(ids, torch.full((6, 3), -120.0)))
    log_p = (x @ w.T).log_softmax(1)
    torch.testing.assert_close(loss, -log_p[:, :3].mean(1).mean())
    with pytest.raises(ValueError, match="logprobs of row 0 are all -inf"):
        row_softmax_loss(x, w, TopK(ids, torch.full((6, 3), -math.inf)))


def test_a_stored_column_that_the_mask_takes_out_is_named():
    x, w = operands()
    ids, mask = torch.arange(3).expand(6, 3), torch.tensor([True, True, False, True, True])
    logprobs = torch.full((6, 3), -2.0, dtype=x.dtype)
    with pytest.raises(ValueError, match="ids of row 0 have a column that mask takes out"):
        row_softmax_loss(x, w, TopK(ids, logprobs), mask=mask)
    logprobs[:, 2] = -math.inf
    found = row_softmax_loss(x, w, TopK(ids, logprobs), mask=mask)
    two = row_softmax_loss(x, w, TopK(ids[:, :2], logprobs[:, :2]), mask=mask)
    torch.testing.assert_close(found, two)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16], ids=str)
def test_labels_may_be_integers_of_any_type(dtype):
    x, w = random(3, 4), random(300, 4, seed=1)
    labels = torch.tensor([100, 0, 7])
    narrow = labels.to(dtype)
    torch.testing.assert_close(
        row_softmax_loss(x, w, Index(narrow)), row_softmax_loss(x, w, Index(labels))
    )
    shifted = LinearCrossEntropyLoss(shift=True)
    torch.testing.assert_close(shifted(x, w, narrow), shifted(x, w, labels))
    same = (SameLabel(narrow, narrow.repeat(100)), SameLabel(labels, labels.repeat(100)))
    torch.testing.assert_close(*(row_softmax_loss(x, w, target) for target in same))
    ids, logprobs = labels[:, None], torch.full((3, 1), -1.0, dtype=x.dtype)
    top = (TopK(ids.to(dtype), logprobs), TopK(ids, logprobs))
    torch.testing.assert_close(*(row_softmax_loss(x, w, target) for target in top))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (
            Scores(random(6, 3), random(5, 3), bias=random(1)),
            ValueError,
            r"bias must be \(5,\), one",
        ),
        (
            Scores(random(6, 3), torch.nn.Linear(3, 5)),
            TypeError,
            "the teacher's w is Linear, and no",
        ),
        (Scores(random(6, 3), random(5, 2)), ValueError, "the teacher's x has 3 columns"),
        (TopK(random(6, 2), -random(6, 2).abs()), TypeError, "ids must be integers"),
        (TopK(LABELS[:, None], LABELS[:, None]), TypeError, "logprobs floating-point"),
        (
            TopK(LABELS[:, None] + 100, -random(6, 1).abs()),
            ValueError,
            "ids of row 0 must be 0 to 4",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_by_name(target, error, message):
    with pytest.raises(error, match=message):
        row_softmax_loss(*operands(), target, kind="kl")


@pytest.mark.parametrize("normalize", [True, False])
def test_rows_that_take_no_part_may_hold_anything(normalize):
    labels = torch.tensor([0, 0, 1, 1, -100, -100])
    rows = random(6, 4)
    rows[4], rows[5] = 0, math.nan
    rows.requires_grad_()
    loss_fn = SupConLoss(normalize=normalize)
    loss = loss_fn(rows, labels)
    (gradient,) = torch.autograd.grad(loss, rows)
    few = rows.detach()[:4].requires_grad_()
    expected = loss_fn(few, labels[:4])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[:4], torch.autograd.grad(expected, few)[0])
    assert not gradient[4:].any()


@pytest.mark.parametrize("whose", ["hidden", "teacher"])
def test_features_that_do_not_count_may_hold_anything(whose):
    given = {"hidden": random(3, 4), "teacher": random(3, 5)}
    given[whose][1, 0] = math.inf
    given["hidden"].requires_grad_()
    loss_fn = FeatureAlignment(4, 5).double()
    loss = loss_fn(**given, mask=torch.tensor([True, False, True]))
    gradients = torch.autograd.grad(loss, (given["hidden"], loss_fn.projection.weight))
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients)
