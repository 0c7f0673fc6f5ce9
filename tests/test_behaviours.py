"""What a user of torch.optim takes for granted, and what the native step adds to it."""

import copy
import gc
import inspect
import pickle
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from optimizer_cases import (
    ADAMS,
    FRICTION,
    MEASURED,
    PROJECTED,
    assert_same_bits,
    both_backends,
    case_of,
    each_of,
    every_friction,
    every_measured,
    every_optimizer,
    give_gradients,
    make_params,
    noise,
    run,
)
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

import friction_kernels
from friction_kernels import OPTIMIZERS, RSGDM, TanhSignAdamW, count_launches, friction_stats
from friction_kernels.backends import describe
from friction_kernels.optim.options import DEFAULTS as SCALE_OPTIONS
from friction_kernels.optim.options import TORCHS

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot be served by native kernels"),
]

SHAPES = [(3, 4), (4, 3), (5,), (2, 3, 2), (), (6, 1)]


def assert_close(left, right, rtol):
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


# Parameter groups.


def options_of(name):
    """An optimizer's options, with values at which a change of any one shows."""
    defaults = OPTIMIZERS[name](make_params(SHAPES)).defaults
    telling = {"eps": 0.1, "weight_decay": 0.1, "delta": 2.0, "momentum": 0.8}
    return {key: telling.get(key, value) for key, value in defaults.items()}


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return {"product": "normalized"}[value]
    return tuple(map(another, value)) if isinstance(value, tuple) else value / 4


# Options that change how a step is computed, not what, and those of precision, which have tests of their own.
# dampening can only be 0.
HOW = ("backend", "capturable", "dampening", "take_gradients", *SCALE_OPTIONS)


@both_backends
@pytest.mark.parametrize(
    ("name", "option"),
    [
        case_of(name, option)
        for name in OPTIMIZERS
        for option in options_of(name)
        if option not in HOW
    ],
)
def test_option_of_a_group_holds_for_that_group_alone(name, option, backend):
    cls, options = OPTIMIZERS[name], {**options_of(name), "backend": backend}
    other = {option: another(options[option])}
    params, apart, ignored = make_params(SHAPES), make_params(SHAPES), make_params(SHAPES)
    opt = cls([{"params": params[::2]}, {"params": params[1::2], **other}], **options)
    two = [cls(apart[::2], **options), cls(apart[1::2], **{**options, **other})]
    run(opt, params, range(4))
    run(two, apart, range(4))
    run(cls(ignored, **options), ignored, range(4))
    assert_same_bits(params, apart)
    assert not any(map(torch.equal, params[1::2], ignored[1::2]))


def served_natively(opt):
    return [entry.fallback_reason is None for entry in opt._plan.entries]


def test_backend_of_a_group_holds_for_that_group_alone():
    params = make_params([(100_000,), (100_000,), (100_000,)])
    groups = [{"params": [p]} for p in params]
    groups[1]["backend"] = "reference"
    opt = TanhSignAdamW(groups)
    run(opt, params, range(2))
    assert served_natively(opt) == [True, False, True]


def test_backend_of_a_group_may_change_between_steps():
    params = make_params([(100_000,), (100_000,)])
    opt = TanhSignAdamW([{"params": [p]} for p in params])
    for step, backends in enumerate(["native native", "reference native", "native reference"]):
        for group, backend in zip(opt.param_groups, backends.split(), strict=True):
            group["backend"] = backend
        run(opt, params, [step])
        assert served_natively(opt) == [backend == "native" for backend in backends.split()]


@both_backends
@every_optimizer
def test_options_changed_between_steps_hold_from_the_next_step(name, backend):
    cls, options = OPTIMIZERS[name], {**options_of(name), "backend": backend}
    params, fresh = make_params(SHAPES), make_params(SHAPES)
    opt = cls(params, **options)
    run(opt, params, range(2))
    kept = ("backend", "take_gradients", *SCALE_OPTIONS)
    changed = {k: v if k in kept else another(v) for k, v in options.items()}
    opt.param_groups[0].update(changed)
    run(opt, params, range(2, 4))

    started = cls(fresh, **options)
    run(started, fresh, range(2))
    ended = cls(fresh, **changed)
    ended.state.update(started.state)
    run(ended, fresh, range(2, 4))
    assert_same_bits(params, fresh)


# What a group asks for at first, and what from the third step on.
SCALE_CHANGES = {
    "rounding": ({}, {"rounding": "stochastic"}),
    "rounding back": ({"rounding": "stochastic"}, {"rounding": "nearest"}),
    "seed": ({"rounding": "stochastic"}, {"seed": 7}),
    "master": ({}, {"master": "split"}),
    "other master": ({"master": "split"}, {"master": "fp32"}),
    "no master": ({"master": "split8"}, {"master": None}),
    "state_dtype": ({}, {"state_dtype": "8bit"}),
    "other state_dtype": ({"state_dtype": "8bit"}, {"state_dtype": "bf16"}),
    "wide state_dtype": ({"state_dtype": "bf16"}, {"state_dtype": "fp32"}),
    "max_grad_norm": ({}, {"max_grad_norm": 0.1}),
    "other max_grad_norm": ({"max_grad_norm": 0.1}, {"max_grad_norm": 0.01}),
}


