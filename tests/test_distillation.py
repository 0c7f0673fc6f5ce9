"""Vocabulary losses and distillation of outputs against plain torch, which stores logits."""

import math

import pytest
import torch
from distillation_cases import (
    KINDS,
    TOLERANCE,
    assert_equal,
    divergence,
    random,
    reduced,
    some_labels,
    with_gradients,
)
from torch.nn import functional

from bench.memory import peak
from friction_kernels import AttentionAlignment, DistillationLoss, LinearCrossEntropyLoss
from friction_kernels.scores import row_softmax
from friction_kernels.targets import Scores, TopK


@pytest.fixture(params=[None, 5])
def rows_at_once(request, monkeypatch):
    """All rows in one tile, or several tiles of 5 with blocks of 2."""
    if request.param is not None:
        monkeypatch.setattr(row_softmax, "TILE_BYTES", 5 * 8 * 41)
        monkeypatch.setattr(row_softmax, "BLOCK_BYTES", 2 * 8 * 41)


# Cross-entropy.


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_that_of_torch(rows_at_once, dtype, reduction, smoothing):
    hidden, weight, bias = random(3, 7, 8), random(41, 8, seed=1), random(41, seed=2)
    labels = some_labels(3, 7, ignored=-1)
    options = {"ignore_index": -1, "label_smoothing": smoothing, "reduction": reduction}

    def stored(hidden, weight, bias):
        logits = functional.linear(hidden, weight, bias)
        return torch.nn.CrossEntropyLoss(**options)(logits.transpose(1, -1), labels)

    def ours(hidden, weight, bias):
        return LinearCrossEntropyLoss(**options)(hidden, weight, labels, bias)

    found = with_gradients(ours, [t.to(dtype) for t in (hidden, weight, bias)])
    assert_equal(found, with_gradients(stored, [hidden, weight, bias]), TOLERANCE[dtype])


def test_labels_of_the_next_position_and_capped_logits():
    hidden, weight, labels = random(3, 7, 8), random(41, 8, seed=1), some_labels(3, 7)

    def stored(hidden, weight):
        logits = 2 * torch.tanh(hidden[:, :-1] @ weight.T / 2)
        return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    def ours(hidden, weight):
        return LinearCrossEntropyLoss(softcap=2.0, shift=True)(hidden, weight, labels)

    expected = with_gradients(stored, [hidden, weight])
    assert_equal(with_gradients(ours, [hidden, weight]), expected, (1e-10, 1e-10))


# Distillation of outputs.


def stored_distillation(z, z_t, labels, alpha, temperature, kind="kl", reduction="mean"):
    hard = functional.cross_entropy(z, labels, reduction="none")
    log_q, log_p = (s.div(temperature).log_softmax(-1) for s in (z_t, z))
    losses = (1 - alpha) * hard + alpha * temperature**2 * divergence(log_q, log_p, kind)
    return reduced(losses, labels != -100, reduction)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_distillation_from_a_live_teacher(rows_at_once, dtype, reduction, kind):
    student = random(3, 7, 8), random(41, 8, seed=1), random(41, seed=2)
    hidden_t, weight_t, bias_t = random(3, 7, 5, seed=4), random(41, 5, seed=5), random(41, seed=6)
    labels = some_labels(3, 7)

    def stored(hidden, weight, bias):
        z = functional.linear(hidden, weight, bias).flatten(0, 1)
        z_t = functional.linear(hidden_t, weight_t, bias_t).flatten(0, 1)
        loss = stored_distillation(z, z_t, labels.flatten(), 0.3, 3.0, kind, reduction)
        return loss.view(labels.shape) if reduction == "none" else loss

    def ours(hidden, weight, bias):
        teacher = Scores(hidden_t.to(dtype), weight_t.to(dtype), bias=bias_t.to(dtype))
        loss = DistillationLoss(0.3, 3.0, kind=kind, reduction=reduction)
        return loss(hidden, weight, labels, teacher, bias)

    found = with_gradients(ours, [t.to(dtype) for t in student])
    assert_equal(found, with_gradients(stored, student), TOLERANCE[dtype])


