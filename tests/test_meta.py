"""Steps of meta-learning against torch's own, and averages of models."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from friction_kernels import count_launches, lists


def problem(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    x, y = torch.randn(2, 6, 5, dtype=torch.float64), torch.randint(3, (2, 6))
    return model, x, y


def adapted_in_torch(model, x, y, lr, second_order, steps=2):
    fast = dict(model.named_parameters())
    for _ in range(steps):
        loss = cross_entropy(functional_call(model, fast, (x[0],)), y[0])
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=second_order)
        fast = {name: p - lr * g for (name, p), g in zip(fast.items(), grads, strict=True)}
    return fast


def adapted(model, x, y, lr, second_order, steps=2):
    fast = dict(model.named_parameters())
    for _ in range(steps):
        loss = cross_entropy(functional_call(model, fast, (x[0],)), y[0])
        grads = torch.autograd.grad(loss, list(fast.values()), create_graph=second_order)
        fast = lists.adapt(fast, grads, lr)
    return fast


@pytest.mark.parametrize("second_order", [True, False], ids=["MAML", "FOMAML"])
def test_outer_gradients_are_those_of_plain_torch(second_order):
    model, x, y = problem()
    found = []
    for inner in (adapted_in_torch, adapted):
        lr = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        fast = inner(model, x, y, lr, second_order)
        loss = cross_entropy(functional_call(model, fast, (x[1],)), y[1])
        found.append(torch.autograd.grad(loss, [*model.parameters(), lr]))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-14)
    if not second_order:  # the gradient at the adapted parameters
        at = [p.detach().requires_grad_() for p in fast.values()]
        there = cross_entropy(
            functional_call(model, dict(zip(fast, at, strict=True)), (x[1],)), y[1]
        )
        torch.testing.assert_close(found[1][:-1], torch.autograd.grad(there, at))


def test_adapt_takes_lists_and_dicts_in_one_launch():
    model, _, _ = problem()
    named = dict(model.named_parameters())
    grads = {name: torch.randn_like(p) for name, p in named.items()}
    with count_launches() as launches:
        from_lists = lists.adapt(named.values(), grads.values(), 0.1)
    assert dict(launches) == {"combine": 1}
    assert isinstance(from_lists, list)
    backwards = dict(reversed(grads.items()))
    by_names, in_order = lists.adapt(named, backwards, 0.1), lists.adapt(named, from_lists, 0.0)
    assert list(by_names) == list(in_order) == list(named)
    for p, g, new, same, before in zip(
        named.values(),
        grads.values(),
        from_lists,
        by_names.values(),
        in_order.values(),
        strict=True,
    ):
        torch.testing.assert_close(new, p - 0.1 * g)
        assert torch.equal(new, same) and torch.equal(before, p)


def test_a_missing_gradient_is_zeros():
    p = torch.randn(3, requires_grad=True)
    [new] = lists.adapt([p], [None], 0.1)
    assert torch.equal(new, p) and new.requires_grad


def test_reptile_moves_towards_what_was_adapted():
    model, x, y = problem()
    before = [p.detach().clone() for p in model.parameters()]
    fast = adapted(model, x, y, 0.3, second_order=False)
    with torch.no_grad():
        lists.interpolate(model.parameters(), fast.values(), 0.25, out=model.parameters())
    for p, old, new in zip(model.parameters(), before, fast.values(), strict=True):
        torch.testing.assert_close(p, old + 0.25 * (new - old))


def test_moving_average_in_place():
    average, parameters = [torch.zeros(300), torch.zeros(2, 2)], [torch.ones(300), torch.eye(2)]
    memory = [t.data_ptr() for t in average]
    for _ in range(3):
        found = lists.interpolate(average, parameters, 0.1, out=average)
    assert [t.data_ptr() for t in found] == memory
    torch.testing.assert_close(average, [(1 - 0.9**3) * t for t in parameters])


def test_interpolation_is_differentiable_in_its_point():
    a, b = torch.randn(4).double(), torch.randn(4).double()
    t = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: lists.interpolate([a], [b], t)[0], (t,))
    torch.testing.assert_close(lists.interpolate([a], [b], 2.0), [2 * b - a])


def test_what_does_not_correspond_is_named():
    a = {"weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"gradients are of \['bias'\]; give parameters as a dict"):
        lists.adapt(a, {"bias": torch.ones(2)}, 0.1)
    with pytest.raises(ValueError, match=r"gradients are of \['weight'\]; give parameters"):
        lists.adapt(a.values(), a, 0.1)
    with pytest.raises(ValueError, match="list 1 has 2 tensors, and list 0 has 1"):
        lists.adapt(a, [torch.ones(2)] * 2, 0.1)
    with pytest.raises(ValueError, match=r"of shape \(3,\), and tensor 0 of list 0"):
        lists.interpolate(a.values(), [torch.ones(3)], 0.1)
