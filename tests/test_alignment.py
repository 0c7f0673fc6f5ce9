"""Alignment of attention and of hidden states against plain torch, which stores attention maps."""

import math

import pytest
import torch
from distillation_cases import (
    KINDS,
    TOLERANCE,
    assert_equal,
    divergence,
    random,
    some_labels,
    with_gradients,
)
from torch.nn import functional

from bench.memory import peak
from friction_kernels import AttentionAlignment, FeatureAlignment

# Alignment of attention.


def stored_alignment(q, k, q_t, k_t, heads, kind="kl", causal=False, padding=None):
    length = q.shape[2]
    columns = torch.ones(length, length, dtype=torch.bool)
    columns = columns.tril() if causal else columns
    real = torch.ones(len(q), length, dtype=torch.bool) if padding is None else padding
    columns = columns & real[:, None, None, :]

    def log_maps(q, k):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return scores.masked_fill(~columns, -math.inf).log_softmax(-1)

    log_p = log_maps(q, k)
    log_q = log_maps(q_t, k_t)[:, heads]
    rows = real[:, None, :].expand(log_p.shape[:-1])
    log_p, log_q = (
        torch.where(columns, maps, -1e4)[rows] for maps in (log_p, log_q)
    )  # whose exponentials are 0, without infinity minus infinity
    return divergence(log_q, log_p, kind).mean()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_alignment_is_that_of_stored_maps(dtype, kind, causal, padded):
    student = [random(3, 2, 9, 8, seed=seed) for seed in (0, 1)]
    teacher = [random(3, 4, 9, 5, seed=seed) for seed in (2, 3)]
    padding = None
    if padded:
        padding = torch.arange(9) < torch.tensor([[9], [4], [0]])
        padding[1] = padding[1].flip(0)  # to the left, too
    expected = with_gradients(
        lambda q, k: stored_alignment(q, k, *teacher, [0, 2], kind, causal, padding), student
    )
    loss = AttentionAlignment(kind, causal)
    other = [t.to(dtype) for t in teacher]
    found = with_gradients(lambda q, k: loss(q, k, *other, padding), [t.to(dtype) for t in student])
    assert found[0].dtype == dtype
    assert_equal(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("count", "heads", "expected"),
    [
        (4, None, [0, 1, 2, 3]),
        (2, None, [0, 0, 1, 1]),
        (8, None, [0, 2, 4, 6]),
        (4, [3, 3, 0, 1], [3, 3, 0, 1]),
    ],
)
def test_heads_are_mapped(count, heads, expected):
    student = [random(2, 4, 6, 8, seed=seed) for seed in (0, 1)]
    teacher = [random(2, count, 6, 8, seed=seed) for seed in (2, 3)]
    found = AttentionAlignment(heads=heads)(*student, *teacher)
    torch.testing.assert_close(
        found, stored_alignment(*student, *teacher, expected), rtol=1e-10, atol=0
    )


def test_alignment_without_real_tokens_is_zero():
    q, k = (random(2, 1, 3, 4, seed=seed).bfloat16() for seed in (0, 1))
    padding = torch.zeros(2, 3, dtype=torch.bool)
    found = with_gradients(lambda q, k: AttentionAlignment()(q, k, q, k, padding), [q, k])
    assert found[0].dtype == torch.float32
    assert all((tensor == 0).all() for tensor in found)


@pytest.mark.parametrize("length", [128, pytest.param(1024, marks=pytest.mark.deep)])
def test_alignment_of_a_models_size_stores_no_map(length):
    student = [random(2, 12, length, 32, seed=s, dtype=torch.float32) for s in (0, 1)]
    teacher = [random(2, 12, length, 64, seed=s, dtype=torch.float32) for s in (2, 3)]
    loss = AttentionAlignment(causal=True)
    found = with_gradients(lambda q, k: loss(q, k, *teacher), student)
    with peak("cpu") as peaked:
        with_gradients(lambda q, k: loss(q, k, *teacher), student)
    maps = 4 * 2 * 12 * length**2  # of one model
    assert length == 128 or peaked.bytes is None or peaked.bytes < 0.7 * maps
    expected = with_gradients(
        lambda q, k: stored_alignment(
            q, k, *(t.double() for t in teacher), list(range(12)), causal=True
        ),
        [t.double() for t in student],
    )
    assert_equal(found, expected, TOLERANCE[torch.float32])


# Alignment of hidden states.


@pytest.mark.parametrize("masked", [False, True])
def test_features_are_projected(masked):
    torch.manual_seed(0)
    loss = FeatureAlignment(8, 5).double()
    hidden, teacher = random(3, 7, 8), random(3, 7, 5, seed=1).requires_grad_()
    mask = some_labels(3, 7) >= 0 if masked else torch.ones(3, 7, dtype=torch.bool)

    def stored(hidden):
        return functional.mse_loss((hidden @ loss.projection.weight.T)[mask], teacher[mask])

    found = with_gradients(lambda h: loss(h, teacher, mask if masked else None), [hidden])
    assert_equal(found, with_gradients(stored, [hidden]), (1e-10, 1e-10))
    assert teacher.grad is not None  # of stored() alone
    teacher.grad = None
    loss(hidden, teacher).backward()
    assert teacher.grad is None and loss.projection.weight.grad is not None


def test_features_of_equal_width_have_no_projection():
    loss = FeatureAlignment(5, 5)
    hidden, teacher = random(4, 5).bfloat16(), random(4, 5, seed=1).bfloat16()
    assert not list(loss.parameters())
    expected = functional.mse_loss(hidden.float(), teacher.float())
    torch.testing.assert_close(loss(hidden, teacher), expected)
    none = torch.zeros(4, dtype=torch.bool)
    assert all((t == 0).all() for t in with_gradients(lambda h: loss(h, teacher, none), [hidden]))


# What is refused.


def test_attention_that_does_not_fit_is_refused():
    q, padding = random(2, 4, 6, 8), torch.ones(2, 6, dtype=torch.bool)

    def refuses(message, *tensors, error=ValueError, heads=None):
        with pytest.raises(error, match=message):
            AttentionAlignment(heads=heads)(*tensors)

    refuses("queries and keys of the student must both be", q, q[:, :2], q, q)
    refuses("must read the same tokens", q, q, q[:, :, :5], q[:, :, :5])
    refuses("heads names 2 heads, and the student has 4", q, q, q, q, heads=[0, 1])
    refuses("heads must be 0 to 3", q, q, q, q, heads=[0, 1, 2, 4])
    refuses("padding is torch.float32", q, q, q, q, padding.float(), error=TypeError)
    refuses(r"padding must be \(2, 6\), got \(1, 6\)", q, q, q, q, padding[:1])


def test_features_that_do_not_fit_are_refused():
    hidden = random(2, 3, 8)
    with pytest.raises(ValueError, match=r"of the teacher must be \(2, 3, 5\)"):
        FeatureAlignment(8, 5)(hidden, hidden)
    with pytest.raises(ValueError, match=r"of the student must be \(2, 3, 7\)"):
        FeatureAlignment(7, 5)(hidden, hidden)
    with pytest.raises(TypeError, match=r"mask is torch.float64"):
        FeatureAlignment(8, 8)(hidden, hidden, hidden[..., 0])