@pytest.mark.parametrize("rest", ["renormalise", "drop", "bucket"])
def test_distillation_from_a_stored_top_k(rows_at_once, rest):
    student, labels = [random(3, 7, 8), random(41, 8, seed=1)], some_labels(3, 7)
    z_t = random(3, 7, 41, seed=4)
    logprobs, ids = (z_t / 3).log_softmax(-1).topk(6)

    def stored(hidden, weight):
        z = hidden @ weight.T
        log_p, q = (z / 3).log_softmax(-1), logprobs.exp()
        of_ids = log_p.gather(-1, ids)
        if rest == "renormalise":
            q = q / q.sum(-1, keepdim=True)
        if rest == "bucket":
            others = log_p.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
            of_ids = torch.cat((of_ids, others), -1)
            q = torch.cat((q, 1 - q.sum(-1, keepdim=True)), -1)
        soft = (q * (q.log() - of_ids)).sum(-1).flatten()
        hard = functional.cross_entropy(z.flatten(0, 1), labels.flatten(), reduction="none")
        return reduced(0.7 * hard + 0.3 * 9 * soft, labels.flatten() != -100, "mean")

    def ours(hidden, weight):
        return DistillationLoss(0.3, 3.0)(hidden, weight, labels, TopK(ids, logprobs, rest))

    found = with_gradients(ours, student)
    assert_equal(found, with_gradients(stored, student), (1e-10, 1e-10))


def test_top_k_of_other_temperatures_can_be_renormalised():
    hidden, weight, labels = random(5, 8), random(41, 8, seed=1), some_labels(5)
    z_t, loss = random(5, 41, seed=4), DistillationLoss(temperature=3.0)
    logprobs, ids = z_t.log_softmax(-1).topk(6)
    at_3 = (z_t / 3).log_softmax(-1).gather(-1, ids)
    found = loss(hidden, weight, labels, TopK(ids, (logprobs / 3).log_softmax(-1)))
    torch.testing.assert_close(found, loss(hidden, weight, labels, TopK(ids, at_3)))


@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_jsd_is_that_of_liger_kernel(beta):
    module = pytest.importorskip("liger_kernel.chunked_loss.jsd_loss", exc_type=ImportError)
    liger = module.LigerFusedLinearJSDFunction.distillation_loss_fn
    hidden, weight = random(6, 8), random(41, 8, seed=1)
    teacher = random(6, 5, seed=2), random(41, 5, seed=3)
    theirs = liger(hidden @ weight.T, teacher[0] @ teacher[1].T, beta=beta)
    loss = DistillationLoss(1.0, 1.0, kind="jsd", beta=beta, reduction="sum")
    ours = loss(hidden, weight, torch.zeros(6, dtype=torch.long), Scores(*teacher))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)


def test_one_share_alone_and_shifted_labels():
    student, labels = [random(3, 7, 8), random(41, 8, seed=1)], some_labels(3, 7)
    teacher = Scores(random(3, 7, 5, seed=4), random(41, 5, seed=5))
    for alpha in (0.0, 1.0):
        loss = DistillationLoss(alpha, 3.0, shift=True)(*student, labels, teacher)
        z, z_t = student[0] @ student[1].T, teacher.x @ teacher.w.T
        of_next = labels[:, 1:].flatten()
        expected = stored_distillation(
            z[:, :-1].flatten(0, 1), z_t[:, :-1].flatten(0, 1), of_next, alpha, 3.0
        )
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", [LinearCrossEntropyLoss(), DistillationLoss()])
def test_without_labels_loss_and_gradients_are_zero(loss):
    labels, teacher = torch.full((2, 3), -100), [Scores(random(2, 3, 4), random(9, 4))]
    extra = teacher if isinstance(loss, DistillationLoss) else []
    found = with_gradients(
        lambda hidden, weight: loss(hidden, weight, labels, *extra),
        [random(2, 3, 8), random(9, 8, seed=1)],
    )
    assert all((tensor == 0).all() for tensor in found)


def test_bfloat16_is_multiplied_and_summed_in_float32():
    student = [random(20, 64, dtype=torch.bfloat16), random(300, 64, seed=1, dtype=torch.bfloat16)]
    teacher = Scores(random(20, 32, seed=2).bfloat16(), random(300, 32, seed=3).bfloat16())
    labels = some_labels(20, below=300)
    loss = DistillationLoss(0.3, 3.0)
    found = with_gradients(lambda h, w: loss(h, w, labels, teacher), student)
    assert found[0].dtype == torch.float32
    assert [t.dtype for t in found[1:]] == 2 * [torch.bfloat16]
    wide = Scores(teacher.x.double(), teacher.w.double())
    expected = with_gradients(lambda h, w: loss(h, w, labels, wide), [t.double() for t in student])
    assert_equal(found, expected, (1e-5, 2.0**-8))


def test_the_teacher_has_no_gradient():
    teacher = Scores(random(5, 4).requires_grad_(), random(41, 4, seed=1).requires_grad_())
    student = random(5, 8).requires_grad_(), random(41, 8, seed=1)  # with a frozen head
    DistillationLoss()(*student, some_labels(5), teacher).backward()
    assert teacher.x.grad is None and teacher.w.grad is None
    assert student[0].grad is not None


