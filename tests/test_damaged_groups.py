"""Groups and states that somebody damaged: an error names what is wrong, and nothing has changed."""

from collections import OrderedDict, UserDict, defaultdict, deque
from types import MappingProxyType

import pytest
import torch
from test_errors import both_backends, make_params, noise, refused, run, warm_or_not
from torch import nn
from torch._subclasses import FakeTensorMode

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW, release_gradients

some_optimizers = pytest.mark.parametrize("name", ["TanhSignAdamP", "AdamW", "RSGDM", "SGD"])


def give_gradients(opt):
    for group in opt.param_groups:
        for param in group["params"]:
            param.grad = noise(param.shape, 77)


@both_backends
@warm_or_not
@some_optimizers
def test_group_that_lost_a_key_is_named(name, warm, backend):
    opt = OPTIMIZERS[name]([{"params": [param]} for param in make_params()], backend=backend)
    run(opt, warm)
    give_gradients(opt)
    group = opt.param_groups[1]
    for key in list(opt.defaults):
        kept = group.pop(key)
        with refused(opt, ValueError, f"group 1 of param_groups has no '{key}'; put it back"):
            opt.step()
        group[key] = kept
    params = group.pop("params")
    with pytest.raises(ValueError, match="group 1 of param_groups has no 'params'"):
        opt.step()
    group["params"] = params
    opt.step()


@both_backends
@warm_or_not
def test_group_appended_by_hand_needs_every_option(warm, backend):
    opt = SigSignAdamW(make_params(), backend=backend)
    run(opt, warm)
    opt.param_groups.append({"params": make_params()})
    give_gradients(opt)
    with refused(opt, ValueError, r"group 1 of param_groups has no '\w+'.*add_param_group\(\)"):
        opt.step()
    opt.param_groups[1] = {}
    with pytest.raises(ValueError, match="group 1 of param_groups has no 'params'"):
        opt.step()


@both_backends
@warm_or_not
@pytest.mark.parametrize("make", [UserDict, MappingProxyType, lambda group: None])
def test_group_that_is_no_dict_is_named(make, warm, backend):
    opt = SigSignAdamW(make_params(), backend=backend)
    run(opt, warm)
    give_gradients(opt)
    [group] = opt.param_groups
    opt.param_groups[0] = make(group)
    before = [param.detach().clone() for param in group["params"]]
    with pytest.raises(TypeError, match=r"group 0 of param_groups is of type .*, and no dict"):
        opt.step()
    assert all(map(torch.equal, group["params"], before))
    opt.param_groups[0] = OrderedDict(group)
    opt.step()


@both_backends
@warm_or_not
@pytest.mark.parametrize("kind", [tuple, deque])
def test_groups_in_no_list_are_named(kind, warm, backend):
    opt = SigSignAdamW(make_params(), backend=backend)
    run(opt, warm)
    give_gradients(opt)
    opt.param_groups = kind(opt.param_groups)
    with refused(opt, TypeError, f"param_groups is of type {kind.__name__}, and no list"):
        opt.step()
    opt.param_groups = list(opt.param_groups)
    opt.step()


@both_backends
@warm_or_not
@pytest.mark.parametrize("make", [UserDict, lambda state: None])
def test_states_in_no_dict_are_named(make, warm, backend):
    opt = SigSignAdamW(make_params(), backend=backend)
    run(opt, warm)
    give_gradients(opt)
    kept, params = opt.state, opt.param_groups[0]["params"]
    before = [param.detach().clone() for param in params]
    opt.state = make(kept)
    with pytest.raises(TypeError, match=r"the optimizer's state is of type .*, and no dict"):
        opt.step()
    assert all(map(torch.equal, params, before))
    opt.state = defaultdict(dict, kept)
    opt.step()


