"""torch.amp.GradScaler: scaled losses in the usual loops."""

import math

import pytest
import torch
from optimizer_cases import (
    assert_same_bits,
    both_backends,
    copies,
    every_optimizer,
    give_gradients,
    make_params,
    network,
    noise,
    norm_of,
)

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW, clip_grad_norm_, shards
from friction_kernels.optim import planning

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE = 2.0**16


def make_scaler():
    return torch.amp.GradScaler("cpu", init_scale=SCALE)


def backward(scaler, model, step):
    scaler.scale(model(noise((8, 6), step)).square().mean()).backward()


def states_of(opt):
    return {param: {k: v.clone() for k, v in s.items()} for param, s in opt.state.items()}


def assert_states(opt, before):
    for param, state in before.items():
        assert_same_bits(opt.state[param].values(), state.values())


@both_backends
@pytest.mark.parametrize("unscale", [False, True], ids=["step unscales", "unscaled before"])
@pytest.mark.parametrize("max_norm", [None, 0.01], ids=["not clipped", "clipped"])
@every_optimizer
def test_the_usual_loop_trains_as_without_a_scaler(name, max_norm, unscale, backend):
    # The scale is a power of two: nothing is rounded otherwise.
    scaled, plain = network(), network()
    options = {"lr": 0.01, "max_grad_norm": max_norm, "backend": backend}
    opt = OPTIMIZERS[name](scaled.parameters(), **options)
    other = OPTIMIZERS[name](plain.parameters(), **options)
    scaler = make_scaler()
    for step in range(3):
        backward(scaler, scaled, step)
        if unscale:
            scaler.unscale_(opt)
        scaler.step(opt)
        scaler.update()
        plain(noise((8, 6), step)).square().mean().backward()
        other.step()
        if max_norm is not None:
            torch.testing.assert_close(opt.grad_norm, other.grad_norm, rtol=1e-6, atol=0)
            assert opt.grad_norm > 0.01
        for optimizer in (opt, other):
            optimizer.zero_grad()
    if max_norm is None:
        assert_same_bits(scaled.parameters(), plain.parameters())
    for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert scaler.get_scale() == SCALE