@both_backends
@pytest.mark.parametrize("change", SCALE_CHANGES)
@every_optimizer
def test_options_of_precision_changed_between_steps_hold_from_the_next_step(name, change, backend):
    before, after = SCALE_CHANGES[change]
    options = {
        "lr": 0.01,
        "backend": backend,
        "eps": 0.1,
        **before,
    }  # else Adam's steps have one size
    if name not in ADAMS:
        del options["eps"]
        options["momentum"] = 0.9  # else SGD's buffer does not matter
    shapes = [(20, 30), (300,), (5,)]
    params, fresh, unchanged = (make_params(shapes, torch.bfloat16) for _ in range(3))
    opt, started, same = (OPTIMIZERS[name](p, **options) for p in (params, fresh, unchanged))
    run(opt, params, range(2))
    opt.param_groups[0].update(after)
    run(opt, params, range(2, 5))

    run(started, fresh, range(2))
    ended = OPTIMIZERS[name](fresh, **options | after)
    ended.state.update(started.state)
    run(ended, fresh, range(2, 5))
    assert_same_bits(params, fresh)
    for param, twin in zip(params, fresh, strict=True):
        assert opt.state[param].keys() == ended.state[twin].keys()
        assert_same_bits(opt.state[param].values(), ended.state[twin].values())
    run(same, unchanged, range(5))
    alike = opt.state[params[0]].keys() == same.state[unchanged[0]].keys()
    assert not (alike and all(map(torch.equal, params, unchanged)))


@both_backends
@every_optimizer
def test_group_added_after_steps_starts_then(name, backend):
    cls = OPTIMIZERS[name]
    params, apart = make_params(SHAPES), make_params(SHAPES)
    opt = cls(params[:3], backend=backend)
    run(opt, params[:3], range(2))
    opt.add_param_group({"params": params[3:], "lr": 0.05})
    run(opt, params, range(2, 5))

    first, second = cls(apart[:3], backend=backend), cls(apart[3:], lr=0.05, backend=backend)
    run(first, apart[:3], range(2))
    run([first, second], apart, range(2, 5))
    assert_same_bits(params, apart)


def test_group_without_parameters_is_served_as_by_torch():
    params, twins = make_params(SHAPES), make_params(SHAPES)
    opt = TanhSignAdamW([{"params": []}, {"params": params}])
    run(opt, params, range(2))
    run(TanhSignAdamW(twins), twins, range(2))
    assert_same_bits(params, twins)


# The parameters an optimizer takes.


@every_optimizer
def test_named_parameters_keep_their_names_and_step_the_same(name):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    twin = copy.deepcopy(model)
    opt = OPTIMIZERS[name](model.named_parameters())
    run(opt, list(model.parameters()), range(3))
    run(OPTIMIZERS[name](twin.parameters()), list(twin.parameters()), range(3))
    assert_same_bits(model.parameters(), twin.parameters())
    names = ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert opt.param_groups[0]["param_names"] == names
    assert opt.state_dict()["param_groups"][0]["param_names"] == names


@every_optimizer
def test_generators_and_single_tensors_are_taken_as_parameters(name):
    params, twins = make_params(SHAPES), make_params(SHAPES)
    opt = OPTIMIZERS[name](p for p in params[:3])
    opt.add_param_group({"params": (p for p in params[3:5])})
    opt.add_param_group({"params": params[5]})
    run(opt, params, range(3))
    run(OPTIMIZERS[name](twins), twins, range(3))
    assert_same_bits(params, twins)


@both_backends
def test_lazy_parameters_may_take_shape_after_the_optimizer_is_made(backend):
    torch.manual_seed(0)
    model = nn.LazyLinear(3)
    opt = TanhSignAdamW(model.parameters(), backend=backend)
    model(torch.ones(2, 4))
    twin = copy.deepcopy(model)
    run(opt, list(model.parameters()), range(2))
    run(TanhSignAdamW(twin.parameters(), backend=backend), list(twin.parameters()), range(2))
    assert_same_bits(model.parameters(), twin.parameters())


@both_backends
@every_optimizer
def test_frozen_layers_stay_as_they_are_and_get_no_state(name, backend):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    model[1].requires_grad_(False)
    frozen = copy.deepcopy(model[1])
    twin = copy.deepcopy(model)
    opt = OPTIMIZERS[name](model.parameters(), backend=backend)
    other = OPTIMIZERS[name]([*twin[0].parameters(), *twin[2].parameters()], backend=backend)
    for step in range(3):
        for network, optimizer in ((model, opt), (twin, other)):
            optimizer.zero_grad()
            network(noise((8, 4), step)).square().mean().backward()
            optimizer.step()
    assert_same_bits(model[1].parameters(), frozen.parameters())
    assert not any(p in opt.state for p in model[1].parameters())
    assert_same_bits(model.parameters(), twin.parameters())