@both_backends
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("packed_shape", 7),
        ("packed_shape", None),
        ("packed_order", (5, 9)),
        ("packed_order", 7),
        ("packed_order", (0, 0)),
    ],
)
def test_notes_of_a_quantized_state_that_are_none_are_named(key, value, backend):
    param = nn.Parameter(noise((20, 30), 0))
    opt = SigSignAdamW([param], backend=backend, state_dtype="8bit")
    run(opt, 2)
    opt.state[param][key] = value
    says = rf"parameter 0 of group 0 .* as '{key}' in its state, and not a"
    with refused(opt, RuntimeError, says):
        opt.state_dict()
    opt.param_groups[0]["rounding"] = "stochastic"  # another plan, which looks at the notes
    with refused(opt, RuntimeError, says):
        opt.step()


@both_backends
@warm_or_not
def test_defaults_may_get_keys_that_groups_do_not_have(warm, backend):
    opt = RSGDM(make_params(), backend=backend)
    run(opt, warm)
    opt.defaults["scheduled"] = True
    run(opt, 1)


@both_backends
@warm_or_not
@some_optimizers
@pytest.mark.parametrize(
    ("params", "says"),
    [
        (None, "group 0 of param_groups has params=None, which is no list"),
        ("weights", "group 0 of param_groups has params='weights', which is no list"),
        ([None], "parameter 0 of group 0 is None, and no tensor"),
        ([1.5], "parameter 0 of group 0 is 1.5, and no tensor"),
    ],
    ids=str,
)
def test_group_whose_params_are_none_is_named(name, warm, backend, params, says):
    opt = OPTIMIZERS[name](make_params(), backend=backend)
    run(opt, warm)
    good = opt.param_groups[0]["params"]
    before = [param.detach().clone() for param in good]
    opt.param_groups[0]["params"] = params
    with pytest.raises(TypeError, match=says):
        opt.step()
    assert all(map(torch.equal, good, before))


def test_tensor_in_the_place_of_a_groups_params_is_named():
    opt = RSGDM(make_params())
    opt.param_groups[0]["params"] = opt.param_groups[0]["params"][0]
    with pytest.raises(TypeError, match="group 0 of param_groups has params=Parameter"):
        opt.step()


def test_new_group_without_params_is_named():
    opt = RSGDM(make_params())
    for group in ({}, {"params": None}, {"param": make_params()}):
        with refused(opt, TypeError, "group 1 has no 'params'"):
            opt.add_param_group(group)


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("backends", ["native native", "native reference", "reference native"])
def test_parameter_taken_out_of_a_group_is_stepped_no_more(backends, max_grad_norm):
    params = make_params()
    groups = [
        {"params": [param], "backend": backend}
        for param, backend in zip(params, backends.split(), strict=True)
    ]
    opt = RSGDM(groups, max_grad_norm=max_grad_norm)
    run(opt, 2)
    del opt.param_groups[1]["params"][0]
    before = params[1].detach().clone()
    run(opt, 2)
    assert torch.equal(params[1], before)
    opt.param_groups[1]["params"] = [params[1]]
    run(opt, 1)
    assert not torch.equal(params[1], before)


@both_backends
def test_released_parameters_group_that_lost_a_key_is_named(backend):
    model = nn.Linear(3, 2)
    opt = RSGDM(model.parameters(), backend=backend)
    release_gradients(model, opt)
    del opt.param_groups[0]["momentum"]
    before = model.weight.detach().clone()
    with pytest.raises(ValueError, match="group 0 of param_groups has no 'momentum'"):
        model(torch.ones(3)).sum().backward()
    assert torch.equal(model.weight, before)


def test_compiled_step_names_a_group_that_lost_a_key():
    opt = RSGDM(make_params())
    give_gradients(opt)
    compiled = torch.compile(opt.step, backend="eager")
    compiled()
    for key in ("momentum", "params"):
        kept = opt.param_groups[0].pop(key)
        with pytest.raises(ValueError, match=f"group 0 of param_groups has no '{key}'"):
            compiled()
        opt.param_groups[0][key] = kept
    compiled()