@both_backends
def test_gradients_that_were_unscaled_and_clipped_by_hand_are_left_so(backend):
    scaled, plain = network(), network()
    opt = RSGDM(scaled.parameters(), backend=backend)
    other = RSGDM(plain.parameters(), max_grad_norm=0.01, backend=backend)
    scaler = make_scaler()
    for step in range(3):
        backward(scaler, scaled, step)
        scaler.unscale_(opt)
        norm = clip_grad_norm_(scaled.parameters(), 0.01)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        plain(noise((8, 6), step)).square().mean().backward()
        other.step()
        other.zero_grad()
        torch.testing.assert_close(other.grad_norm, norm, rtol=1e-6, atol=0)
    for ours, theirs in zip(scaled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_within_a_closure_no_scaler_is_to_be_waited_for():
    """Who clips there, as Lightning does without a scaler, finds an optimizer like any other."""
    model = network()
    opt = SigSignAdamW(model.parameters())

    def says_so():
        return getattr(opt, "_step_supports_amp_scaling", False)

    assert (
        says_so()
    )  # or GradScaler would read and write the gradients once more, and wait for a GPU
    assert opt.step(says_so) is False
    assert says_so()

    def fails():
        raise ValueError

    with pytest.raises(ValueError):
        opt.step(fails)
    assert says_so()


@both_backends
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("unscale", [False, True], ids=["step unscales", "unscaled before"])
@pytest.mark.parametrize("max_norm", [None, 1.0])
@every_optimizer
def test_an_infinite_step_changes_nothing_and_halves_the_scale(
    name, max_norm, unscale, bad, backend
):
    params = make_params()
    opt = OPTIMIZERS[name](params, max_grad_norm=max_norm, backend=backend)
    scaler = make_scaler()
    scaler.scale(torch.ones(()))  # makes the scale
    give_gradients(params, 0, SCALE)
    scaler.step(opt)
    scaler.update()
    before, states = copies(params), states_of(opt)
    give_gradients(params, 1, SCALE)
    params[-1].grad[3, 2, 4, 5] = bad
    if unscale:
        scaler.unscale_(opt)
    scaler.step(opt)
    scaler.update()
    assert_same_bits(params, before)
    assert_states(opt, states)
    assert scaler.get_scale() == SCALE / 2
    give_gradients(params, 1, SCALE / 2)
    scaler.step(opt)
    scaler.update()
    assert all(state["step"] == 2 for state in opt.state.values())
    assert not any(map(torch.equal, params, before))


@both_backends
def test_an_infinity_at_the_first_step_makes_no_step(backend):
    params = make_params()
    opt, scaler = SigSignAdamW(params, backend=backend), make_scaler()
    before = copies(params)
    scaler.scale(torch.ones(()))
    give_gradients(params, 0, math.inf)
    scaler.step(opt)
    assert_same_bits(params, before)
    assert all(state["step"] == 0 for state in opt.state.values())


@both_backends
def test_two_optimizers_with_one_scaler_skip_each_for_itself(backend):
    ours, theirs = make_params(), make_params()
    opts = SigSignAdamW(ours, backend=backend), RSGDM(theirs, backend=backend)
    scaler = make_scaler()
    scaler.scale(torch.ones(()))
    give_gradients(ours, 0, SCALE)
    give_gradients(theirs, 0, SCALE)
    theirs[0].grad[0, 0] = math.inf
    before = copies(ours), copies(theirs)
    for opt in opts:
        scaler.step(opt)
    scaler.update()
    assert not any(map(torch.equal, ours, before[0]))
    assert_same_bits(theirs, before[1])
    assert scaler.get_scale() == SCALE / 2


@both_backends
def test_the_scale_that_a_user_has_set_is_multiplied_in(backend):
    # pytorch#123428: gradients times 8 by the user's own doing, and times the scaler's scale.
    params, twins = make_params(), make_params()
    opt = RSGDM(params, max_grad_norm=math.inf, backend=backend)
    other = RSGDM(twins, backend=backend)
    scaler = make_scaler()
    scaler.scale(torch.ones(()))
    give_gradients(params, 0, SCALE * 8)
    opt.grad_scale = torch.tensor(8.0)
    scaler.step(opt)
    assert not hasattr(opt, "grad_scale") and not hasattr(opt, "found_inf")
    give_gradients(twins, 0)
    other.step()
    assert_same_bits(params, twins)
    assert opt.grad_norm.item() == pytest.approx(norm_of(twins), rel=1e-6)


@pytest.mark.parametrize("backends", ["native native", "reference reference", "native reference"])
@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (0.0, "grad_scale must be above 0 and finite, got 0"),
        (torch.tensor(0.0), "grad_scale must be above 0 and finite, got 0"),
        (-2.0, "grad_scale must be above 0 and finite, got -2"),
        (math.inf, "grad_scale must be above 0 and finite, got inf"),
        (math.nan, "grad_scale must be above 0 and finite, got nan"),
        (torch.ones(2), r"grad_scale must be one number, got a tensor of shape \(2,\)"),
        ("2", "grad_scale must be a number, got '2'"),
    ],
    ids=str,
)
@every_optimizer
def test_a_scale_that_is_none_stops_the_step_before_it_begins(name, scale, says, backends):
    params = make_params()
    groups = [
        {"params": some, "backend": backend}
        for some, backend in zip((params[:2], params[2:]), backends.split(), strict=True)
    ]
    opt = OPTIMIZERS[name](groups)
    give_gradients(params, 0)
    opt.step()
    before, states = copies(params), states_of(opt)
    opt.grad_scale = scale
    with pytest.raises((TypeError, ValueError), match=says):
        opt.step()
    assert_same_bits(params, before)
    assert_states(opt, states)
    opt.grad_scale = 2.0
    opt.step()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_processes_sum_where_the_parameters_lie(device, monkeypatch):
    """NCCL takes nothing from the processor, also of a process that has no gradient to count."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch finds no CUDA device")
    here, there = make_params([(5,)])[0], make_params([(3,)])[0].to(device)
    there = torch.nn.Parameter(there.detach())
    summed = []
    monkeypatch.setattr(shards, "summed_over", lambda p, _: ("all",) if p is there else ())
    monkeypatch.setattr(
        planning, "all_reduce", lambda part, of: summed.append((part.device.type, of)) or part
    )
    groups = [{"params": [here]}, {"params": [there], "backend": "reference"}]
    opt = RSGDM(groups, max_grad_norm=0.5)
    here.grad = torch.ones(5)
    opt.step()
    assert set(summed) == {("cpu", ()), (device, ("all",))}
    assert opt.grad_norm.item() == pytest.approx(math.sqrt(5))


@both_backends
def test_gradients_whose_squares_are_beyond_float64_are_left_out(backend):
    params = make_params(dtype=torch.float64)
    opt = RSGDM(params, skip_nonfinite=True, backend=backend)
    before = copies(params)
    for param in params:
        param.grad = torch.full_like(param, 1e200)
    opt.step()
    assert_same_bits(params, before)


@both_backends
def test_a_disabled_scaler_changes_nothing(backend):
    params, twins = make_params(), make_params()
    opt, other = SigSignAdamW(params, backend=backend), SigSignAdamW(twins, backend=backend)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    give_gradients(params, 0)
    give_gradients(twins, 0)
    scaler.step(opt)
    scaler.update()
    other.step()
    assert_same_bits(params, twins)


@both_backends
def test_scaled_float16_gradients_of_a_low_precision_model_are_unscaled_in_float32(backend):
    # 2**-30 is nothing in float16; times the scale it is a gradient.
    params = make_params(dtype=torch.float16)
    opt, scaler = RSGDM(params, lr=2.0**30, master="split", backend=backend), make_scaler()
    scaler.scale(torch.ones(()))
    wide = [param.detach().float() for param in params]
    for param in params:
        param.grad = torch.full_like(param, 2.0**-30 * SCALE)
    scaler.step(opt)
    for param, start in zip(params, wide, strict=True):
        moved = start - param.detach().float()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.19), rtol=0, atol=1e-3)


@both_backends
@pytest.mark.parametrize("name", ["found_inf", "grad_scale"])
def test_a_scale_without_memory_is_refused_by_name(name, backend):
    (param,) = make_params([(5,)])
    opt = SigSignAdamW([param], backend=backend)
    param.grad = torch.ones(5)
    opt.grad_scale, opt.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    getattr(opt, name).untyped_storage().resize_(0)
    with pytest.raises(ValueError, match=f"{name} is a tensor that has no memory"):
        opt.step()