@both_backends
@pytest.mark.parametrize("seen", [(0, 3, 4), (2, 3, 5), (5,)], ids=str)
@every_optimizer
def test_parameter_without_gradient_at_some_steps_is_as_if_those_had_not_been(name, seen, backend):
    params, twins = make_params([(3, 4), (4, 3), (2, 2)]), make_params([(3, 4), (4, 3), (2, 2)])
    opt = OPTIMIZERS[name](params, backend=backend)
    alone = OPTIMIZERS[name]([twins[1]], backend=backend)
    others = OPTIMIZERS[name]([twins[0], twins[2]], backend=backend)
    for step in range(6):
        give_gradients(params, step)
        give_gradients(twins, step)
        before = copy.deepcopy(opt.state.get(params[1]))
        if step not in seen:
            params[1].grad = None
        opt.step()
        others.step()
        if step in seen:
            alone.step()
        elif before is None:
            assert params[1] not in opt.state
        else:
            assert all(torch.equal(opt.state[params[1]][key], before[key]) for key in before)
    assert_same_bits(params, twins)
    for key, value in alone.state[twins[1]].items():
        assert torch.equal(opt.state[params[1]][key], value)


@both_backends
@every_optimizer
def test_step_without_any_gradient_does_nothing(name, backend):
    params, before = make_params(SHAPES), make_params(SHAPES)
    opt = OPTIMIZERS[name](params, backend=backend)
    with count_launches() as launches:
        opt.step()
    assert_same_bits(params, before)
    assert launches.total == 0
    assert not opt.state

    run(opt, params, range(2))
    opt.zero_grad(set_to_none=True)
    before, states = copy.deepcopy(params), copy.deepcopy(list(opt.state.values()))
    with count_launches() as launches:
        opt.step()
    assert_same_bits(params, before)
    assert launches.total == 0
    for state, kept in zip(opt.state.values(), states, strict=True):
        assert_same_bits(state.values(), kept.values())


@both_backends
def test_gradients_zeroed_in_place_still_count_as_gradients(backend):
    params, twins = (
        make_params(SHAPES, dtype=torch.float64),
        make_params(SHAPES, dtype=torch.float64),
    )
    opt, adamw = TanhSignAdamW(params, beta3=0, backend=backend), torch.optim.AdamW(twins)
    run(opt, params, range(2))
    run(adamw, twins, range(2))
    for optimizer in (opt, adamw):
        optimizer.zero_grad(set_to_none=False)
        optimizer.step()
    assert all(not p.grad.any() for p in params)
    assert_close(params, twins, 1e-12)


@both_backends
@every_optimizer
def test_tensors_without_elements_are_passed_by(name, backend):
    params, twins = make_params([(0,), (3, 4), (3, 0), (0, 3)]), make_params([(0,), (3, 4)])
    run(OPTIMIZERS[name](params, backend=backend), params, range(3))
    run(OPTIMIZERS[name](twins, backend=backend), twins, range(3))
    assert torch.equal(params[1], twins[1])
    assert [tuple(p.shape) for p in params] == [(0,), (3, 4), (3, 0), (0, 3)]


@both_backends
@every_optimizer
def test_scalar_parameters_step_like_one_element_vectors(name, backend):
    (scalar,), (vector,) = make_params([()]), make_params([(1,)])
    opts = [OPTIMIZERS[name]([p], backend=backend) for p in (scalar, vector)]
    for step in range(4):
        scalar.grad = noise((), step).clone()
        vector.grad = scalar.grad.clone().reshape(1)
        for opt in opts:
            opt.step()
    assert scalar.shape == ()
    assert scalar != noise((), 0)
    assert torch.equal(scalar.reshape(1), vector)


@both_backends
def test_states_lie_with_the_parameter_whatever_the_default_device(backend):
    params, twins = make_params(SHAPES), make_params(SHAPES)
    opt, twin = (TanhSignAdamW(p, backend=backend) for p in (params, twins))
    give_gradients(params, 0)
    give_gradients(twins, 0)
    with torch.device("meta"):
        opt.step()
    twin.step()
    assert_same_bits(params, twins)


# Calling step().


@both_backends
@every_optimizer
def test_closure_is_called_once_with_grad_enabled_and_its_loss_returned(name, backend):
    params, twins = make_params([(3, 4)]), make_params([(3, 4)])
    opt, twin = (OPTIMIZERS[name](p, backend=backend) for p in (params, twins))
    losses = []

    def closure():
        assert torch.is_grad_enabled()
        opt.zero_grad()
        losses.append((params[0] * noise((3, 4), 7)).square().sum())
        losses[-1].backward()
        return losses[-1]

    assert opt.step(closure) is losses[0]
    assert len(losses) == 1
    (twins[0] * noise((3, 4), 7)).square().sum().backward()
    assert twin.step() is None
    assert_same_bits(params, twins)


def test_step_hooks_see_and_change_what_step_gets():
    params = make_params(SHAPES)
    before = copy.deepcopy(params)
    opt, calls = TanhSignAdamW(params), []

    def pre(optimizer, args, kwargs):
        calls.append(("pre", optimizer is opt, torch.equal(params[0], before[0])))
        return args, {"closure": lambda: "loss"}

    def post(optimizer, args, kwargs):
        calls.append(("post", optimizer is opt, torch.equal(params[0], before[0])))

    give_gradients(params, 0)
    handles = opt.register_step_pre_hook(pre), opt.register_step_post_hook(post)
    assert opt.step() == "loss"
    assert calls == [("pre", True, True), ("post", True, False)]
    for handle in handles:
        handle.remove()
    assert opt.step() is None
    assert len(calls) == 2