@pytest.mark.deep
def test_memory_over_a_large_vocabulary_is_far_below_its_logits():
    tokens, words = 512, 151_936
    hidden, weight = random(tokens, 4), random(words, 4, seed=1)
    hidden, weight = (t.float().requires_grad_() for t in (hidden, weight))
    teacher = Scores(random(tokens, 3, seed=2).float(), random(words, 3, seed=3).float())
    labels = some_labels(tokens, below=words)
    loss = DistillationLoss()
    loss(hidden[:2], weight, labels[:2], Scores(teacher.x[:2], teacher.w)).backward()
    with peak("cpu") as peaked:
        found = loss(hidden, weight, labels, teacher)
        found.backward()
    assert peaked.bytes is None or peaked.bytes < 0.5 * 4 * tokens * words
    z, z_t = hidden.detach() @ weight.detach().T, teacher.x @ teacher.w.T
    expected = stored_distillation(z, z_t, labels, 0.5, 2.0)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=0)


# What is refused.


def test_what_makes_no_sense_is_refused():
    hidden, weight = random(2, 3, 8), random(9, 8, seed=1)
    labels, teacher = torch.zeros(2, 3, dtype=torch.long), Scores(random(2, 3, 5), random(9, 5))
    top = TopK(labels[..., None], -hidden[..., :1].abs())

    def refuses(message, loss, labels=labels, *teacher):
        with pytest.raises(ValueError, match=message):
            loss(hidden, weight, labels, *teacher)

    refuses(r"labels must be \(2, 3\), .* got \(1, 3\)", LinearCrossEntropyLoss(), labels[:1])
    refuses("label 9 of row 0 is none of 9", LinearCrossEntropyLoss(), labels + 9)
    with pytest.raises(TypeError, match=r"teacher must be Scores.* got Tensor; of logits: "):
        DistillationLoss()(hidden, weight, labels, hidden @ weight.T)
    fewer, shorter = Scores(teacher.x, teacher.w[:8]), Scores(teacher.x[:1], teacher.w)
    refuses("8 columns, and the student 9: vocabularies", DistillationLoss(), labels, fewer)
    refuses("the teacher has 3 rows, and the student 6", DistillationLoss(), labels, shorter)
    refuses("TopK has k of them", DistillationLoss(kind="jsd"), labels, top)


@pytest.mark.parametrize(
    ("message", "loss", "options"),
    [
        ("alpha must be from 0 to 1", DistillationLoss, {"alpha": 1.5}),
        ("temperature must be above 0", DistillationLoss, {"temperature": 0}),
        ("beta must be between 0 and 1", DistillationLoss, {"kind": "jsd", "beta": 1}),
        ("kind must be one of 'ce', 'kl'", DistillationLoss, {"kind": "tvd"}),
        ("reduction must be one of 'mean'", DistillationLoss, {"reduction": "max"}),
        ("reduction must be one of 'mean'", LinearCrossEntropyLoss, {"reduction": "max"}),
        ("softcap must be above 0", LinearCrossEntropyLoss, {"softcap": 0.0}),
        ("label_smoothing must be from 0", LinearCrossEntropyLoss, {"label_smoothing": 1.0}),
        ("kind must be one of 'ce', 'kl'", AttentionAlignment, {"kind": "tvd"}),
    ],
    ids=str,
)
def test_an_option_out_of_range_is_refused_where_it_is_given(message, loss, options):
    with pytest.raises(ValueError, match=message):
        loss(**options)


def test_errors_call_hidden_states_and_head_by_their_names():
    hidden, weight, labels = random(2, 3, 8), random(9, 8, seed=1), some_labels(2, 3)
    cases = (
        ("hidden has 8 columns, and weight 7", ValueError, (hidden, weight[:, :7])),
        ("bias must be .9,., one for each row of weight", ValueError, (hidden, weight, random(8))),
        ("weight is Linear, and no tensor", TypeError, (hidden, torch.nn.Linear(8, 9))),
        ("hidden is torch.int64", TypeError, (hidden.long(), weight)),
    )
    teacher = Scores(random(2, 3, 5), random(9, 5))
    for message, error, (states, head, *bias) in cases:
        with pytest.raises(error, match=message):
            LinearCrossEntropyLoss()(states, head, labels, *bias)
        with pytest.raises(error, match=message):
            DistillationLoss()(states, head, labels, teacher, *bias)