# States.


def sparse(value):
    return value.to_sparse()


def expanded(value):
    return torch.zeros((), dtype=value.dtype).expand(2, *value.shape)[0]


def on_meta(value):
    return value.to("meta")


def no_tensor(value):
    return 1.5


def fake(value):
    with FakeTensorMode() as mode:
        return mode.from_tensor(value)


DAMAGES = {
    sparse: "of layout torch.sparse_coo; make it dense",
    expanded: "whose elements share memory",
    on_meta: "on meta|type torch.float32, shape",
    no_tensor: "has state '.*' of type float, and not a tensor",
    fake: "that is a FakeTensor",
}


@both_backends
@some_optimizers
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_is_named(name, backend, damage):
    params = [nn.Parameter(noise((30, 30), seed).bfloat16()) for seed in range(2)]
    opt = OPTIMIZERS[name](params, backend=backend, master="fp32")
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        opt.step()
    state = opt.state[params[1]]
    before = [param.detach().clone() for param in params]
    for key in state:
        right = state[key]
        state[key] = damage(right)
        if key == "step" and damage is expanded:
            continue  # is one number as well
        with pytest.raises(RuntimeError, match=rf"parameter 1 of group 0 .*({DAMAGES[damage]})"):
            opt.step()
        state[key] = right
        assert all(map(torch.equal, params, before))
    opt.step()


@both_backends
@some_optimizers
@pytest.mark.parametrize("state", [None, 5, [], "state"], ids=repr)
def test_state_that_is_no_dict_is_named(name, backend, state):
    opt = OPTIMIZERS[name](make_params(), backend=backend)
    run(opt, 2)
    opt.state[opt.param_groups[0]["params"][1]] = state
    with pytest.raises(
        RuntimeError, match=r"parameter 1 of group 0 .*for its state, and not a dict"
    ):
        opt.step()


@both_backends
@pytest.mark.parametrize(("key", "value"), [("step", 2), ("exp_avg", [0.0]), ("exp_avg", None)])
def test_state_of_another_type_is_named(key, value, backend):
    opt = SigSignAdamW(make_params(), backend=backend)
    run(opt, 2)
    opt.state[opt.param_groups[0]["params"][1]][key] = value
    kind = type(value).__name__
    for use in (opt.step, opt.state_dict):
        with refused(opt, RuntimeError, f"parameter 1 .* state '{key}' of type {kind}, and not a"):
            use()
    del opt.state[opt.param_groups[0]["params"][1]][key]
    with refused(opt, RuntimeError, f"parameter 1 of group 0 .* has no state '{key}'"):
        opt.step()


# FakeTensorMode.


@both_backends
@warm_or_not
@some_optimizers
def test_a_step_under_fake_tensor_mode_is_refused(name, warm, backend):
    opt = OPTIMIZERS[name](make_params(), backend=backend)
    run(opt, warm)
    give_gradients(opt)
    with refused(opt, RuntimeError, r"step\(\) cannot run under FakeTensorMode"), FakeTensorMode():
        opt.step()
    opt.step()


@some_optimizers
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_fake_parameters_are_named(name, backend):
    with FakeTensorMode():
        param = nn.Parameter(torch.ones(3))
        param.grad = torch.ones(3)
        opt = OPTIMIZERS[name]([("fake", param)], backend=backend)
        with pytest.raises(RuntimeError, match="cannot run under FakeTensorMode"):
            opt.step()
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 .'fake'.* is a FakeTensor"):
        opt.step()
    assert not opt.state


def test_an_optimizer_pickled_before_it_knew_its_options_steps_on():
    opt = RSGDM(make_params())
    run(opt, 1)
    state = opt.__getstate__()
    again = RSGDM.__new__(RSGDM)
    again.__setstate__({key: value for key, value in state.items() if key != "_options"})
    run(again, 1)