TORCH_TWINS = {
    "Adam": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "AdamW": lambda params, lr: torch.optim.AdamW(params, lr=lr),
    "SGD": lambda params, lr: torch.optim.SGD(params, lr=lr),
    "TanhSignGrad": lambda params, lr: torch.optim.Adam(params, lr=lr),
    "TanhSignAdamW": lambda params, lr: torch.optim.AdamW(params, lr=lr),
    "RSGDM": lambda params, lr: torch.optim.SGD(params, lr=lr / 10, momentum=0.9, nesterov=True),
}
SCHEDULERS = {
    "StepLR": lambda opt, lr: StepLR(opt, step_size=2, gamma=0.5),
    "CosineAnnealingLR": lambda opt, lr: CosineAnnealingLR(opt, T_max=6),
    "LambdaLR": lambda opt, lr: LambdaLR(opt, lambda epoch: 1 / (1 + epoch)),
    "OneCycleLR": lambda opt, lr: OneCycleLR(
        opt, max_lr=10 * float(lr), total_steps=9, cycle_momentum="betas" in opt.defaults
    ),
}


@both_backends
@pytest.mark.parametrize("as_tensor", [False, True], ids=["float lr", "tensor lr"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@each_of(TORCH_TWINS)
def test_schedulers_drive_it_as_they_drive_torch(name, scheduler, as_tensor, backend):
    params, twins = (
        make_params(SHAPES, dtype=torch.float64),
        make_params(SHAPES, dtype=torch.float64),
    )
    lr = torch.tensor(0.02, dtype=torch.float64) if as_tensor else 0.02
    friction = {"beta3": 0} if name in FRICTION else {}
    opt = OPTIMIZERS[name](params, lr=lr, backend=backend, **friction)
    twin = TORCH_TWINS[name](twins, lr)
    schedulers = [SCHEDULERS[scheduler](o, o.defaults["lr"]) for o in (opt, twin)]
    rates = set()
    for step in range(8):
        rates.add(float(opt.param_groups[0]["lr"]))
        run(opt, params, [step])
        run(twin, twins, [step])
        for s in schedulers:
            s.step()
    assert len(rates) >= 4
    assert isinstance(opt.param_groups[0]["lr"], torch.Tensor) == as_tensor
    assert_close(params, twins, 1e-10)


@every_optimizer
def test_both_backends_follow_a_cycled_momentum_alike(name):
    results, momenta = [], set()
    for backend in ("native", "reference"):
        params = make_params(SHAPES, dtype=torch.float64)
        opt = OPTIMIZERS[name](params, lr=0.01, backend=backend)
        scheduler = OneCycleLR(opt, max_lr=0.05, total_steps=9)
        for step in range(8):
            group = opt.param_groups[0]
            momenta.add(group["betas"][0] if "betas" in group else group["momentum"])
            run(opt, params, [step])
            scheduler.step()
        results.append(params)
    assert len(momenta) > 3
    assert_close(*results, 1e-10)


# Copies and the printed form.


@both_backends
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
@every_optimizer
def test_copy_of_model_and_optimizer_goes_on_to_the_same_bits(name, duplicate, backend):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    opt = OPTIMIZERS[name](model.parameters(), lr=0.03, backend=backend)
    run(opt, list(model.parameters()), range(3))
    at_copy = copy.deepcopy(model)
    model_copy, opt_copy = duplicate((model, opt))
    run(opt, list(model.parameters()), range(3, 6))
    assert_same_bits(model_copy.parameters(), at_copy.parameters())
    run(opt_copy, list(model_copy.parameters()), range(3, 6))
    assert_same_bits(model_copy.parameters(), model.parameters())
    assert opt_copy.param_groups[0]["lr"] == 0.03


@every_optimizer
def test_repr_names_the_class_and_every_option(name):
    opt = OPTIMIZERS[name]([{"params": make_params([(2,)]), "lr": 0.125}], weight_decay=0.375)
    assert repr(opt).startswith(name)
    assert "lr: 0.125" in repr(opt)
    assert "weight_decay: 0.375" in repr(opt)
    for option in opt.defaults:
        assert f"{option}: " in repr(opt)


@every_optimizer
def test_signature_shows_every_option(name):
    shown = set(inspect.signature(OPTIMIZERS[name]).parameters)
    options = OPTIMIZERS[name](make_params(SHAPES)).defaults.keys()
    assert shown - (TORCHS.keys() - options) == {"params", *options}


def test_optimizer_frees_its_parameters_with_itself():
    memory = np.ones(5, dtype=np.float32)
    freed = weakref.ref(memory)
    param = nn.Parameter(torch.from_numpy(memory))
    opt = TanhSignAdamW([param], backend="native")
    run(opt, [param], range(2))
    del memory, param
    gc.collect()
    assert freed() is not None
    run(opt, opt.param_groups[0]["params"], range(2, 3))
    del opt
    gc.collect()
    assert freed() is None


# Types.


@both_backends
@every_optimizer
def test_float64_is_updated_in_float64(name, backend):
    # Nearer to the other backend than float32 arithmetic could come.
    params, twins = (
        make_params(SHAPES, dtype=torch.float64),
        make_params(SHAPES, dtype=torch.float64),
    )
    run(OPTIMIZERS[name](params, backend=backend), params, range(4))
    run(OPTIMIZERS[name](twins, backend="reference"), twins, range(4))
    assert_close(params, twins, 1e-13)
    single = make_params(SHAPES)
    run(OPTIMIZERS[name](single, backend=backend), single, range(4))
    assert_close(params, [p.double() for p in single], 1e-5)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_optimizer
def test_low_precision_is_updated_in_float32_and_rounded_once_each_step(name, dtype, backend):
    params = make_params(SHAPES, dtype=dtype)
    twins = [nn.Parameter(p.detach().float()) for p in params]
    opt = OPTIMIZERS[name](params, lr=0.05, backend=backend)
    wide = OPTIMIZERS[name](twins, lr=0.05, backend=backend)
    for step in range(5):
        give_gradients(params, step)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad.float()
        opt.step()
        wide.step()
        with torch.no_grad():
            for twin in twins:
                twin.copy_(twin.to(dtype))
    assert all(p.dtype == dtype for p in params)
    assert_same_bits([p.float() for p in params], twins)


@both_backends
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@every_optimizer
def test_complex_parameters_are_updated_as_pairs_of_reals(name, dtype, backend):
    params = make_params([(3, 4), (2, 3, 2)], dtype)
    twins = [nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    opt, twin_opt = (OPTIMIZERS[name](p, lr=0.05, backend=backend) for p in (params, twins))
    for step in range(4):
        give_gradients(params, step)
        for param, twin in zip(params, twins, strict=True):
            twin.grad = torch.view_as_real(param.grad).clone()
        opt.step()
        twin_opt.step()
    assert_same_bits([torch.view_as_real(p) for p in params], twins)


@both_backends
def test_complex_parameters_are_updated_as_torch_updates_them(backend):
    shapes = [(3, 4), (5,), ()]
    params, twins = make_params(shapes, torch.complex128), make_params(shapes, torch.complex128)
    run(TanhSignAdamW(params, beta3=0, backend=backend), params, range(4))
    run(torch.optim.AdamW(twins), twins, range(4))
    assert_close(params, twins, 1e-12)


@both_backends
@every_optimizer
def test_conjugated_complex_gradients_are_resolved(name, backend):
    params, twins = make_params([(3, 4)], torch.complex64), make_params([(3, 4)], torch.complex64)
    opts = [OPTIMIZERS[name](p, lr=0.05, backend=backend) for p in (params, twins)]
    for step in range(4):
        params[0].grad = noise((3, 4), step, torch.complex64).conj()
        twins[0].grad = params[0].grad.resolve_conj()
        assert params[0].grad.is_conj() and not twins[0].grad.is_conj()
        for opt in opts:
            opt.step()
    assert_same_bits(params, twins)


@both_backends
@pytest.mark.parametrize("shape", [(3, 4), (7,), (1,), ()], ids=str)
@every_optimizer
def test_negated_views_as_gradients_are_resolved(name, shape, backend):
    params, twins = make_params([shape]), make_params([shape])
    opts = [OPTIMIZERS[name](p, lr=0.05, backend=backend) for p in (params, twins)]
    for step in range(4):
        params[0].grad = noise(shape, step, torch.complex64).conj().imag
        twins[0].grad = params[0].grad.resolve_neg()
        assert params[0].grad.is_neg() and not twins[0].grad.is_neg()
        for opt in opts:
            opt.step()
    torch.testing.assert_close(params, twins, rtol=0, atol=0 if backend == "native" else 1e-6)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float32], ids=["conjugated", "negated"])
@every_optimizer
def test_conjugated_or_negated_view_as_parameter_is_updated(name, dtype):
    view = noise((3, 4), 0, torch.complex64).clone().conj()
    param = (view if dtype.is_complex else view.imag).requires_grad_()
    assert param.is_leaf and (param.is_conj() or param.is_neg())
    twin = nn.Parameter(param.detach().resolve_conj().resolve_neg().clone())
    run(OPTIMIZERS[name]([param]), [param], range(3))
    run(OPTIMIZERS[name]([twin]), [twin], range(3))
    assert_close([param.resolve_conj().resolve_neg()], [twin], 1e-6)


# Layouts.


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def transposed(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def permuted(x):
    return x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)


def with_gaps(x):
    view = torch.full((*x.shape[:-1], 2 * x.shape[-1]), 77.0)[..., ::2]
    return view.copy_(x)


def contiguous(x):
    return x.clone()


def expanded(x):
    return x[:1, :, :1, :1].expand(x.shape)


LAYOUTS = [channels_last, transposed, permuted, with_gaps, contiguous]


def layout_twins(name, backend, layout, grad_layout):
    """A parameter after some steps: in the layouts given, and contiguous."""
    shape = (8, 6, 10, 10)
    params = [f(noise(shape, 0).clone()).requires_grad_() for f in (layout, contiguous)]
    strides = params[0].stride()
    projected = {"delta": 100.0} if name in PROJECTED else {}
    opts = [OPTIMIZERS[name]([p], lr=0.01, backend=backend, **projected) for p in params]
    for step in range(4):
        params[0].grad = grad_layout(noise(shape, 1 + step))
        params[1].grad = params[0].grad.contiguous()
        for opt in opts:
            opt.step()
    assert params[0].stride() == strides
    return params


@pytest.mark.parametrize("layout", LAYOUTS)
@each_of([name for name in OPTIMIZERS if name not in PROJECTED])
def test_layout_does_not_change_a_bit(name, layout):
    for grad_layout in (*LAYOUTS, expanded):
        param, twin = layout_twins(name, "native", layout, grad_layout)
        assert torch.equal(param, twin), grad_layout.__name__


@pytest.mark.parametrize("layout", LAYOUTS)
@each_of(PROJECTED)
def test_layout_changes_projected_updates_by_rounding_only(name, layout):
    for grad_layout in (*LAYOUTS, expanded):
        param, twin = layout_twins(name, "native", layout, grad_layout)
        torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@every_optimizer
def test_layout_changes_the_reference_by_rounding_only(name, layout):
    param, twin = layout_twins(name, "reference", layout, transposed)
    torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7)


