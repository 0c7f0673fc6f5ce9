"""State dicts that go from one class to another, ours or torch's: what goes on is what would have gone on."""

import copy
import io

import adamp
import pytest
import torch
from optimizer_cases import both_backends, copies, make_params, run

from friction_kernels import (
    RSGDM,
    SGD,
    Adam,
    AdamP,
    AdamW,
    DiffGrad,
    DiffGradW,
    FrictionAdamW,
    SigSignAdamP,
    SigSignAdamW,
    SigSignGrad,
    TanhSignAdamP,
    TanhSignAdamW,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPES = [(3, 4), (300,), (), (4, 3, 5)]
ADAM = {"lr": 0.01, "betas": (0.8, 0.99), "weight_decay": 0.1}
MOMENTUM = {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1}


class Muon(torch.optim.Muon):
    """torch's, of the matrices among the parameters."""

    def __init__(self, params):
        super().__init__([param for param in params if param.dim() == 2])


def trained(cls, steps=3, **options):
    params = make_params(SHAPES, torch.float64)
    opt = cls(params, **options)
    run(opt, params, range(steps))
    return params, opt


def loaded(cls, params, opt, **options):
    """An optimizer of another class that goes on with the same parameters and states."""
    file = io.BytesIO()
    torch.save(opt.state_dict(), file)
    file.seek(0)
    ours = copies(params)
    other = cls(ours, **options)
    other.load_state_dict(torch.load(file, weights_only=True))
    return ours, other


def assert_go_on_alike(params, opt, others, other, tolerance=1e-12):
    run(opt, params, range(3, 7))
    run(other, others, range(3, 7))
    torch.testing.assert_close(others, params, rtol=tolerance, atol=tolerance / 10)


# torch's own, and adamp's.

TORCHS = {
    "Adam": (Adam, torch.optim.Adam, ADAM),
    "Adam, foreach": (Adam, torch.optim.Adam, ADAM | {"foreach": True}),
    "AdamW": (AdamW, torch.optim.AdamW, ADAM),
    "AdamW, maximize": (AdamW, torch.optim.AdamW, ADAM | {"maximize": True}),
    "AdamW, fused": (AdamW, torch.optim.AdamW, ADAM | {"fused": True}),
    "AdamP": (AdamP, adamp.AdamP, ADAM | {"nesterov": True}),
    "SGD": (SGD, torch.optim.SGD, {"lr": 0.05, "weight_decay": 0.1}),
    "SGD, momentum": (SGD, torch.optim.SGD, MOMENTUM),
    "SGD, Nesterov": (SGD, torch.optim.SGD, MOMENTUM | {"nesterov": True, "foreach": True}),
}


@both_backends
@pytest.mark.parametrize("case", TORCHS)
def test_ours_goes_on_from_theirs(case, backend):
    ours, theirs, options = TORCHS[case]
    params, opt = trained(theirs, **options)
    others, other = loaded(ours, params, opt, backend=backend)
    assert other.param_groups[0].keys() == {"params", *other.defaults}
    assert_go_on_alike(params, opt, others, other)


@both_backends
@pytest.mark.parametrize("case", TORCHS)
def test_theirs_goes_on_from_ours(case, backend):
    ours, theirs, options = TORCHS[case]
    how = {key: value for key, value in options.items() if key not in ("foreach", "fused")}
    params, opt = trained(ours, backend=backend, **how)
    others, other = loaded(theirs, params, opt, **options)
    # adamp raises betas to a step that is a tensor in its float32.
    assert_go_on_alike(params, opt, others, other, 1e-6 if theirs is adamp.AdamP else 1e-12)


@pytest.mark.parametrize("none", [True, False], ids=["None", "absent"])
@both_backends
def test_a_buffer_that_sgd_has_not_made_starts_with_the_next_gradient(backend, none):
    params, opt = trained(torch.optim.SGD, lr=0.05)
    saved = opt.state_dict()
    saved["state"] = {n: {"momentum_buffer": None} for n in range(len(params))} if none else {}
    saved["param_groups"][0]["momentum"] = 0.8
    others = copies(params)
    other, theirs = SGD(others, backend=backend), torch.optim.SGD(params)
    other.load_state_dict(saved)
    theirs.load_state_dict(saved)
    assert not any(other.state.values())
    assert_go_on_alike(params, theirs, others, other)


# With friction and without.

FRICTIONS = [
    (Adam, SigSignGrad),
    (Adam, DiffGrad),
    (AdamW, TanhSignAdamW),
    (AdamW, SigSignAdamW),
    (AdamW, DiffGradW),
    (AdamP, SigSignAdamP),
    (AdamP, TanhSignAdamP),
]
every_friction = pytest.mark.parametrize(("base", "friction"), FRICTIONS)


def moments_of(opt, param):
    return [opt.state[param][key] for key in ("step", "exp_avg", "exp_avg_sq")]


@both_backends
@every_friction
def test_a_friction_starts_at_rest_with_its_bases_moments(base, friction, backend):
    params, opt = trained(base, **ADAM)
    others, other = loaded(friction, params, opt, beta3=0.7, backend=backend)
    assert other.param_groups[0]["beta3"] == 0.7
    assert other.param_groups[0].keys() == {"params", *other.defaults}
    for param, twin in zip(params, others, strict=True):
        assert all(map(torch.equal, moments_of(opt, param), moments_of(other, twin)))
        assert not other.state[twin]["prev_grad"].any()


@both_backends
@every_friction
def test_a_base_goes_on_from_a_frictions_moments(base, friction, backend):
    params, opt = trained(friction, **ADAM)
    others, other = loaded(base, params, opt, backend=backend)
    assert other.param_groups[0].keys() == {"params", *other.defaults}
    for param, twin in zip(params, others, strict=True):
        assert other.state[twin].keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(map(torch.equal, moments_of(opt, param), moments_of(other, twin)))
    # Without friction both do the same, but for the sigmoid's and diffGrad's half.
    opt.param_groups[0]["beta3"] = 0.0
    if not friction.__name__.startswith("Tanh"):
        for group, factor in ((opt.param_groups[0], 2.0), (other.param_groups[0], 1.0)):
            group.update(lr=0.01 * factor, weight_decay=0.0)
    assert_go_on_alike(params, opt, others, other)


@pytest.mark.parametrize("word", ["tanh", "sigmoid", "diff", None])
def test_a_group_keeps_its_own_options_and_the_users_where_friction_comes_and_goes(word):
    own = {"beta3": 0.7, "friction_input": "product"}
    params, opt = trained(FrictionAdamW, friction="tanh", **own, take_gradients=True)
    opt.param_groups[0]["lr_scale"] = 0.5
    saved = opt.state_dict()
    if word is not None:
        del saved["param_groups"][0]["friction"]  # to go on in another friction's way
    other = FrictionAdamW(copies(params), friction=word)
    other.load_state_dict(saved)
    [group] = other.param_groups
    assert group.keys() == {"params", "lr_scale", *other.defaults}
    assert {key: group[key] for key in own} == own
    assert not group.get("take_gradients")  # as before, whatever was loaded


# Momentum as a sum and as an average.


@both_backends
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_and_rsgdm_go_on_from_each_other(weight_decay, backend):
    options = {"momentum": 0.8, "weight_decay": weight_decay, "backend": backend}
    params, opt = trained(SGD, lr=0.05, nesterov=True, **options)
    others, other = loaded(RSGDM, params, opt, backend=backend)
    assert other.param_groups[0]["lr"] == pytest.approx(0.25)
    again, sgd = loaded(SGD, others, other, backend=backend)
    assert sgd.param_groups[0]["lr"] == pytest.approx(0.05)
    assert sgd.param_groups[0]["nesterov"] is True
    for param, twin in zip(params, again, strict=True):
        buffers = (each.state[p]["momentum_buffer"] for each, p in ((opt, param), (sgd, twin)))
        torch.testing.assert_close(*buffers, rtol=1e-14, atol=0)
    for each, of_each in ((opt, params), (other, others), (sgd, again)):
        run(each, of_each, range(3, 7))
    for of_each in (others, again):
        torch.testing.assert_close(of_each, params, rtol=1e-12, atol=1e-13)


def test_decoupled_decay_of_zero_is_none():
    params, opt = trained(RSGDM, decoupled_weight_decay=True)
    others, other = loaded(SGD, params, opt)
    assert_go_on_alike(params, opt, others, other)


# What is refused.

DAMPENED = {"momentum": 0.8, "dampening": 0.1}
DECOUPLED = {"decoupled_weight_decay": True, "weight_decay": 0.1}
REFUSED = {
    "AdamW into AdamP": (AdamW, {}, AdamP, "not one of AdamP: its group 0 has projects_rows=False"),
    "AdamP into AdamW": (AdamP, {}, AdamW, "not one of AdamW: its group 0 has projects_rows=True"),
    "AdamP into SigSignAdamW": (AdamP, {}, SigSignAdamW, "has projects_rows=True"),
    "AdamW into Adam": (AdamW, {}, Adam, "has decoupled_weight_decay=True and this class False"),
    "Adam into AdamW": (Adam, ADAM, AdamW, "has decoupled_weight_decay=False"),
    "torch's Adam into AdamW": (torch.optim.Adam, ADAM, AdamW, "decoupled_weight_decay=False"),
    "DiffGradW into Adam": (DiffGradW, {}, Adam, "has decoupled_weight_decay=True"),
    "TanhSignAdamW into DiffGradW": (TanhSignAdamW, {}, DiffGradW, "friction='tanh' .* 'diff'"),
    "DiffGradW into SigSignAdamW": (DiffGradW, {}, SigSignAdamW, "friction='diff' .* 'sigmoid'"),
    "Adam with its maximum": (
        torch.optim.Adam,
        {"amsgrad": True},
        Adam,
        "set amsgrad=False in its",
    ),
    "AdamW with its maximum": (torch.optim.AdamW, {"amsgrad": True}, AdamW, "set amsgrad=False in"),
    "RAdam into Adam": (torch.optim.RAdam, {}, Adam, "one of torch.optim.RAdam or NAdam"),
    "NAdam into Adam": (torch.optim.NAdam, {}, Adam, "one of torch.optim.RAdam or NAdam"),
    "adamp's AdamP into AdamW": (adamp.AdamP, {}, AdamW, "one of adamp.AdamP; start AdamW afresh"),
    "adamp's AdamP into DiffGrad": (adamp.AdamP, {}, DiffGrad, "not one of DiffGrad: it is one of"),
    "SGD into AdamW": (SGD, {}, AdamW, "not one of AdamW: it is one of SGD; start AdamW afresh"),
    "torch's SGD, without a state": (torch.optim.SGD, {}, TanhSignAdamP, "it is one of SGD"),
    "RSGDM into AdamW": (RSGDM, {}, AdamW, "not one of AdamW: for parameter 0 .* no 'exp_avg'"),
    "AdamW into SGD": (AdamW, {}, SGD, "not one of SGD: for parameter 0 .* no 'momentum_buffer'"),
    "torch's AdamW into SGD": (torch.optim.AdamW, {}, SGD, "not one of SGD"),
    "RMSprop into SGD": (torch.optim.RMSprop, {"momentum": 0.9}, SGD, "not one of SGD"),
    "Muon into SGD": (Muon, {}, SGD, "not one of SGD: it is one of torch.optim.Muon"),
    "SGD with dampening": (torch.optim.SGD, DAMPENED, SGD, "group 0: dampening must be 0, got 0.1"),
    "RSGDM with decoupled decay": (RSGDM, DECOUPLED, SGD, "decoupled_weight_decay=True, which SGD"),
    "RSGDM without momentum": (RSGDM, {"momentum": 0.0}, SGD, "has momentum=0; start SGD afresh"),
    "SGD without momentum": (SGD, {}, RSGDM, "no momentum_buffer to go on from; start RSGDM"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_another_class_did_is_refused_and_nothing_changed(case):
    source, options, target, says = REFUSED[case]
    params, foreign = trained(source, **options)
    others, twins = copies(params), copies(params)
    opt, twin = target(others, lr=0.07), target(twins, lr=0.07)
    run(opt, others, range(2))
    run(twin, twins, range(2))
    before = copy.deepcopy(opt.state_dict()["param_groups"])
    with pytest.raises(ValueError, match=says):
        opt.load_state_dict(foreign.state_dict())
    assert opt.state_dict()["param_groups"] == before
    run(opt, others, [2])
    run(twin, twins, [2])
    assert all(map(torch.equal, others, twins))
