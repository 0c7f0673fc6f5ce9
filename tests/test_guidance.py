"""Guided gradients against double backward, and what guidance leaves as it was."""

import guidance_parts
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from friction_kernels import RSGDM, SGD, AdamW, GradientGuidance, SigSignAdamW, count_launches

R = {"consistency": 0.3, "magnitude": 0.2, "threshold": 0.05}


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3))


def conv():
    convolution = nn.Conv2d(1, 4, 3)
    return nn.Sequential(
        nn.Unflatten(1, (1, 6, 6)), convolution, nn.GELU(), nn.Flatten(), nn.Linear(64, 3)
    )


def problem(make=mlp, width=6, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    model, x, y = make().to(dtype), torch.randn(32, width, dtype=dtype), torch.randint(3, (32,))
    directions = [torch.randn_like(p) for p in model.parameters()]
    return model, directions, lambda: cross_entropy(model(x), y)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def gradient(model):
    return flat(p.grad for p in model.parameters())


def written_in_torch(model, directions, closure, consistency, magnitude, threshold):
    """The loss's gradient, that of R, cos(g, d) and R."""
    grads = torch.autograd.grad(closure(), list(model.parameters()), create_graph=True)
    g, d = torch.cat([grad.flatten() for grad in grads]), flat(directions)
    cosine = torch.dot(g, d) / (g.norm() * d.norm())
    penalty = consistency * (1 - cosine) + magnitude * (g.norm() - threshold).clamp(min=0) ** 2
    of_penalty = torch.autograd.grad(penalty, list(model.parameters()))
    return g.detach(), flat(of_penalty), cosine.detach(), penalty.detach()


def guided(model, directions, closure, mode, **options):
    guidance = GradientGuidance(AdamW(model.parameters()), directions, mode=mode, **options)
    loss = guidance.backward(closure)
    assert not loss.requires_grad and loss == closure()
    return guidance, gradient(model)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("off", [None, *R])
def test_exact_is_double_backward(off, seed):
    given = {**R, off: 0.0} if off else R
    one = problem(seed=seed)
    g, of_penalty, cosine, penalty = written_in_torch(*one, **given)
    guidance, found = guided(*one, "exact", **given)
    torch.testing.assert_close(found, g + of_penalty, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(guidance.alignment, cosine, rtol=1e-10, atol=0)
    torch.testing.assert_close(guidance.penalty, penalty, rtol=1e-10, atol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("make", "width"), [(mlp, 6), (conv, 36)])
def test_difference_is_close_to_exact_in_float32(make, width, seed):
    one = problem(make, width, torch.float32, seed)
    double = problem(make, width, seed=seed)
    double[0].load_state_dict(one[0].state_dict())
    x, y = torch.randn(32, width), torch.randint(3, (32,))
    directions = [d.double() for d in one[1]]
    g, of_penalty, _, _ = written_in_torch(
        double[0], directions, lambda: cross_entropy(double[0](x.double()), y), **R
    )
    _, found = guided(one[0], one[1], lambda: cross_entropy(one[0](x), y), "difference", **R)
    assert (found - g - of_penalty).norm() < 1e-3 * of_penalty.norm()


def test_difference_converges_to_exact():
    one = problem()
    _, exact = guided(*one, "exact", **R)
    errors = [
        (guided(*one, "difference", epsilon=epsilon, **R)[1] - exact).norm().item()
        for epsilon in (1e-2, 1e-3, 1e-4)
    ]
    assert errors[1] < errors[0] / 8 and errors[2] < errors[1] / 8


def test_first_order_is_its_formula():
    one = problem()
    g, _, cosine, _ = written_in_torch(*one, **R)
    d, excess = flat(one[1]), g.norm() - R["threshold"]
    turned = R["consistency"] * (g.norm() / d.norm() * d - cosine * g)
    shortened = 2 * R["magnitude"] * excess / g.norm() * g
    _, found = guided(*one, "first_order", **R)
    torch.testing.assert_close(found, g + turned - shortened, rtol=1e-10, atol=1e-14)
    _, clipped = guided(*one, "first_order", magnitude=0.5, threshold=0.05)
    torch.testing.assert_close(clipped, g * 0.05 / g.norm(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", ["difference", "exact", "first_order"])
def test_parameters_keep_their_bits_and_other_gradients_are_replaced(mode):
    model, directions, closure = problem(dtype=torch.float32)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    before = [p.detach().clone().view(torch.int32) for p in model.parameters()]
    _, once = guided(model, directions, closure, mode, **R)
    _, again = guided(model, directions, closure, mode, **R)
    assert torch.equal(once, again)
    for p, bits in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach().view(torch.int32), bits)


def test_parameters_keep_their_bits_if_the_closure_fails():
    model, directions, closure = problem()
    before, calls = flat(model.parameters()).clone(), []

    def fails_the_second_time():
        calls.append(1)
        if len(calls) == 2:
            assert not torch.equal(flat(model.parameters()), before)
            raise KeyboardInterrupt
        return closure()

    with pytest.raises(KeyboardInterrupt):
        guided(model, directions, fails_the_second_time, "difference", **R)
    assert torch.equal(flat(model.parameters()), before)


def test_both_passes_draw_the_same_random_numbers():
    model, directions, _ = problem()
    x, drawn = torch.randn(8, 6, dtype=torch.float64), []

    def closure():
        drawn.append(torch.rand(3))
        return model(nn.functional.dropout(x)).square().mean()

    GradientGuidance(AdamW(model.parameters()), directions, **R).backward(closure)
    assert torch.equal(*drawn)
    assert not torch.equal(drawn[0], torch.rand(3))  # they go on from there


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (SigSignAdamW, "exp_avg"),
        (AdamW, "exp_avg"),
        (RSGDM, "momentum_buffer"),
        (lambda params: SGD(params, momentum=0.9), "momentum_buffer"),
        (torch.optim.AdamW, "exp_avg"),
        (lambda params: torch.optim.SGD(params, momentum=0.9), "momentum_buffer"),
    ],
)
def test_momentum_is_the_optimizers_own(make, name):
    model, _, closure = problem()
    opt = make(model.parameters())
    guidance = GradientGuidance(opt, consistency=0.1, mode="exact")
    guidance.backward(closure)
    assert guidance.alignment == 0 and guidance.penalty == 0  # there is none before the first step
    plain = torch.autograd.grad(closure(), list(model.parameters()))
    assert torch.equal(gradient(model), flat(plain))
    opt.step()
    guidance.backward(closure)
    found = gradient(model)
    momentum = [opt.state[p][name] for p in model.parameters()]
    g, of_penalty, cosine, _ = written_in_torch(model, momentum, closure, 0.1, 0.0, 0.0)
    torch.testing.assert_close(found, g + of_penalty, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(guidance.alignment, cosine, rtol=1e-10, atol=0)


@pytest.mark.parametrize("mode", ["difference", "exact", "first_order"])
@pytest.mark.parametrize("zero", ["gradient", "direction", "both", "parameters"])
def test_norms_of_zero_make_no_nan(mode, zero):
    model, directions, closure = problem()
    factor = 0.0 if zero in ("gradient", "both") else 1.0
    if zero in ("direction", "both"):
        directions = [torch.zeros_like(d) for d in directions]
    if zero == "parameters":
        for p in model.parameters():
            nn.init.zeros_(p)
    guidance, found = guided(model, directions, lambda: factor * closure(), mode, consistency=0.1)
    assert found.isfinite().all() and guidance.penalty.isfinite()
    if zero != "parameters":
        plain = torch.autograd.grad(factor * closure(), list(model.parameters()))
        assert torch.equal(found, flat(plain))
        assert guidance.alignment == 0 and guidance.penalty == 0


def test_frozen_and_unused_parameters_take_no_part():
    model, directions, closure = problem()
    model[0].bias.requires_grad_(False)
    unused = nn.Parameter(torch.ones(4, dtype=torch.float64))
    opt = AdamW([*model.parameters(), unused])
    for mode in ("difference", "exact", "first_order"):
        guidance = GradientGuidance(opt, [*directions, torch.ones(4)], mode=mode, **R)
        guidance.backward(closure)
        assert model[0].bias.grad is None and unused.grad is None
        assert model[0].weight.grad is not None and torch.equal(unused, torch.ones_like(unused))


def test_guidance_is_a_few_launches():
    model, directions, closure = problem()
    opt = AdamW(model.parameters())
    with count_launches() as launches:
        GradientGuidance(opt, directions, mode="first_order", **R).backward(closure)
    assert dict(launches) == {"gram": 1, "combine": 1}
    with count_launches() as launches:
        GradientGuidance(opt, directions, **R).backward(closure)
    assert dict(launches) == {"gram": 1, "combine": 5}


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"consistency": -1.0}, ValueError, "consistency must be a finite number of at least 0"),
        ({"magnitude": float("nan")}, ValueError, "magnitude must be a finite"),
        ({"threshold": -0.1}, ValueError, "threshold must be a finite"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be a finite number above 0"),
        ({"mode": "second"}, ValueError, "mode must be one of"),
        ({"mode": "first_order", "magnitude": 1.0}, ValueError, "magnitude must be at most 0.5"),
        ({"direction": "gradient"}, TypeError, "direction must be 'momentum' or tensors"),
        ({"direction": [None]}, ValueError, "direction has 1 tensors, and the optimizer 2"),
        ({"direction": [None, 3.0]}, TypeError, "direction 1 is 3.0, and no tensor"),
        (
            {"direction": [torch.ones(3), torch.ones(2)]},
            ValueError,
            r"direction 1 is of shape \(2,\), and parameter 1 of shape \(300,\)",
        ),
    ],
)
def test_what_cannot_be_used_is_named(given, error, message):
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(300))]
    with pytest.raises(error, match=message):
        GradientGuidance(AdamW(params), **given)