@both_backends
@every_optimizer
def test_strides_of_dimensions_of_size_one_do_not_matter(name, backend):
    params, twins = make_params([(1, 4), (4, 1)]), make_params([(1, 4), (4, 1)])
    params[0].data = params[0].data.as_strided((1, 4), (0, 1))
    params[1].data = params[1].data.as_strided((4, 1), (1, 100))
    run(OPTIMIZERS[name](params, backend=backend), params, range(3))
    run(OPTIMIZERS[name](twins, backend=backend), twins, range(3))
    assert_same_bits(params, twins)


@every_optimizer
def test_memory_between_the_elements_of_a_view_is_left_alone(name):
    big = torch.full((40, 50), 77.0)
    param = big[:, ::2].zero_().requires_grad_()
    run(OPTIMIZERS[name]([param]), [param], range(2))
    assert (big[:, 1::2] == 77.0).all()
    assert (big[:, ::2] != 0.0).all()


@each_of(PROJECTED)
def test_rows_of_a_projection_do_not_depend_on_the_layout(name):
    # A row is an index of the first dimension, however it lies in memory.
    values, shape = noise((6, 40), 3), (6, 40)
    params = [nn.Parameter(values.clone()), nn.Parameter(transposed(values))]
    flat = nn.Parameter(values.clone())
    for param, delta in ((params[0], 100.0), (params[1], 100.0), (flat, 0.0)):
        opt = OPTIMIZERS[name]([param], lr=0.1, delta=delta, backend="native")
        for step in range(3):
            param.grad = noise(shape, 50 + step).clone()
            opt.step()
    torch.testing.assert_close(params[0], params[1], rtol=1e-6, atol=1e-7)
    assert not torch.allclose(params[0], flat, rtol=1e-3)


