"""Direction statistics: norms and cosines of gradients, momentum and previous gradients."""

import math

import pytest
import torch
from optimizer_cases import noise

from friction_kernels import (
    SGD,
    AdamW,
    SigSignAdamW,
    TanhSignAdamP,
    count_launches,
    direction_stats,
)


def stepped(optimizer, steps=2, **options):
    params = [torch.nn.Parameter(noise(shape, i)) for i, shape in enumerate([(7, 5), (300,), (3,)])]
    groups = [{"params": params[:2]}, {"params": params[2:], "maximize": True}]
    opt = optimizer(groups, lr=0.01, **options)
    for step in range(steps + 1):
        for i, param in enumerate(params):
            param.grad = noise(param.shape, 100 * step + i)
        if step < steps:
            opt.step()
    return opt, params


def vectors(opt, params, key):
    return torch.cat([opt.state[p][key].double().flatten() for p in params])


def cosine(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("optimizer", [SigSignAdamW, TanhSignAdamP, AdamW, SGD])
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("by", ["group", "tensor"])
def test_norms_and_cosines_of_what_the_step_meets(optimizer, backend, by):
    opt, params = stepped(optimizer, backend=backend)
    before = {key: value.clone() for key, value in opt.state[params[0]].items() if key != "step"}
    found = direction_stats(opt, by)
    parts = [(params[:2], 1), (params[2:], -1)]
    if by == "tensor":
        parts = [([p], sign) for ps, sign in parts for p in ps]
    momentum = "momentum_buffer" if optimizer is SGD else "exp_avg"
    for i, (ps, sign) in enumerate(parts):
        g = sign * torch.cat([p.grad.double().flatten() for p in ps])
        m = vectors(opt, ps, momentum)
        assert found.grad_norm[i].item() == pytest.approx(g.norm().item(), rel=1e-6)
        assert found.momentum_norm[i].item() == pytest.approx(m.norm().item(), rel=1e-6)
        assert found.cos_momentum[i].item() == pytest.approx(cosine(g, m), abs=1e-6)
        if "prev_grad" in before:
            h = vectors(opt, ps, "prev_grad")
            assert found.cos_previous[i].item() == pytest.approx(cosine(g, h), abs=1e-6)
        else:
            assert found.cos_previous is None
    assert len(found.grad_norm) == len(parts)
    assert all(torch.equal(opt.state[params[0]][key], value) for key, value in before.items())


def test_one_launch_whatever_the_groups():
    opt, _ = stepped(SigSignAdamW)
    with count_launches() as launches:
        direction_stats(opt)
    assert launches.total == launches["gram"] == 1


def test_states_of_zeros_have_no_direction():
    opt, params = stepped(SigSignAdamW, steps=0)
    params[1].grad = None
    found = direction_stats(opt, "tensor")
    assert len(found.grad_norm) == 2
    assert found.momentum_norm.tolist() == [0, 0]
    assert all(map(math.isnan, found.cos_momentum)) and all(map(math.isnan, found.cos_previous))


def test_a_group_without_gradients_keeps_its_place():
    opt, params = stepped(SigSignAdamW)
    for param in params[:2]:
        param.grad = None
    found = direction_stats(opt)
    assert found.grad_norm[0] == 0 and math.isnan(found.cos_momentum[0])
    g, m = -params[2].grad.double(), opt.state[params[2]]["exp_avg"].double()
    assert found.cos_momentum[1].item() == pytest.approx(cosine(g, m), abs=1e-6)


def test_states_in_bfloat16_are_read_and_those_in_8_bits_named():
    opt, _ = stepped(SigSignAdamW, state_dtype="bf16")
    full, _ = stepped(SigSignAdamW)
    torch.testing.assert_close(
        direction_stats(opt).cos_momentum, direction_stats(full).cos_momentum, atol=0.01, rtol=0
    )
    opt, _ = stepped(SigSignAdamW, state_dtype="8bit")
    with pytest.raises(ValueError, match="state 'exp_avg' is kept in 8 bits"):
        direction_stats(opt)


def test_errors_name_the_remedy():
    opt, params = stepped(AdamW)
    with pytest.raises(ValueError, match="by must be 'group' or 'tensor', got 'layer'"):
        direction_stats(opt, "layer")
    opt.step()
    with pytest.raises(RuntimeError, match="call direction_stats between backward"):
        direction_stats(opt)
    opt.zero_grad()
    with pytest.raises(RuntimeError, match="no gradient: call direction_stats"):
        direction_stats(opt)
    with pytest.raises(TypeError, match="Adagrad is not one of this library's"):
        direction_stats(torch.optim.Adagrad(params))