def test_a_loss_in_place_of_a_closure_is_named():
    params = [nn.Parameter(torch.ones(3))]
    with pytest.raises(
        TypeError, match="closure is Tensor; give a function that computes the loss"
    ):
        GradientGuidance(AdamW(params), **R).backward(params[0].sum())


def test_momentum_that_cannot_be_used_is_named():
    params = [nn.Parameter(torch.ones(300))]
    with pytest.raises(ValueError, match="SGD keeps no momentum with momentum=0"):
        GradientGuidance(torch.optim.SGD(params))
    with pytest.raises(ValueError, match="the optimizer maximizes the loss"):
        GradientGuidance(AdamW(params, maximize=True))
    with pytest.raises(ValueError, match="Adagrad keeps no exp_avg or momentum_buffer"):
        GradientGuidance(torch.optim.Adagrad(params))
    for opt, message in [
        (
            torch.optim.Adadelta(params),
            "Adadelta keeps no exp_avg or momentum_buffer of parameter 0",
        ),
        (AdamW(params, state_dtype="8bit"), "exp_avg of parameter 0 is kept in 8 bits"),
    ]:
        guidance = GradientGuidance(opt, consistency=0.1)
        guidance.backward(lambda: params[0].square().sum())
        opt.step()
        kept = params[0].grad
        with pytest.raises(ValueError, match=message):
            guidance.backward(lambda: params[0].square().sum())
        assert params[0].grad is kept


@pytest.mark.deep
@pytest.mark.parametrize("mode", ["difference", "first_order"])
def test_sharded_gradients_are_guided_as_whole_ones(processes, mode):
    for off, same_bits in processes.run(guidance_parts.off_from_whole, mode):
        assert off < 1e-6 and same_bits
