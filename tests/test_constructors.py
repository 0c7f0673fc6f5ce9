"""What constructors and groups accept of a call that was written for torch's optimizers, and what not."""

import inspect
import pickle

import pytest
import torch
from optimizer_cases import FRICTION, every_optimizer
from torch import nn

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW, TanhSignAdamP
from friction_kernels.integrations.torchtitan import ParamGroupConfig, build_optimizers


def make_params():
    return [nn.Parameter(torch.linspace(-1, 1, 5)), nn.Parameter(torch.ones(2, 3))]


def positional(cls):
    return [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    ]


@pytest.mark.parametrize("name", FRICTION)
def test_positional_arguments_are_adamws(name):
    assert positional(OPTIMIZERS[name]) == ["params", "lr", "betas", "eps", "weight_decay"]
    given = (0.5, (0.1, 0.2), 1e-3, 0.25)
    ours, adamw = OPTIMIZERS[name](make_params(), *given), torch.optim.AdamW(make_params(), *given)
    for option in ("lr", "betas", "eps", "weight_decay"):
        assert ours.param_groups[0][option] == adamw.param_groups[0][option]
    with pytest.raises(TypeError, match="positional arguments"):  # AdamW has amsgrad there
        OPTIMIZERS[name](make_params(), *given, False)


def test_positional_arguments_are_sgds():
    assert positional(RSGDM) == ["params", "lr", "momentum"]
    ours, sgd = RSGDM(make_params(), 0.5, 0.25), torch.optim.SGD(make_params(), 0.5, 0.25)
    for option in ("lr", "momentum"):
        assert ours.param_groups[0][option] == sgd.param_groups[0][option]
    with pytest.raises(TypeError, match="positional arguments"):  # SGD has dampening there
        RSGDM(make_params(), 0.5, 0.25, 0.1)


@every_optimizer
def test_errors_of_a_call_name_the_class_that_was_called(name):
    cls = OPTIMIZERS[name]
    for arguments, options in (((), {"foreach": True}), ((1,) * 9, {})):
        with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\)"):
            cls(make_params(), *arguments, **options)
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) missing .*'params'"):
        cls()


def test_a_users_class_may_have_a_constructor_of_its_own():
    class Mine(TanhSignAdamP):
        def __init__(self, params, rate):
            super().__init__(params, lr=rate)

    class Plain(SigSignAdamW):
        pass

    assert Mine(make_params(), 0.5).param_groups[0]["lr"] == 0.5
    assert inspect.signature(Plain) == inspect.signature(SigSignAdamW)
    with pytest.raises(TypeError, match=r"Mine\.__init__\(\)"):
        Mine(make_params(), lr=0.5)


def test_constructors_of_classes_that_share_a_signature_are_documented_and_pickled_alike():
    assert SigSignAdamW.__init__.__qualname__ == "SigSignAdamW.__init__"
    assert inspect.signature(SigSignAdamW) == inspect.signature(OPTIMIZERS["TanhSignAdamW"])
    assert SigSignAdamW.__init__.__annotations__["friction_input"] == "FrictionInput"
    assert pickle.loads(pickle.dumps(SigSignAdamW.__init__)) is SigSignAdamW.__init__


# Groups.

ASKS_FOR_MORE = {
    "foreach": True,
    "fused": True,
    "differentiable": True,
    "amsgrad": True,
    "dampening": 0.5,
}


@pytest.mark.parametrize("option", ASKS_FOR_MORE)
@every_optimizer
def test_option_of_torchs_that_a_group_asks_for_is_refused_by_name(name, option):
    group = {"params": make_params(), option: ASKS_FOR_MORE[option]}
    says = (
        rf"group 0 has {option}={ASKS_FOR_MORE[option]}, which {name} does not have; leave it out"
    )
    with pytest.raises(TypeError, match=says):
        OPTIMIZERS[name]([group])
    opt = OPTIMIZERS[name](make_params())
    with pytest.raises(TypeError, match=says.replace("group 0", "group 1")):
        opt.add_param_group({**group, "params": make_params()})
    assert len(opt.param_groups) == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SigSignAdamW", {"decoupled_weight_decay": False}),
        ("SigSignGrad", {"decoupled_weight_decay": True}),
        ("SigSignAdamW", {"friction": "tanh"}),
        ("SigSignAdamW", {"nesterov": True}),
        ("RSGDM", {"nesterov": True}),
        ("RSGDM", {"fused": [True]}),
    ],
)
def test_what_a_class_does_in_any_case_cannot_be_otherwise_in_a_group(name, options):
    (option,) = options
    with pytest.raises(TypeError, match=f"group 0 has {option}=.*, which {name} does not have"):
        OPTIMIZERS[name]([{"params": make_params(), **options}])


@pytest.mark.parametrize(
    ("name", "torchs"),
    [
        ("SigSignAdamW", lambda params: torch.optim.AdamW(params, 0.25)),
        ("SigSignGrad", lambda params: torch.optim.Adam(params, 0.25)),
        ("RSGDM", lambda params: torch.optim.SGD(params, 0.25, 0.5)),
    ],
)
def test_groups_of_torchs_optimizer_are_taken_where_they_ask_for_no_more(name, torchs):
    theirs = torchs(make_params())
    opt = OPTIMIZERS[name](theirs.param_groups)
    assert opt.param_groups[0]["lr"] == 0.25
    assert opt.param_groups[0].keys() == {"params", *opt.defaults}
    for param in opt.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    opt.step()
    theirs.step()  # whose groups are as they were
    opt.load_state_dict(opt.state_dict())  # and not taken for one of theirs
    assert opt.param_groups[0]["lr"] == 0.25


@every_optimizer
def test_a_groups_keys_of_the_users_own_are_kept(name):
    group = {"params": make_params(), "name": "head", "lr_scale": 0.5}
    opt = OPTIMIZERS[name]([group])
    assert opt.param_groups[0] is group
    assert (opt.param_groups[0]["name"], opt.param_groups[0]["lr_scale"]) == ("head", 0.5)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {}], ids=str)
def test_how_torch_computed_does_not_keep_its_state_from_loading(options):
    params = make_params()
    theirs = torch.optim.AdamW(params, lr=0.25, **options)
    for param in params:
        param.grad = torch.ones_like(param)
    theirs.step()
    ours = SigSignAdamW(params)
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == 0.25
    assert ours.param_groups[0].keys() == {"params", *ours.defaults}
    ours.step()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learning_rate": 1.0}, "RSGDM has no option 'learning_rate'.* the pattern 'weight'"),
        ({"params": []}, "RSGDM has no option 'params'"),
        ({"fused": True}, "fused=True"),
    ],
)
def test_torchtitans_groups_have_options_of_their_optimizer(options, says):
    groups = [ParamGroupConfig("weight", "RSGDM", options), ParamGroupConfig(".*", "RSGDM")]
    with pytest.raises(TypeError, match=says):
        build_optimizers([nn.Linear(3, 2)], groups)
