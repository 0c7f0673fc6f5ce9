"""Tensors that move, change or go between steps: the native step reads memory by its address."""

import copy
import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from optimizer_cases import (
    assert_same_bits,
    both_backends,
    each_of,
    every_optimizer,
    make_params,
    noise,
    run,
)
from torch import nn

from friction_kernels import OPTIMIZERS, TanhSignAdamW

SHAPES = [(3, 4), (5,), (2, 3, 2)]


def stepped_twins(name, backend="native", steps=2):
    """Two optimizers that took the same steps: (parameters, optimizer) twice."""
    twins = []
    for _ in range(2):
        params = make_params(SHAPES)
        opt = OPTIMIZERS[name](params, lr=0.05, backend=backend)
        run(opt, params, range(steps))
        twins.append((params, opt))
    return twins


def changed(tensor):
    """Other values at another address; of a step count another count."""
    return tensor.detach() * 1.5 + 0.125 if tensor.dim() else tensor.detach() + 2


# Parameters and gradients.


@both_backends
@every_optimizer
def test_memory_given_to_a_parameter_is_the_one_updated(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    for param, twin in zip(params, twins, strict=True):
        old, old_values = param.data, param.detach().clone()
        param.data = changed(param)
        assert param.data_ptr() != old.data_ptr()
        with torch.no_grad():
            twin.copy_(changed(twin))
        run(opt, params, range(2, 3))
        run(twin_opt, twins, range(2, 3))
        assert_same_bits(params, twins)
        assert torch.equal(old, old_values)


@every_optimizer
def test_memory_in_another_layout_given_to_a_parameter_is_the_one_updated(name):
    (params, opt), (twins, twin_opt) = stepped_twins(name)
    params[0].data = params[0].data.t().contiguous().t()
    params[2].data = torch.zeros(2, 3, 4)[:, :, ::2].copy_(params[2].data)
    run(opt, params, range(2, 5))
    run(twin_opt, twins, range(2, 5))
    assert not params[0].is_contiguous() and not params[2].is_contiguous()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7)