# Training.


@both_backends
@every_optimizer
def test_training_fits_a_small_network(name, backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
    inputs = noise((64, 3), 1)
    targets = inputs.prod(dim=1, keepdim=True).tanh()
    opt = OPTIMIZERS[name](model.parameters(), lr=0.05, backend=backend)
    losses = []
    for _ in range(150):
        opt.zero_grad()
        loss = (model(inputs) - targets).square().mean()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 4


def test_several_optimizers_train_one_module_together():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in OPTIMIZERS))
    twin = copy.deepcopy(model)
    inputs = noise((32, 8), 1)
    results = []
    for network, backend in ((model, "native"), (twin, "reference")):
        opts = [
            cls(layer.parameters(), lr=1e-2, backend=backend)
            for cls, layer in zip(OPTIMIZERS.values(), network, strict=True)
        ]
        losses = []
        for _ in range(20):
            network.zero_grad()
            losses.append((network(inputs) - inputs).square().mean())
            losses[-1].backward()
            for opt in opts:
                opt.step()
        results.append(losses)
    assert results[0][-1] < results[0][0]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


# Launches.


def kernels_of(name):
    rule = OPTIMIZERS[name].rule.name
    parts = ("_reduce", "_decide", "_apply") if name in PROJECTED else ("",)
    return {f"{rule}{part}": 1 for part in parts}


@pytest.mark.parametrize("count", [1, 10, 1000])
@every_optimizer
def test_a_step_is_one_launch_whatever_the_number_of_tensors(name, count):
    dtypes = [torch.float32, torch.bfloat16, torch.float64, torch.complex64]
    params = [nn.Parameter(torch.ones(2, 1 + i % 5, dtype=dtypes[i % 4])) for i in range(count)]
    groups = [{"params": params[i::3], "lr": 0.1 * i} for i in range(min(count, 3))]
    opt = OPTIMIZERS[name](groups, backend="native")
    for param in params:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        with count_launches() as launches:
            opt.step()
        assert dict(launches) == kernels_of(name)
        assert launches.total == len(kernels_of(name)) <= (3 if name in PROJECTED else 1)
    assert all((p != 1).all() for p in groups[-1]["params"] if groups[-1]["lr"])


@every_optimizer
def test_the_reference_launches_nothing(name):
    params = make_params(SHAPES)
    with count_launches() as launches:
        run(OPTIMIZERS[name](params, backend="reference"), params, range(2))
    assert dict(launches) == {}
    assert launches.total == 0


def test_counters_nest_and_stop_at_the_end_of_their_block():
    params = make_params([(3,)])
    adamw, rsgdm = TanhSignAdamW(params), RSGDM(params)
    with count_launches() as outer:
        run(adamw, params, range(2))
        with count_launches() as inner:
            run([adamw, rsgdm], params, range(1))
            assert inner.total == 2
        run(adamw, params, range(1))
    run(adamw, params, range(1))
    assert dict(inner) == {"friction_adam": 1, "sgd": 1}
    assert dict(outer) == {"friction_adam": 4, "sgd": 1}
    assert outer.total == 5 and outer["friction_adam"] == 4 and len(outer) == 2
    assert "friction_adam" in repr(outer)


