"""The state: what there is, when it begins, and how it is saved and loaded."""

import copy
import io

import pytest
import torch
from optimizer_cases import (
    ADAMS,
    FRICTION,
    MEASURED,
    assert_same_bits,
    assert_same_states,
    both_backends,
    copies,
    each_of,
    every_optimizer,
    moment_of,
    noise,
    run,
)
from torch import nn

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW, SigSignGrad, TanhSignAdamW

SHAPES = [(3, 4), (5,), (2, 3, 2), ()]


def make_params(dtype=torch.float32):
    return [nn.Parameter(noise(shape, index, dtype)) for index, shape in enumerate(SHAPES)]


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# What there is.


@both_backends
@each_of(ADAMS)
def test_state_is_step_and_two_moments_and_with_friction_the_gradient(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    run(opt, params, range(3))
    for param in params:
        state = opt.state[param]
        measured = {"prev_grad"} if name in MEASURED else set()
        assert set(state) == {"step", "exp_avg", "exp_avg_sq"} | measured
        assert isinstance(state["step"], torch.Tensor) and state["step"] == 3
        assert state["step"].shape == () and state["step"].dtype == torch.float32
        assert all(state[key].shape == param.shape for key in state if key != "step")
        assert not measured or torch.equal(state["prev_grad"], param.grad)
        assert (state["exp_avg_sq"] > 0).all() and (state["exp_avg"] != 0).all()


@both_backends
@each_of([name for name in OPTIMIZERS if name not in ADAMS])
def test_state_of_momentum_is_step_and_one_buffer(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    run(opt, params, range(3))
    assert all(set(opt.state[p]) == {"step", "momentum_buffer"} for p in params)
    assert all(opt.state[p]["step"] == 3 for p in params)
    assert all((opt.state[p]["momentum_buffer"] != 0).all() for p in params)


@both_backends
@every_optimizer
def test_state_begins_with_the_first_gradient(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    assert len(opt.state) == 0 and opt.state_dict()["state"] == {}
    params[1].grad = torch.ones(5)
    opt.step()
    assert list(opt.state) == [params[1]] and list(opt.state_dict()["state"]) == [1]
    run(opt, params, range(1))
    assert set(opt.state) == set(params)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@every_optimizer
def test_moments_are_kept_in_float32_at_least(name, dtype, backend):
    params = make_params(dtype)
    opt = OPTIMIZERS[name](params, backend=backend)
    run(opt, params, range(2))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for param in params:
        for key in set(opt.state[param]) - {"step", "prev_grad"}:
            assert opt.state[param][key].dtype == wide
        if name in MEASURED:
            assert opt.state[param]["prev_grad"].dtype == dtype


# Saving and loading.


@both_backends
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@every_optimizer
def test_saved_and_loaded_state_goes_on_to_the_same_bits(name, dtype, backend):
    params = make_params(dtype)
    groups = [{"params": params[:2], "lr": 0.03}, {"params": params[2:], "weight_decay": 0.2}]
    opt = OPTIMIZERS[name](groups, backend=backend)
    run(opt, params, range(3))
    saved = saved_and_loaded(opt.state_dict())

    loaded_params = copies(params)
    fresh_groups = [{"params": loaded_params[:2]}, {"params": loaded_params[2:]}]
    loaded = OPTIMIZERS[name](fresh_groups, backend=backend)
    loaded.load_state_dict(saved)
    assert_same_states(opt, params, loaded, loaded_params)
    for group, loaded_group in zip(opt.param_groups, loaded.param_groups, strict=True):
        for option in opt.defaults:
            assert loaded_group[option] == group[option]
    run(opt, params, range(3, 6))
    run(loaded, loaded_params, range(3, 6))
    assert_same_bits(params, loaded_params)


@both_backends
@every_optimizer
def test_state_loaded_between_steps_replaces_the_one_there(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    run(opt, params, range(2))
    saved, values = copy.deepcopy(opt.state_dict()), copies(params)
    run(opt, params, range(2, 4))
    after = copies(params)
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            param.copy_(value)
    opt.load_state_dict(saved)
    run(opt, params, range(2, 4))
    assert_same_bits(params, after)


@both_backends
@every_optimizer
def test_parameters_without_state_in_what_is_loaded_start_anew(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    params[0].grad = torch.ones(3, 4)
    opt.step()
    loaded_params = copies(params)
    loaded = OPTIMIZERS[name](loaded_params, backend=backend)
    loaded.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert list(loaded.state) == [loaded_params[0]]
    run(opt, params, range(3))
    run(loaded, loaded_params, range(3))
    assert_same_bits(params, loaded_params)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)], ids=str
)
@pytest.mark.parametrize(
    ("first", "second"), [("native", "reference"), ("reference", "native")], ids=str
)
@every_optimizer
def test_each_backend_goes_on_from_the_state_of_the_other(name, first, second, dtype, tolerance):
    params = make_params(dtype)
    opt = OPTIMIZERS[name](params, backend=first)
    run(opt, params, range(3))
    other_params = copies(params)
    other = OPTIMIZERS[name](other_params)
    other.load_state_dict(saved_and_loaded(opt.state_dict()))
    other.param_groups[0]["backend"] = second
    run(opt, params, range(3, 8))
    run(other, other_params, range(3, 8))
    torch.testing.assert_close(other_params, params, rtol=tolerance, atol=tolerance / 10)
    # And back again.
    third_params = copies(other_params)
    third = OPTIMIZERS[name](third_params)
    third.load_state_dict(saved_and_loaded(other.state_dict()))
    third.param_groups[0]["backend"] = first
    run(opt, params, range(8, 12))
    run(third, third_params, range(8, 12))
    torch.testing.assert_close(third_params, params, rtol=tolerance, atol=tolerance / 10)


@both_backends
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_optimizer
def test_loading_keeps_float32_moments_of_low_precision_parameters_to_the_bit(name, dtype, backend):
    params = make_params(dtype)
    options = {} if name in ADAMS else {"momentum": 0.9}  # without, SGD's buffer is the gradient
    opt = OPTIMIZERS[name](params, backend=backend, **options)
    run(opt, params, range(3))
    loaded_params = copies(params)
    loaded = OPTIMIZERS[name](loaded_params, backend=backend)
    loaded.load_state_dict(saved_and_loaded(opt.state_dict()))
    assert_same_states(opt, params, loaded, loaded_params)
    moment = moment_of(name)
    kept = loaded.state[loaded_params[0]][moment]
    assert not torch.equal(kept, kept.to(dtype).float())  # there is something to lose


@both_backends
@every_optimizer
def test_state_of_float32_loads_into_a_low_precision_model(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    run(opt, params, range(3))
    narrow = [nn.Parameter(p.detach().bfloat16()) for p in params]
    loaded = OPTIMIZERS[name](narrow, backend=backend)
    loaded.load_state_dict(saved_and_loaded(opt.state_dict()))
    loaded.param_groups[0]["lr"] = 0.1
    moment = moment_of(name)
    for param, narrow_param in zip(params, narrow, strict=True):
        assert torch.equal(opt.state[param][moment], loaded.state[narrow_param][moment])
    before = copies(narrow)
    run(loaded, narrow, range(3, 4))
    assert not any(map(torch.equal, narrow, before))


@both_backends
@every_optimizer
def test_hooks_on_saving_and_loading_are_called_and_may_change_the_state(name, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    run(opt, params, range(2))
    calls = []

    def before_loading(_, state_dict):
        calls.append("before loading")
        state_dict = copy.deepcopy(state_dict)
        for state in state_dict["state"].values():
            for value in state.values():
                value.mul_(2)
        return state_dict

    opt.register_state_dict_pre_hook(lambda _: calls.append("before saving"))
    opt.register_state_dict_post_hook(lambda _, saved: calls.append("after saving"))
    opt.register_load_state_dict_pre_hook(before_loading)
    opt.register_load_state_dict_post_hook(lambda _: calls.append("after loading"))
    saved = copy.deepcopy(opt.state_dict())
    opt.load_state_dict(saved)
    assert calls == ["before saving", "after saving", "before loading", "after loading"]
    for index, param in enumerate(params):
        for key, value in saved["state"][index].items():
            assert torch.equal(opt.state[param][key], 2 * value)


# The states of other optimizers.


def adamw_steps(steps=3, dtype=torch.float32, **options):
    params = make_params(dtype)
    adamw = torch.optim.AdamW(params, lr=0.02, betas=(0.8, 0.99), weight_decay=0.1, **options)
    run(adamw, params, range(steps))
    return params, adamw


def with_python_steps(state_dict):
    for state in state_dict["state"].values():
        state["step"] = state["step"].item()
    return state_dict


ADAMW_STATES = {
    "single tensor": lambda: adamw_steps(foreach=False),
    "foreach": lambda: adamw_steps(foreach=True),
    "fused": lambda: adamw_steps(fused=True),
}


@both_backends
@pytest.mark.parametrize("as_number", [False, True], ids=["tensor step", "Python step"])
@pytest.mark.parametrize("kind", ADAMW_STATES)
def test_state_of_adamw_goes_on_as_adamw_would(kind, as_number, backend):
    params, adamw = ADAMW_STATES[kind]()
    saved = saved_and_loaded(adamw.state_dict())
    if as_number:
        saved = with_python_steps(saved)
    ours = copies(params)
    opt = TanhSignAdamW(ours, beta3=0, backend=backend)
    opt.load_state_dict(saved)
    run(adamw, params, range(3, 8))
    run(opt, ours, range(3, 8))
    torch.testing.assert_close(ours, params, rtol=1e-6, atol=1e-7)
    assert all(opt.state[p]["step"] == 8 for p in ours)


@pytest.mark.parametrize("kind", ADAMW_STATES)
@each_of([name for name in MEASURED if OPTIMIZERS[name].rule.decoupled])
def test_state_of_adamw_is_taken_over_and_the_friction_starts_at_rest(name, kind):
    params, adamw = ADAMW_STATES[kind]()
    ours = copies(params)
    own = {"beta3": 0.25, "backend": "native"}
    if name in FRICTION:
        own["friction_input"] = "normalized"
    opt = OPTIMIZERS[name](ours, **own)
    opt.load_state_dict(saved_and_loaded(adamw.state_dict()))
    for param, our in zip(params, ours, strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(opt.state[our][key], adamw.state[param][key])
        assert opt.state[our]["prev_grad"].shape == our.shape
        assert not opt.state[our]["prev_grad"].any()
    (group,) = opt.param_groups
    theirs = {"lr": 0.02, "betas": (0.8, 0.99), "weight_decay": 0.1, "eps": 1e-8}
    assert {**theirs, **own}.items() <= group.items()


def test_options_a_loaded_group_does_not_have_stay_those_of_that_group():
    params = make_params()
    ours = copies(params)
    groups = [{"params": ours[:2], "beta3": 0.5}, {"params": ours[2:], "backend": "reference"}]
    opt = TanhSignAdamW(groups, beta3=2.0)
    saved = torch.optim.AdamW([{"params": params[:2]}, {"params": params[2:]}]).state_dict()
    opt.load_state_dict(saved)
    assert [group["beta3"] for group in opt.param_groups] == [0.5, 2.0]
    assert [group["backend"] for group in opt.param_groups] == ["auto", "reference"]


@both_backends
def test_state_of_adam_loads_into_the_coupled_optimizer(backend):
    params = make_params(torch.float64)
    adam = torch.optim.Adam(params, weight_decay=0.1)
    run(adam, params, range(3))
    ours = copies(params)
    opt = OPTIMIZERS["TanhSignGrad"](ours, beta3=0, backend=backend)
    opt.load_state_dict(saved_and_loaded(adam.state_dict()))
    run(adam, params, range(3, 6))
    run(opt, ours, range(3, 6))
    torch.testing.assert_close(ours, params, rtol=1e-12, atol=1e-13)


def of_sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9)


def of_damped_sgd(params):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, dampening=0.1)


def with_decay(cls):
    return lambda params: cls(params, weight_decay=0.1)


FOREIGN = {
    "Adamax into SigSignAdamW": (torch.optim.Adamax, SigSignAdamW),
    "RAdam into SigSignGrad": (torch.optim.RAdam, SigSignGrad),
    "NAdam into SigSignGrad": (torch.optim.NAdam, SigSignGrad),
    "RMSprop with momentum into RSGDM": (
        lambda params: torch.optim.RMSprop(params, momentum=0.9),
        RSGDM,
    ),
    "AdamW into SigSignGrad": (torch.optim.AdamW, SigSignGrad),
    "Adam with decay into SigSignAdamW": (with_decay(torch.optim.Adam), SigSignAdamW),
    "SigSignGrad with decay into SigSignAdamW": (with_decay(SigSignGrad), SigSignAdamW),
    "SigSignAdamW into TanhSignAdamW": (SigSignAdamW, TanhSignAdamW),
    "TanhSignAdamW into TanhSignAdamP": (TanhSignAdamW, OPTIMIZERS["TanhSignAdamP"]),
    "TanhSignAdamP into TanhSignAdamW": (OPTIMIZERS["TanhSignAdamP"], TanhSignAdamW),
    "SGD with dampening into RSGDM": (of_damped_sgd, RSGDM),
    "SGD without momentum into RSGDM": (torch.optim.SGD, RSGDM),
    "AdamW into RSGDM": (torch.optim.AdamW, RSGDM),
    "SigSignAdamW into RSGDM": (SigSignAdamW, RSGDM),
    "RSGDM into SigSignAdamW": (RSGDM, SigSignAdamW),
    "SGD into SigSignGrad": (of_sgd, SigSignGrad),
    "Adagrad into SigSignGrad": (torch.optim.Adagrad, SigSignGrad),
}


@both_backends
@pytest.mark.parametrize("warm", [0, 2], ids=["before the first step", "after two steps"])
@pytest.mark.parametrize("case", FOREIGN)
def test_state_of_another_kind_is_refused_and_nothing_changed(case, warm, backend):
    source, target = FOREIGN[case]
    source_params = make_params()
    foreign = source(source_params)
    run(foreign, source_params, range(2))
    params, twins = make_params(), make_params()
    opt, twin_opt = (
        target(params, lr=0.07, backend=backend),
        target(twins, lr=0.07, backend=backend),
    )
    run(opt, params, range(warm))
    run(twin_opt, twins, range(warm))

    groups = copy.deepcopy(opt.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=f"state_dict is (not one of {target.__name__}|one of)"):
        opt.load_state_dict(foreign.state_dict())
    assert opt.state_dict()["param_groups"] == groups
    assert len(opt.state) == (len(params) if warm else 0)
    run(opt, params, range(warm, warm + 2))
    run(twin_opt, twins, range(warm, warm + 2))
    assert_same_bits(params, twins)
    assert_same_states(opt, params, twin_opt, twins)


@every_optimizer
def test_state_of_a_model_with_other_parameters_is_refused_and_nothing_changed(name):
    params, others = make_params(), make_params()[:2]
    opt, other = OPTIMIZERS[name](params), OPTIMIZERS[name](others)
    run(opt, params, range(2))
    run(other, others, range(2))
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        opt.load_state_dict(other.state_dict())
    after = opt.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for index, state in before["state"].items():
        assert_same_bits(state.values(), after["state"][index].values())
    run(opt, params, range(2, 3))


WAYS = (
    {"backend": "reference", "capturable": True, "master": "split", "state_dtype": "bf16"},
    {"backend": "native", "rounding": "stochastic"},
)


@pytest.mark.parametrize(("theirs", "ours"), [WAYS, WAYS[::-1]], ids=["first", "second"])
@every_optimizer
def test_how_a_step_is_computed_and_kept_is_not_loaded(name, theirs, ours):
    params = make_params(torch.bfloat16)
    saved = OPTIMIZERS[name](copies(params), **theirs)
    run(saved, saved.param_groups[0]["params"], range(2))
    opt = OPTIMIZERS[name](params, **ours)
    [before] = opt.state_dict()["param_groups"]
    opt.load_state_dict(saved_and_loaded(saved.state_dict()))
    assert opt.state_dict()["param_groups"] == [before]
    run(opt, params, [2])


@every_optimizer
def test_capturable_changes_nothing_on_the_processor(name):
    params, plain = make_params(), make_params()
    opt = OPTIMIZERS[name](params, lr=torch.tensor(1e-2), capturable=True, backend="native")
    other = OPTIMIZERS[name](plain, lr=torch.tensor(1e-2), backend="native")
    run(opt, params, range(3))
    run(other, plain, range(3))
    assert_same_bits(params, plain)


def test_amsgrad_state_is_refused_until_its_maximum_is_given_up():
    params = make_params()
    theirs = torch.optim.AdamW(copies(params), amsgrad=True)
    run(theirs, theirs.param_groups[0]["params"], range(2))
    opt = SigSignAdamW(params)
    saved = theirs.state_dict()
    with pytest.raises(ValueError, match="amsgrad=False in its param_groups"):
        opt.load_state_dict(saved)
    assert not opt.state
    saved["param_groups"][0]["amsgrad"] = False
    opt.load_state_dict(saved)
    assert all(set(opt.state[p]) == {"step", "exp_avg", "exp_avg_sq", "prev_grad"} for p in params)


@pytest.mark.parametrize("kind", ADAMW_STATES)
def test_how_torch_computes_is_no_option_here(kind):
    _, adamw = ADAMW_STATES[kind]()
    opt = TanhSignAdamW(make_params())
    options = set(opt.param_groups[0])
    opt.load_state_dict(adamw.state_dict())
    assert set(opt.param_groups[0]) == options


def test_decay_that_torch_coupled_stays_so():
    params = make_params()
    sgd = torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True)
    run(sgd, params, range(2))
    ours = copies(params)
    opt = RSGDM(ours, decoupled_weight_decay=True)
    opt.load_state_dict(saved_and_loaded(sgd.state_dict()))
    run(sgd, params, range(2, 5))
    run(opt, ours, range(2, 5))
    torch.testing.assert_close(ours, params, rtol=1e-5, atol=1e-6)


def test_a_class_goes_on_from_another_where_its_groups_do_not_say_which():
    """As the error proposes."""
    params = make_params()
    saved = SigSignAdamW(params)
    run(saved, params, range(2))
    opt = TanhSignAdamW(copies(params))
    state_dict = saved.state_dict()
    with pytest.raises(ValueError, match=r"has friction='sigmoid' .* or delete 'friction'"):
        opt.load_state_dict(state_dict)
    del state_dict["param_groups"][0]["friction"]
    opt.load_state_dict(state_dict)
    assert_same_states(saved, params, opt, opt.param_groups[0]["params"])


@both_backends
def test_what_users_keep_in_a_state_is_saved_and_loaded(backend):
    params = make_params()
    opt = SigSignAdamW(params, backend=backend)
    run(opt, params, range(2))
    for param in params:
        opt.state[param]["average"] = param.detach().clone()
    loaded = SigSignAdamW(copies(params), backend=backend)
    loaded.load_state_dict(saved_and_loaded(opt.state_dict()))
    assert_same_states(opt, params, loaded, loaded.param_groups[0]["params"])
