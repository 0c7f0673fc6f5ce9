"""What constructors and groups accept of a call that was written for torch's optimizers, and what not."""

import inspect
import pickle

import adamp
import pytest
import torch
from optimizer_cases import (
    case_of,
    each_of,
    every_measured,
    every_optimizer,
)
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


@every_measured
def test_positional_arguments_are_adamws(name):
    assert positional(OPTIMIZERS[name]) == ["params", "lr", "betas", "eps", "weight_decay"]
    given = (0.5, (0.1, 0.2), 1e-3, 0.25)
    ours, adamw = OPTIMIZERS[name](make_params(), *given), torch.optim.AdamW(make_params(), *given)
    for option in ("lr", "betas", "eps", "weight_decay"):
        assert ours.param_groups[0][option] == adamw.param_groups[0][option]
    with pytest.raises(TypeError, match="positional arguments"):  # AdamW has amsgrad there
        OPTIMIZERS[name](make_params(), *given, False)


TORCHS = {
    "Adam": (torch.optim.Adam, (0.5, (0.1, 0.2), 1e-3, 0.25, False)),
    "AdamW": (torch.optim.AdamW, (0.5, (0.1, 0.2), 1e-3, 0.25, False)),
    "SGD": (torch.optim.SGD, (0.5, 0.25, 0, 0.125, True)),
    "AdamP": (adamp.AdamP, (0.5, (0.1, 0.2), 1e-3, 0.25, 0.3, 0.4, True)),
}


@each_of(TORCHS)
def test_arguments_are_those_of_the_class_of_this_name(name):
    theirs, given = TORCHS[name]
    order = list(inspect.signature(theirs).parameters)[: len(given) + 1]
    assert positional(OPTIMIZERS[name]) == order
    ours, other = OPTIMIZERS[name](make_params(), *given), theirs(make_params(), *given)
    [group], [other_group] = ours.param_groups, other.param_groups
    taken = set(order) & ours.defaults.keys()
    assert {key: group[key] for key in taken} == {key: other_group[key] for key in taken}
    defaults = theirs(make_params()).defaults
    for option, default in OPTIMIZERS[name](make_params()).defaults.items():
        assert default == defaults.get(option, default), option


def torchs_options(name):
    return [key for key in inspect.signature(OPTIMIZERS[name]).parameters if key in NO_MORE]


def test_adams_decoupled_decay_is_adamws():
    with pytest.raises(TypeError, match=r"decoupled_weight_decay only as False.* or take AdamW$"):
        OPTIMIZERS["Adam"](make_params(), decoupled_weight_decay=True)


# Options of torch's constructors, with what asks for nothing and with what does.
NO_MORE = {
    "foreach": ([None, False], [True, "yes"]),
    "fused": ([None, False], [True]),
    "differentiable": ([False], [True, None]),
    "amsgrad": ([False], [True, None]),
    "decoupled_weight_decay": ([False], [True, None]),
}


@pytest.mark.parametrize(
    ("name", "option"), [case_of(name, key) for name in TORCHS for key in torchs_options(name)]
)
def test_option_of_torchs_is_taken_where_it_asks_for_nothing(name, option):
    fine, refused = NO_MORE[option]
    for value in fine:
        opt = OPTIMIZERS[name](make_params(), **{option: value})
        assert option not in opt.defaults and option not in opt.param_groups[0]
        group = {"params": make_params(), option: value}
        assert option not in OPTIMIZERS[name]([group]).param_groups[0]
    for value in refused:
        says = rf"^{name}\.__init__\(\) takes {option} only as .*, got {value!r}; leave it out"
        with pytest.raises(TypeError, match=says):
            OPTIMIZERS[name](make_params(), **{option: value})


def test_every_option_of_torchs_constructors_is_taken():
    for name in ("Adam", "AdamW", "SGD"):
        theirs = inspect.signature(TORCHS[name][0]).parameters.keys()
        assert theirs <= inspect.signature(OPTIMIZERS[name]).parameters.keys()
        assert {key for key in theirs if key in NO_MORE} == set(torchs_options(name))


def test_nesterov_needs_momentum_and_dampening_is_not_there():
    for options, says in (
        ({"nesterov": True}, "nesterov=True needs a momentum above 0, got momentum=0"),
        ({"momentum": 0.9, "dampening": 0.5}, "dampening must be 0, got 0.5; leave it out"),
    ):
        with pytest.raises(ValueError, match=says):
            OPTIMIZERS["SGD"](make_params(), **options)
        with pytest.raises(ValueError, match=says):
            OPTIMIZERS["SGD"]([{"params": make_params(), **options}])


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
    for arguments, options in (((), {"foreach": True}), ((), {"rate": 1}), ((1,) * 9, {})):
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
    "decoupled_weight_decay": 2,
    "dampening": 0.5,
}


@pytest.mark.parametrize(
    ("name", "option"),
    [
        case_of(name, option)
        for name, cls in OPTIMIZERS.items()
        for option in ASKS_FOR_MORE
        if option not in cls(make_params()).defaults
    ],
)
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
        ("AdamW", {"decoupled_weight_decay": False}),
        ("AdamW", {"friction": "tanh"}),
        ("Adam", {"nesterov": True}),
        ("DiffGrad", {"friction": "tanh"}),
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
        ("AdamW", lambda params: torch.optim.AdamW(params, 0.25)),
        ("Adam", lambda params: torch.optim.Adam(params, 0.25)),
        ("DiffGradW", lambda params: torch.optim.AdamW(params, 0.25)),
        ("AdamP", lambda params: adamp.AdamP(params, 0.25)),
        ("SGD", lambda params: torch.optim.SGD(params, 0.25, 0.5, nesterov=True)),
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