# Statistics of the friction.


NORMALIZED, PRODUCT = {"friction_input": "normalized"}, {}


def friction_by_hand(name, before, grad, beta3=1.0, norm=1.0):
    """S of two consecutive gradients."""
    kind = OPTIMIZERS[name].rule.friction
    before, grad = before.double(), grad.double()
    y = beta3 * (before - grad).abs() if kind == "diff" else beta3 * before * grad / norm
    return torch.tanh(y) + 1 if kind == "tanh" else torch.sigmoid(y)


def frictions_by_hand(name, grads, beta3, options):
    """S at the last step for each element, from the gradients of all steps."""
    v = torch.zeros_like(grads[0], dtype=torch.float64)
    for g in grads:
        v = 0.999 * v + 0.001 * g.double().square()
    norm = v / (1 - 0.999 ** len(grads)) + 1e-8 if options == NORMALIZED else 1.0
    return friction_by_hand(name, grads[-2], grads[-1], beta3, norm).flatten()


@both_backends
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(case_of(name, PRODUCT) for name in MEASURED),
        *(case_of(name, NORMALIZED) for name in FRICTION),
    ],
)
def test_friction_stats_are_those_of_s(name, options, backend):
    params = make_params([(40, 50), (7,), (2048,), ()])
    groups = [{"params": params[:2], "beta3": 0.5}, {"params": params[2:], "beta3": 2.0}]
    opt = OPTIMIZERS[name](groups, **options, backend=backend)
    saved = [[] for _ in params]
    for step in range(3):
        give_gradients(params, step)
        for grads, param in zip(saved, params, strict=True):
            grads.append(param.grad)
        found = friction_stats(opt)
        opt.step()
    for index, stats in enumerate(found):
        beta3 = groups[index]["beta3"]
        pair = saved[2 * index : 2 * index + 2]
        s = torch.cat([frictions_by_hand(name, grads, beta3, options) for grads in pair])
        assert stats.count == s.numel()
        assert stats.mean == pytest.approx(s.mean().item(), rel=1e-5)
        assert stats.std == pytest.approx(s.std(correction=0).item(), rel=1e-5)


@both_backends
@every_measured
def test_friction_stats_are_of_every_element_of_a_large_tensor(name, backend):
    params = make_params([(100_000,), (3, 4)])
    options = NORMALIZED if name in FRICTION else {}
    opt = OPTIMIZERS[name](params, **options, backend=backend)
    saved = [[], []]
    for step in range(2):
        give_gradients(params, step)
        for grads, param in zip(saved, params, strict=True):
            grads.append(param.grad)
        with count_launches() as launches:
            (stats,) = friction_stats(opt)
        assert launches.get("friction_stats", 0) == (1 if backend == "native" else 0)
        opt.step()
    s = torch.cat([frictions_by_hand(name, grads, 1.0, options) for grads in saved])
    assert stats.count == 100_012
    assert stats.mean == pytest.approx(s.mean().item(), rel=1e-5)
    assert stats.std == pytest.approx(s.std(correction=0).item(), rel=1e-5)


@both_backends
@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0.1},
        {"maximize": True},
        {"weight_decay": 10.0},
        {"state_dtype": "8bit"},
        {"state_dtype": "bf16"},
        {"max_grad_norm": 0.1, "skip_nonfinite": True, "maximize": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["DiffGrad", "SigSignGrad", "TanhSignAdamW", "SigSignAdamP"])
def test_friction_stats_are_of_the_gradient_that_is_applied(name, options, backend):
    """prev_grad holds it after the step, exactly where states are not kept in fewer bits."""
    shape = (30, 20)
    params = make_params([shape])
    opt = OPTIMIZERS[name](params, **options, backend=backend)
    for step in range(3):
        give_gradients(params, step)
        before = opt.state_dict()["state"].get(0, {}).get("prev_grad", torch.zeros(shape)).clone()
        (stats,) = friction_stats(opt)
        opt.step()
    applied = opt.state_dict()["state"][0]["prev_grad"]
    s = friction_by_hand(name, before, applied)
    tolerance = 1e-2 if "state_dtype" in options else 1e-5
    assert stats.mean == pytest.approx(s.mean().item(), rel=tolerance)
    # S is near its value without friction, where float32 has steps of 6e-8.
    assert stats.std == pytest.approx(s.std(correction=0).item(), rel=10 * tolerance, abs=1e-7)


@both_backends
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 0.5}], ids=str)
@every_measured
def test_friction_stats_change_nothing(name, options, backend):
    params, twins = make_params(SHAPES), make_params(SHAPES)
    opt = OPTIMIZERS[name](params, **options, backend=backend)
    twin = OPTIMIZERS[name](twins, **options, backend=backend)
    for step in range(3):
        for each in (params, twins):
            give_gradients(each, step)
        friction_stats(opt)
        opt.step()
        twin.step()
    assert_same_bits(params, twins)
    for param, other in zip(params, twins, strict=True):
        assert_same_bits(opt.state[param].values(), twin.state[other].values())


