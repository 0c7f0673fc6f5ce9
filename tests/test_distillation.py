"""Vocabulary losses and distillation against plain torch, which stores logits and attention maps."""

import math
import re

import pytest
import torch
from torch.nn import functional

from friction_kernels import (
    AttentionAlignment,
    DistillationLoss,
    FeatureAlignment,
    LinearCrossEntropyLoss,
)
from friction_kernels.scores import row_softmax
from friction_kernels.targets import Scores, TopK

from bench.memory import peak

KINDS = ["kl", "reverse_kl", "jsd"]
# Relative to the largest of each result.
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 5e-5)}


@pytest.fixture(params=[None, 5])
def rows_at_once(request, monkeypatch):
    """All rows in one tile, or several tiles of 5 with blocks of 2."""
    if request.param is not None:
        monkeypatch.setattr(row_softmax, "TILE_BYTES", 5 * 8 * 41)
        monkeypatch.setattr(row_softmax, "BLOCK_BYTES", 2 * 8 * 41)


def random(*shape, seed=0, dtype=torch.float64, by=1.0):
    return (by * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def some_labels(*shape, below=41, ignored=-100):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(below, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, ignored)


def with_gradients(function, tensors):
    """The loss, weighted where there are several, and the gradients of all tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    loss = function(*leaves)
    weights = torch.arange(1.0, 1 + loss.numel(), dtype=loss.dtype).view(loss.shape)
    (loss * weights).sum().backward()
    return loss.detach(), *(t.grad for t in leaves)


def assert_equal(found, expected, tolerances):
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        bound = tolerances[min(number, 1)] * max(theirs.abs().max().item(), 1e-30)
        assert (mine.double() - theirs).abs().max().item() <= bound, number


def divergence(log_q, log_p, kind="kl", beta=0.5):
    """Of rows, with the logarithms of a teacher's and a student's probabilities."""

    def kl(of, to):
        difference = torch.where(of == -math.inf, 0, of - to)
        return (of.exp() * difference).sum(-1)

    if kind != "jsd":
        return kl(log_q, log_p) if kind == "kl" else kl(log_p, log_q)
    log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log(1 - beta))
    return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)


def reduced(losses, counted, reduction):
    losses = losses.where(counted, 0)
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / counted.sum().clamp_min(1)}[
        reduction
    ]


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
