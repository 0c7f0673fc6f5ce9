"""Gradient release: the same step, with one gradient alive at a time."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from optimizer_cases import (
    assert_same_bits,
    assert_same_states,
    backward,
    both_backends,
    copies,
    every_measured,
    every_optimizer,
    make_params,
    network,
    noise,
    run,
)
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR

from friction_kernels import OPTIMIZERS, SigSignAdamW, friction_stats, release_gradients

pytestmark = pytest.mark.usefixtures("one_thread")

PRECISIONS = {
    "float32": (torch.float32, {}),
    "stochastic": (torch.bfloat16, {"rounding": "stochastic", "seed": 3}),
    "split and 8 bits": (torch.bfloat16, {"master": "split", "state_dtype": "8bit"}),
}


@both_backends
@pytest.mark.parametrize("precision", PRECISIONS)
@every_optimizer
def test_released_steps_are_the_ordinary_ones_to_the_bit(name, precision, backend):
    dtype, options = PRECISIONS[precision]
    released, plain = make_params(dtype=dtype), make_params(dtype=dtype)
    opt, other = (
        OPTIMIZERS[name](
            [{"params": params[:2], "lr": 0.05}, {"params": params[2:]}], backend=backend, **options
        )
        for params in (released, plain)
    )
    release_gradients(released, opt)
    for step in range(3):
        backward(released, step)
        assert all(param.grad is None for param in released)
        opt.step()
        opt.zero_grad()
    run(other, plain, range(3))
    assert_same_bits(released, plain)
    assert_same_states(opt, released, other, plain)


def train(model, opt, schedule, steps=5):
    for step in range(steps):
        model(noise((8, 6), step)).square().mean().backward()
        opt.step()
        schedule.step()
        opt.zero_grad()


@both_backends
def test_a_training_loop_with_a_scheduler_need_not_be_changed(backend):
    models = network(), network()
    for model in models:
        opt = SigSignAdamW(model.parameters(), lr=0.1, backend=backend)
        if model is models[0]:
            release_gradients(model, opt)
        train(model, opt, CosineAnnealingLR(opt, T_max=6))
        assert all(state["step"] == 5 for state in opt.state.values())
    assert_same_bits(models[0].parameters(), models[1].parameters())


def test_no_two_gradients_are_alive():
    alive, most, seen = weakref.WeakSet(), [], []

    def watch(param):  # called first, as it is registered first
        alive.add(param.grad)
        seen.append(weakref.ref(param.grad))
        most.append(sum(grad.nbytes for grad in alive))

    def most_bytes(release):
        alive.clear(), most.clear(), seen.clear()
        model = network()
        for param in model.parameters():
            param.register_post_accumulate_grad_hook(watch)
        opt = SigSignAdamW(model.parameters())
        if release:
            release_gradients(model, opt)
        model(noise((8, 6), 0)).square().mean().backward()
        dead = [grad() is None for grad in seen]
        assert len(dead) == 6 and (all(dead) if release else not any(dead))
        return max(most), [param.nbytes for param in model.parameters()]

    peak, sizes = most_bytes(release=False)
    assert peak == sum(sizes)
    peak, sizes = most_bytes(release=True)
    assert peak == max(sizes)


def test_memory_that_a_backward_takes_is_less_by_the_gradients():
    def peak_of(release):
        model = nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(20)))
        opt = SigSignAdamW(model.parameters())
        x = noise((1, 64), 0)
        if release:
            release_gradients(model, opt)
        for _ in range(2):  # the first makes the state
            opt.zero_grad()
            loss = model(x).square().mean()
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                loss.backward()
                opt.step()
        total = peak = 0
        events = profile.profiler.kineto_results.events()
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]":
                total += event.nbytes()
                peak = max(peak, total)
        return peak

    one = 64 * 64 * 4
    assert peak_of(release=False) > 15 * one
    assert peak_of(release=True) < 5 * one


def test_each_backward_is_a_step():
    params = make_params()
    opt = SigSignAdamW(params)
    release_gradients(params, opt)
    for step in range(3):
        backward(params, step)
    assert all(opt.state[param]["step"] == 3 for param in params)


@both_backends
@pytest.mark.filterwarnings("ignore:Using backward")
def test_a_shared_parameter_and_a_graph_of_the_gradient_are_one_step(backend):
    layer = nn.Linear(4, 4)
    opt = SigSignAdamW(layer.parameters(), backend=backend)
    release_gradients(layer, opt)
    layer(layer(noise((2, 4), 0))).sum().backward(create_graph=True)
    assert all(opt.state[param]["step"] == 1 for param in layer.parameters())


def test_what_the_optimizer_does_not_have_and_what_is_frozen_is_left_alone():
    model, plain = network(), network()
    foreign, frozen = model[0].weight, model[3].weight
    frozen.requires_grad_(False)
    before = copies([foreign, frozen])
    opt = SigSignAdamW(param for param in model.parameters() if param is not foreign)
    release_gradients(model, opt)
    model(noise((8, 6), 0)).square().mean().backward()
    assert foreign.grad is not None and frozen.grad is None
    assert_same_bits([foreign, frozen], before)
    assert foreign not in opt.state and frozen not in opt.state
    # Once it thaws, opt.step() serves it.
    frozen.requires_grad_()
    model(noise((8, 6), 1)).square().mean().backward()
    assert frozen.grad is not None
    opt.step()
    assert opt.state[frozen]["step"] == 1 and not torch.equal(frozen, before[1])
    assert opt.state[model[0].bias]["step"] == 2
    assert torch.equal(plain[0].weight, foreign)


def test_a_group_that_is_added_later_is_served_by_step():
    params, late = make_params(), nn.Parameter(noise((7,), 9))
    opt = SigSignAdamW(params)
    release_gradients(params, opt)
    backward(params, 0)
    opt.add_param_group({"params": [late]})
    late.grad = torch.ones(7)
    opt.step()
    backward(params, 1)
    assert opt.state[late]["step"] == 1
    assert all(opt.state[param]["step"] == 2 for param in params)


def test_states_that_torch_makes_before_the_first_backward():
    """torch.distributed.checkpoint gives gradients of zero and calls step() to have states to load into."""
    model, plain = network(), network()
    opt, other = SigSignAdamW(model.parameters()), SigSignAdamW(plain.parameters())
    release_gradients(model, opt)
    found = get_optimizer_state_dict(model, opt)
    assert set(found["state"]) == {name for name, _ in model.named_parameters()}
    get_optimizer_state_dict(plain, other)
    for network_ in (model, plain):
        network_(noise((8, 6), 0)).square().mean().backward()
    opt.step()
    other.step()
    assert_same_bits(model.parameters(), plain.parameters())


def test_after_remove_step_makes_the_steps_again():
    released, plain = make_params(), make_params()
    opt, other = SigSignAdamW(released), SigSignAdamW(plain)
    handle = release_gradients(released, opt)
    backward(released, 0)
    handle.remove()
    handle.remove()  # harmless
    backward(released, 1)
    assert all(param.grad is not None for param in released)
    opt.step()
    run(other, plain, range(2))
    assert_same_bits(released, plain)
    again = release_gradients(released, opt)
    handle.remove()  # no longer its own
    with pytest.raises(RuntimeError, match="already"):
        release_gradients(released, opt)
    again.remove()


@both_backends
def test_a_loaded_state_is_gone_on_from(backend):
    plain, released = make_params(), make_params()
    other = SigSignAdamW(plain, lr=0.02, backend=backend)
    run(other, plain, range(2))
    opt = SigSignAdamW(released, backend=backend)
    release_gradients(released, opt)
    backward(released, 7)
    with torch.no_grad():
        for param, value in zip(released, plain, strict=True):
            param.copy_(value)
    opt.load_state_dict(copy.deepcopy(other.state_dict()))
    backward(released, 2)
    run(other, plain, [2])
    assert_same_bits(released, plain)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
def test_copies_do_not_release(duplicate):
    model = network()
    opt = SigSignAdamW(model.parameters())
    release_gradients(model, opt)
    twin, twin_opt = duplicate((model, opt))
    twin(noise((8, 6), 0)).sum().backward()
    assert all(param.grad is not None for param in twin.parameters())
    release_gradients(twin, twin_opt)


def test_model_and_optimizer_are_freed():
    model = network()
    opt = SigSignAdamW(model.parameters())
    release_gradients(model, opt)
    model(noise((8, 6), 0)).sum().backward()
    remaining = weakref.ref(model[0].weight), weakref.ref(opt)
    del model, opt
    gc.collect()
    assert [each() for each in remaining] == [None, None]


@both_backends
@every_measured
def test_friction_stats_have_no_gradient_to_be_of(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    handle = release_gradients(params, opt)
    backward(params, 0)
    with pytest.raises(RuntimeError, match="release_gradients applies each gradient"):
        friction_stats(opt)
    handle.remove()
    backward(params, 1)
    assert friction_stats(opt)[0].count == sum(param.numel() for param in params)