@both_backends
@every_friction
def test_friction_stats_of_a_group_without_gradient_are_nan(name, backend):
    params = make_params([(3,), (4,), (0,)])
    opt = OPTIMIZERS[name]([{"params": [p]} for p in params], backend=backend)
    give_gradients(params, 0)
    params[0].grad = None
    none, some, empty = friction_stats(opt)
    for stats in (none, empty):
        assert stats.count == 0
        assert stats.mean != stats.mean and stats.std != stats.std
    neutral = 1.0 if OPTIMIZERS[name].rule.friction == "tanh" else 0.5
    assert some == (neutral, 0.0, 4)


@both_backends
@every_measured
def test_friction_stats_of_a_step_that_will_be_skipped_are_of_nothing(name, backend):
    params = make_params([(300, 20)] * 3)
    opt = OPTIMIZERS[name](params, skip_nonfinite=True, backend=backend)
    give_gradients(params, 0)
    made = friction_stats(opt)[0].count
    opt.step()
    give_gradients(params, 1)
    params[2].grad[7, 7] = float("inf")
    (skipped,) = friction_stats(opt)
    assert skipped.count == 0 and skipped.mean != skipped.mean
    opt.step()
    give_gradients(params, 2)
    assert friction_stats(opt)[0].count == made > 0


@both_backends
def test_friction_stats_need_a_gradient_that_is_about_to_be_applied(backend):
    params = make_params(SHAPES)
    opt = TanhSignAdamW(params, backend=backend)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"between backward\(\) and step\(\)"):
            friction_stats(opt)
        give_gradients(params, 0)
        friction_stats(opt)
        opt.step()
    with pytest.raises(RuntimeError, match=r"step\(\) has applied these gradients already"):
        friction_stats(opt)
    for param in params:
        param.grad.add_(1.0)  # as backward() accumulates
    friction_stats(opt)
    opt.zero_grad()
    with pytest.raises(RuntimeError, match="there is no gradient"):
        friction_stats(opt)


@each_of([name for name in OPTIMIZERS if name not in MEASURED])
def test_friction_stats_refuse_an_optimizer_without_friction(name):
    params = make_params(SHAPES)
    opt = OPTIMIZERS[name](params)
    run(opt, params, range(1))
    with pytest.raises(TypeError, match=name):
        friction_stats(opt)


# What the package says about itself.


def test_module_prints_what_serves_here():
    printed = subprocess.run(
        [sys.executable, "-m", "friction_kernels"],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert printed.returncode == 0, printed.stderr
    lines = dict(line.split("  ", 1) for line in printed.stdout.splitlines())
    lines = {key: value.strip() for key, value in lines.items()}
    assert lines["friction_kernels"] == friction_kernels.__version__
    assert lines["torch"] == torch.__version__
    assert lines["backend reference"].startswith("active")
    assert lines["backend native, CPU"] == "active"
    assert lines["backend native, CUDA"].startswith(("active", "inactive: "))
    assert lines["instruction set"].split()[0] in ("baseline", "avx2", "avx512")
    assert int(lines["threads"].split(",")[0]) >= 1
    assert lines["CUDA architectures"]
    assert list(lines) == list(describe())


# Threads.

LARGE = [(300, 700), (40_000,), (123, 457)]


@every_optimizer
def test_number_of_threads_does_not_change_a_bit(name):
    results, stats = [], []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        params = make_params(LARGE)
        opt = OPTIMIZERS[name](params, backend="native")
        run(opt, params, range(2))
        results.append([*params, *(v for s in opt.state.values() for v in s.values())])
        give_gradients(params, 2)
        stats.append(friction_stats(opt) if name in MEASURED else None)
    assert_same_bits(*results)
    assert stats[0] == stats[1]


def test_step_runs_without_the_gil_and_a_second_one_meanwhile_is_refused():
    # Two threads can only meet within step() if the first has let go of the interpreter there.
    params, twins = make_params([(1_000_000,)]), make_params([(1_000_000,)])
    for param in (*params, *twins):
        param.grad = torch.full_like(param, 0.5)
    opt, twin = TanhSignAdamW(params, backend="native"), TanhSignAdamW(twins, backend="native")
    opt.step()
    steps, refusals, deadline = [1], [], time.monotonic() + 20

    def keep_stepping():
        while not refusals and time.monotonic() < deadline:
            try:
                opt.step()
                steps.append(1)
            except RuntimeError as error:
                refusals.append(str(error))

    workers = [threading.Thread(target=keep_stepping) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert refusals and all("already running" in refusal for refusal in refusals)
    for _ in steps:
        twin.step()
    assert_same_bits(params, twins)
    assert opt.state[params[0]]["step"] == len(steps)
    opt.step()


@every_optimizer
def test_optimizers_may_step_in_threads_of_their_own(name):
    threaded, alone = ([make_params([(300, 100)]) for _ in range(2)] for _ in range(2))
    for params in (*threaded, *alone):
        give_gradients(params, 0)

    def steps(params):
        opt = OPTIMIZERS[name](params, backend="native")
        for _ in range(10):
            opt.step()

    workers = [threading.Thread(target=steps, args=(params,)) for params in threaded]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for params, twins in zip(threaded, alone, strict=True):
        steps(twins)
        assert_same_bits(params, twins)