@both_backends
@every_optimizer
def test_a_new_gradient_each_step_does_as_one_written_over(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    kept = []
    for step in range(2, 6):
        for index, (param, twin) in enumerate(zip(params, twins, strict=True)):
            kept.append(noise(param.shape, 1000 * step + index))  # no address comes again
            param.grad = kept[-1]
            twin.grad.copy_(kept[-1])
        opt.step()
        twin_opt.step()
    assert len({gradient.data_ptr() for gradient in kept}) == len(kept)
    assert_same_bits(params, twins)


@both_backends
@every_optimizer
def test_swapped_parameters_are_updated_as_what_they_have_become(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    for param, twin in zip(params, twins, strict=True):
        fresh = nn.Parameter(changed(param))
        with torch.no_grad():
            twin.copy_(fresh)
        torch.utils.swap_tensors(param, fresh)
        run(opt, params, range(2, 4))
        run(twin_opt, twins, range(2, 4))
        assert_same_bits(params, twins)
        assert not torch.equal(param, fresh)


@both_backends
@every_optimizer
def test_model_moved_to_bfloat16_between_steps_goes_on_with_its_moments(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    model = nn.ParameterList(params)
    model.to(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in params)
    with torch.no_grad():
        for step in range(2, 5):
            for twin in twins:
                twin.copy_(twin.bfloat16())
            for index, (param, twin) in enumerate(zip(params, twins, strict=True)):
                param.grad = noise(param.shape, 1000 * step + index, torch.bfloat16)
                twin.grad = param.grad.float()
            opt.step()
            twin_opt.step()
    assert_same_bits(params, [twin.bfloat16() for twin in twins])
    assert all(
        value.dtype == torch.float32 for state in opt.state.values() for value in state.values()
    )


@both_backends
@every_optimizer
def test_model_moved_to_float64_between_steps_says_how_to_go_on(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    for param in params:
        param.data, param.grad = param.data.double(), None
    before = copy.deepcopy(params)
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 .*load_state_dict\(\)"):
        run(opt, params, range(2, 3))
    assert_same_bits(params, before)

    opt.load_state_dict(opt.state_dict())
    wide = [nn.Parameter(twin.detach().double()) for twin in twins]
    wide_opt = OPTIMIZERS[name](wide, lr=0.05, backend=backend)
    wide_opt.load_state_dict(twin_opt.state_dict())
    run(opt, params, range(2, 4))
    run(wide_opt, wide, range(2, 4))
    assert_same_bits(params, wide)
    for state in opt.state.values():
        assert {v.dtype for k, v in state.items() if k != "step"} == {torch.float64}


@both_backends
@pytest.mark.parametrize("shape", [(7, 9), (1,)], ids=str)
@pytest.mark.parametrize("which", range(len(SHAPES)))
@every_optimizer
def test_parameter_of_another_shape_goes_on_once_its_state_is_taken_away(
    name, which, shape, backend
):
    (params, opt), _ = stepped_twins(name, backend)
    params[which].data = noise(shape, 3)
    for step in range(2, 5):
        before = copy.deepcopy(params)
        with pytest.raises(RuntimeError, match=f"parameter {which} of group 0 .*delete its state"):
            run(opt, params, [step])
        assert_same_bits(params, before)
    del opt.state[params[which]]
    fresh = nn.Parameter(params[which].detach().clone())
    fresh_opt = OPTIMIZERS[name]([fresh], lr=0.05, backend=backend)
    for step in range(5, 8):
        run(opt, params, [step])
        fresh.grad = params[which].grad
        fresh_opt.step()
    assert torch.equal(params[which], fresh)


# The list of parameters.


@both_backends
@every_optimizer
def test_parameters_written_into_a_group_are_updated_from_then_on(name, backend):
    (_, opt), _ = stepped_twins(name, backend)
    late, alone = nn.Parameter(noise((4,), 9)), nn.Parameter(noise((4,), 9))
    alone_opt = OPTIMIZERS[name]([alone], lr=0.05, backend=backend)
    opt.param_groups[0]["params"].append(late)
    for step in range(3):
        late.grad, alone.grad = noise((4,), step), noise((4,), step)
        opt.step()
        alone_opt.step()
    assert torch.equal(late, alone)
    assert not torch.equal(late, noise((4,), 9))


@both_backends
@every_optimizer
def test_parameters_taken_out_of_a_group_are_updated_no_more(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    out, at_that_time = params[1], params[1].detach().clone()
    opt.param_groups[0]["params"] = [params[0], params[2]]
    run(opt, params, range(2, 4))
    run(twin_opt, twins, range(2, 4))
    assert torch.equal(out, at_that_time)
    assert_same_bits([params[0], params[2]], [twins[0], twins[2]])


@both_backends
@every_optimizer
def test_parameters_may_change_places_in_their_groups(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    opt.param_groups[0]["params"].reverse()
    run(opt, params, range(2, 4))
    run(twin_opt, twins, range(2, 4))
    assert_same_bits(params, twins)


# States.


@both_backends
@every_optimizer
def test_state_tensor_put_in_by_hand_is_used_from_then_on(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    steps = iter(range(2, 100))
    for param, twin in zip(params, twins, strict=True):
        for key in opt.state[param]:
            old = opt.state[param][key]
            old_values = old.clone()
            opt.state[param][key] = changed(old)
            twin_opt.state[twin][key].copy_(changed(old))
            step = next(steps)
            run(opt, params, [step])
            run(twin_opt, twins, [step])
            assert_same_bits(params, twins)
            assert torch.equal(old, old_values)


@both_backends
@every_optimizer
def test_state_dict_of_a_parameter_put_in_by_hand_is_used_from_then_on(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    for param, twin in zip(params, twins, strict=True):
        old = opt.state[param]
        old_values = copy.deepcopy(old)
        opt.state[param] = {key: changed(old[key]) for key in reversed(old)}
        for value in twin_opt.state[twin].values():
            value.copy_(changed(value))
        run(opt, params, range(2, 4))
        run(twin_opt, twins, range(2, 4))
        assert_same_bits(params, twins)
        assert_same_bits(old.values(), old_values.values())


@both_backends
@every_optimizer
def test_state_taken_away_starts_anew(name, backend):
    (params, opt), _ = stepped_twins(name, backend)
    fresh = [nn.Parameter(p.detach().clone()) for p in params]
    fresh_opt = OPTIMIZERS[name](fresh, lr=0.05, backend=backend)
    opt.state[params[0]].clear()
    del opt.state[params[1]]
    opt.state[params[2]] = {}
    run(opt, params, range(2, 4))
    run(fresh_opt, fresh, range(2, 4))
    assert_same_bits(params, fresh)


@both_backends
@every_optimizer
def test_states_moved_in_place_are_noticed_at_the_next_step(name, backend):
    (params, opt), (twins, twin_opt) = stepped_twins(name, backend)
    for step in range(2, 5):
        for state, twin_state in zip(opt.state.values(), twin_opt.state.values(), strict=True):
            for key, value in state.items():
                value.data = changed(value.data.clone())
                twin_state[key].copy_(changed(twin_state[key]))
        run(opt, params, [step])
        run(twin_opt, twins, [step])
        assert_same_bits(params, twins)
        for state, twin_state in zip(opt.state.values(), twin_opt.state.values(), strict=True):
            assert_same_bits(state.values(), twin_state.values())


@pytest.mark.parametrize("which", range(len(SHAPES)))
@every_optimizer
def test_state_of_one_parameter_moved_in_place_never_writes_elsewhere(name, which):
    (params, opt), _ = stepped_twins(name)
    value = next(v for k, v in opt.state[params[which]].items() if k != "step")
    value.data = value.data.clone()
    others = [torch.zeros_like(value) for _ in range(8)]  # where the old memory would be, if free
    run(opt, params, range(2, 2 + 2 * len(SHAPES)))
    assert all(not other.any() for other in others)
    moved = value.clone()
    run(opt, params, range(50, 51))
    assert not torch.equal(value, moved)


# Lifetimes.


def memory_of(values):
    """A tensor, and a weak reference that is dead once its memory is free."""
    array = np.array(values, dtype=np.float32)
    return torch.from_numpy(array), weakref.ref(array)


@both_backends
def test_optimizer_outlives_the_model(backend):
    model, twin = nn.Linear(3, 2), nn.Linear(3, 2)
    twin.load_state_dict(model.state_dict())
    opt = TanhSignAdamW(model.parameters(), backend=backend)
    twin_opt = TanhSignAdamW(twin.parameters(), backend=backend)
    run(opt, list(model.parameters()), range(2))
    run(twin_opt, list(twin.parameters()), range(3))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    params = opt.param_groups[0]["params"]
    run(opt, params, range(2, 3))
    assert_same_bits(params, twin.parameters())


@both_backends
def test_parameter_taken_out_of_group_and_state_is_freed_at_the_next_step(backend):
    values, freed = memory_of([1.0, 2.0])
    params = [nn.Parameter(values), nn.Parameter(torch.ones(3))]
    opt = TanhSignAdamW(params, backend=backend)
    run(opt, params, range(2))
    opt.param_groups[0]["params"].pop(0)
    opt.state.pop(params.pop(0))
    del values
    run(opt, params, range(2, 3))
    assert freed() is None


@both_backends
def test_old_memory_of_parameters_is_freed_at_once(backend):
    values, freed = memory_of([1.0, 2.0])
    param = nn.Parameter(values)
    opt = TanhSignAdamW([param], backend=backend)
    run(opt, [param], range(2))
    param.data = torch.ones(2)
    del values
    assert freed() is None


@both_backends
@every_optimizer
def test_gradients_are_freed_by_zero_grad(name, backend):
    param = nn.Parameter(torch.ones(2))
    opt = OPTIMIZERS[name]([param], backend=backend)
    for _ in range(3):
        param.grad, freed = memory_of([1.0, 2.0])
        opt.step()
        assert freed() is not None
        opt.zero_grad(set_to_none=True)
        assert freed() is None


def test_gradients_are_freed_after_a_step_that_failed():
    params = make_params([(2,), (2,)])
    opt = TanhSignAdamW(params, backend="native")
    run(opt, params, range(2))
    params[0].grad, freed = memory_of([1.0, 2.0])
    params[1].grad = torch.ones(2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    opt.zero_grad(set_to_none=True)
    assert freed() is None


# Memory that is gone.


@pytest.mark.parametrize(
    ("lost", "share"),
    [("parameter", 0), ("gradient", 0), ("state", 0), ("parameter", 0.9), ("state", 0.9)],
)
@every_optimizer
def test_storage_resized_to_less_is_an_error(name, lost, share):
    (params, opt), (twins, twin_opt) = stepped_twins(name)
    lose = {
        "parameter": lambda: params[1],
        "gradient": lambda: params[1].grad,
        "state": lambda: opt.state[params[0]][next(reversed(opt.state[params[0]]))],
    }[lost]()
    values, size = lose.detach().clone(), lose.untyped_storage().nbytes()
    lose.untyped_storage().resize_(int(size * share))
    number = 0 if lost == "state" else 1
    for _ in range(3):
        with pytest.raises(RuntimeError, match=rf"parameter {number} of group 0 .*no memory"):
            opt.step()
    lose.untyped_storage().resize_(size)
    with torch.no_grad():
        lose.copy_(values)
    opt.step()
    twin_opt.step()
    assert_same_bits(params, twins)


LOST_BEHIND_A_VIEW = """
import torch
from friction_kernels import TanhSignAdamW

torch.set_num_threads(1)
param = torch.zeros(20)[10:].requires_grad_()
param.grad = torch.ones(10)
opt = TanhSignAdamW([param], backend="native")
opt.step()
param.untyped_storage().resize_(0)
try:
    opt.step()
except RuntimeError as error:
    print("RuntimeError", error)
"""


def test_storage_resized_to_nothing_under_a_view_is_an_error():
    # Its address is an offset from nothing, and not null; in a process of its own, lest it crash.
    process = subprocess.run(
        [sys.executable, "-c", LOST_BEHIND_A_VIEW], capture_output=True, encoding="utf-8"
    )
    assert process.returncode == 0
    assert process.stdout.startswith("RuntimeError parameter 0 of group 0")
    assert "no memory" in process.stdout


# The version counter of autograd.


@both_backends
@each_of(["torch", *OPTIMIZERS])
def test_backward_through_a_graph_from_before_the_step_raises(name, backend):
    params = make_params([(3, 3), (3, 3)])
    of_torch = {"torch": lambda params, backend: torch.optim.AdamW(params)}
    opt = {**OPTIMIZERS, **of_torch}[name](params, backend=backend)
    run(opt, params, range(2))
    out = (params[0] @ params[1]).sum()
    opt.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@both_backends
@every_optimizer
def test_versions_count_the_updates_of_a_parameter_and_nothing_else(name, backend):
    params = make_params(SHAPES)
    opt = OPTIMIZERS[name](params, backend=backend)
    with_gradient = [(0, 1, 2), (0, 2), (), (1,), (), (0, 1, 2)]
    for step, updated in enumerate(with_gradient):
        for index, param in enumerate(params):
            param.grad = noise(param.shape, step) if index in updated else None
        versions = [param._version for param in params]
        opt.step()
        for index, param in enumerate(params):
            assert (param._version > versions[index]) == (index in updated)


@both_backends
def test_a_step_without_gradients_after_a_failed_one_changes_no_version(backend):
    params = make_params(SHAPES)
    opt = TanhSignAdamW(params, backend=backend)
    run(opt, params, range(2))
    params[1].grad = params[1].grad.to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        opt.step()
    opt.zero_grad()
    versions = [param._version for param in params]
    opt.step()
    assert [param._version for param in params] == versions
