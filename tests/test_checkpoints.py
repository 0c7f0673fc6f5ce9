"""State dicts: between all ways to keep a state, from torch's optimizers, and what is refused."""

import copy
import io
import pickle
import warnings
from collections import UserDict
from itertools import product

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizer_cases import (
    ADAMS,
    assert_same_bits,
    assert_same_states,
    both_backends,
    copies,
    every_optimizer,
    make_params,
    run,
)
from torch import nn

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW, TanhSignAdamW
from friction_kernels.optim.states import numbers_of, read_state, read_wide

pytestmark = pytest.mark.usefixtures("one_thread")

MASTERS = [None, "split", "split8", "fp32"]
MASTERS = {"split": "residual", "split8": "residual", "fp32": "master"}
MIXED = {"exp_avg": "bf16", "prev_grad": "8bit"}  # exp_avg_sq as by default
STATE_DTYPES = {"None": None, "fp32": "fp32", "bf16": "bf16", "8bit": "8bit", "mixed": MIXED}
# How far a number may be from what it was, relative to the largest of its block of 256.
ERRORS = {None: 2.0**-8, "fp32": 0.0, "bf16": 2.0**-8, "8bit": (1 + 1 / 240) / 32}
LOW_PRECISION = {"rounding": "stochastic", "seed": 2}, {"master": "split", "state_dtype": "8bit"}


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def asked(state_dtype, key):
    return state_dtype.get(key) if isinstance(state_dtype, dict) else state_dtype


def error_of(state_dtype, key):
    kind = asked(state_dtype, key)
    # By default the moments are float32, and prev_grad is of the parameter's type, as gradients are.
    return 0.0 if kind is None and key != "prev_grad" else ERRORS[kind]


@both_backends
@pytest.mark.parametrize("target", STATE_DTYPES)
@pytest.mark.parametrize("source", STATE_DTYPES)
def test_states_load_into_every_other_way_to_keep_them(source, target, backend):
    for before, after in product(MASTERS, MASTERS):
        params = make_params(dtype=torch.bfloat16)
        opt = SigSignAdamW(
            params, 0.01, state_dtype=STATE_DTYPES[source], master=before, backend=backend
        )
        run(opt, params, range(3))
        loaded_params = copies(params)
        loaded = SigSignAdamW(
            loaded_params, state_dtype=STATE_DTYPES[target], master=after, backend=backend
        )
        loaded.load_state_dict(saved_and_loaded(opt.state_dict()))
        [group] = loaded.param_groups
        assert (group["state_dtype"], group["master"]) == (STATE_DTYPES[target], after)
        assert group["lr"] == 0.01
        for param, twin in zip(params, loaded_params, strict=True):
            check_numbers(param, opt.state[param], twin, loaded.state[twin], STATE_DTYPES[target])
            wide = read_wide(param, opt.state[param])
            assert torch.equal(read_wide(twin, loaded.state[twin]), wide)
        run(opt, params, [3])
        run(loaded, loaded_params, [3])
        for param, twin in zip(params, loaded_params, strict=True):
            masters = {"residual", "master"} & set(loaded.state[twin])
            assert masters == ({MASTERS[after]} if after else set())
            wide, twin_wide = (
                read_wide(param, opt.state[param]),
                read_wide(twin, loaded.state[twin]),
            )
            rounding = 0 if before and after else 2.0**-7  # where a parameter has no master
            torch.testing.assert_close(twin_wide, wide, rtol=rounding + 2.0**-15, atol=2e-3)
        if (source, before) == (target, after):
            assert_same_bits(params, loaded_params)
            assert_same_states(opt, params, loaded, loaded_params)


def check_numbers(param, state, twin, loaded, state_dtype):
    assert loaded["step"] == state["step"] == 3
    for key in ("exp_avg", "exp_avg_sq", "prev_grad"):
        kind = asked(state_dtype, key)
        is_quantized = kind == "8bit" and param.numel() >= 256
        assert (loaded[key].dtype == torch.uint8) == is_quantized
        if kind == "bf16":
            assert loaded[key].dtype == torch.bfloat16
        elif kind == "fp32":
            assert loaded[key].dtype == torch.float32
        how = SigSignAdamW.rule.states[key]
        was, now = (read_state(p, s, key, how) for p, s in ((param, state), (twin, loaded)))
        error = error_of(state_dtype, key) if is_quantized or kind != "8bit" else 0.0
        assert ((now - was).abs() <= error * was.abs().max()).all()


@both_backends
@pytest.mark.parametrize("options", LOW_PRECISION, ids=str)
@every_optimizer
def test_a_loaded_run_goes_on_to_the_same_bits(name, options, backend):
    params = make_params(dtype=torch.bfloat16)
    opt = OPTIMIZERS[name](params, backend=backend, **options)
    run(opt, params, range(3))
    loaded_params = copies(params)
    loaded = OPTIMIZERS[name](loaded_params, backend=backend, **options)
    loaded.load_state_dict(saved_and_loaded(opt.state_dict()))
    assert_same_states(opt, params, loaded, loaded_params)
    run(opt, params, range(3, 5))
    run(loaded, loaded_params, range(3, 5))
    assert_same_bits(params, loaded_params)
    assert_same_states(opt, params, loaded, loaded_params)


@both_backends
def test_a_state_dict_has_numbers_of_the_parameters_shapes(backend):
    params = make_params(dtype=torch.bfloat16)
    opt = SigSignAdamW(params, state_dtype="8bit", master="split", backend=backend)
    run(opt, params, range(2))
    saved = opt.state_dict()["state"]
    for index, param in enumerate(params):
        assert set(saved[index]) == {"step", "exp_avg", "exp_avg_sq", "prev_grad", "residual"}
        for key in ("exp_avg", "exp_avg_sq", "prev_grad"):
            assert saved[index][key].dtype == torch.float32
            assert torch.equal(
                saved[index][key], numbers_of(param, opt.state[param], key, opt.rule.states[key])
            )
        assert all(saved[index][key].shape == param.shape for key in saved[index] if key != "step")
    assert opt.state[params[0]]["exp_avg"].dtype == torch.uint8  # the optimizer's own is left alone


@both_backends
@pytest.mark.parametrize("options", LOW_PRECISION, ids=str)
@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["deepcopy", "pickle"],
)
@every_optimizer
def test_copies_go_on_to_the_same_bits(name, duplicate, options, backend):
    params = make_params(dtype=torch.bfloat16)
    opt = OPTIMIZERS[name](params, backend=backend, **options)
    run(opt, params, range(2))
    twins, twin_opt = duplicate((params, opt))
    public, twins_public = (
        {key for key in vars(each) if not key.startswith("_")} for each in (opt, twin_opt)
    )
    assert twins_public == public
    run(opt, params, range(2, 4))
    run(twin_opt, twins, range(2, 4))
    assert_same_bits(params, twins)
    assert_same_states(opt, params, twin_opt, twins)


@both_backends
@pytest.mark.parametrize("options", LOW_PRECISION, ids=str)
@every_optimizer
def test_layers_in_channels_last_go_on_to_the_same_bits(name, options, backend):
    """States in 8 bits walk in the order of the parameter's memory, and their numbers are of its shape."""
    layer = nn.Conv2d(8, 16, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    twin = copy.deepcopy(layer)
    opt = OPTIMIZERS[name](layer.parameters(), backend=backend, **options)
    run(opt, list(layer.parameters()), range(2))
    twin.load_state_dict(layer.state_dict())
    loaded = OPTIMIZERS[name](twin.parameters(), backend=backend, **options)
    loaded.load_state_dict(saved_and_loaded(opt.state_dict()))
    for index, state in opt.state_dict()["state"].items():
        assert_same_bits(state.values(), loaded.state_dict()["state"][index].values())
    run(opt, list(layer.parameters()), range(2, 4))
    run(loaded, list(twin.parameters()), range(2, 4))
    assert_same_bits(layer.parameters(), twin.parameters())


@both_backends
def test_the_default_device_does_not_matter(backend):
    params = make_params(dtype=torch.bfloat16)
    opt = SigSignAdamW(params, master="split", state_dtype="8bit", backend=backend)
    run(opt, params, range(2))
    saved = opt.state_dict()
    saved["state"][0]["step"] = 2
    twins = copies(params)
    with torch.device("meta"):
        loaded = SigSignAdamW(twins, master="split", state_dtype="8bit", backend=backend)
        loaded.load_state_dict(saved)
    assert_same_states(opt, params, loaded, twins)


# One moment's, or live.


@both_backends
@pytest.mark.parametrize("options", [{"state_dtype": "8bit"}, {"state_dtype": MIXED}, {}], ids=str)
def test_all_of_a_state_dict_is_of_one_moment_or_all_is_live(options, backend):
    params = make_params()
    lr = torch.tensor(0.01)
    opt = SigSignAdamW(params, lr, backend=backend, **options)
    run(opt, params, range(2))
    saved = opt.state_dict()
    tensors = [*saved["state"][0].values(), *saved["state"][1].values()]
    before = copy.deepcopy(tensors)
    run(opt, params, [2])
    changed = {not torch.equal(was, now) for was, now in zip(before, tensors, strict=True)}
    assert changed == {not options}
    lr.fill_(0.5)
    assert (saved["param_groups"][0]["lr"] == 0.5) == (not options)


@both_backends
@pytest.mark.parametrize(
    "change", [{"state_dtype": "8bit"}, {"master": "fp32"}, {"master": None}], ids=str
)
def test_a_live_state_dict_stays_of_one_moment_where_an_option_changes(change, backend):
    [param] = params = make_params([(512,)], dtype=torch.bfloat16)
    opt = SigSignAdamW(params, backend=backend, master="split")
    run(opt, params, range(2))
    saved = opt.state_dict()["state"][0]
    before = copy.deepcopy(saved)
    opt.param_groups[0].update(change)
    run(opt, params, [2])
    assert opt.state[param]["step"] == 3
    assert len({torch.equal(saved[key], before[key]) for key in saved}) == 1


@both_backends
@every_optimizer
def test_a_run_is_rolled_back_to_a_state_dict_again_and_again(name, backend):
    params = make_params(dtype=torch.bfloat16)
    opt = OPTIMIZERS[name](params, backend=backend, master="split", state_dtype="8bit")
    run(opt, params, range(2))
    saved, values, ends = opt.state_dict(), copies(params), []
    for _ in range(3):
        with torch.no_grad():
            torch._foreach_copy_(params, values)
        opt.load_state_dict(saved)
        run(opt, params, range(2, 4))
        ends.append(copies(params))
    assert_same_bits(ends[0], ends[1])
    assert_same_bits(ends[0], ends[2])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_is_loaded_into_copies_and_not_into_the_optimizer_is_warned_of(tmp_path):
    [param] = params = make_params([(512,)])
    opt = SigSignAdamW(params, state_dtype="8bit")
    run(opt, params, range(3))
    dcp.save(opt.state_dict(), checkpoint_id=tmp_path)
    for follows in (False, True):
        other = SigSignAdamW(params, state_dtype="8bit")
        run(other, params, [0])
        state_dict = other.state_dict()
        dcp.load(state_dict, checkpoint_id=tmp_path)
        assert other.state[param]["step"] == 1
        if follows:
            other.load_state_dict(state_dict)
            assert_same_bits(other.state[param].values(), opt.state[param].values())
        with warnings.catch_warnings(record=True, action="always") as caught:
            run(other, params, [1, 2])
        said = [
            str(w.message) for w in caught if "load_state_dict() did not follow" in str(w.message)
        ]
        assert len(said) == (0 if follows else 1)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "let go of"])
def test_every_state_dict_that_was_written_is_warned_of_once(kept):
    params = make_params([(512,)])
    opt = SigSignAdamW(params, state_dtype="8bit")
    run(opt, params, range(2))
    state_dicts = [opt.state_dict() for _ in range(3)]
    state_dicts[1]["state"][0]["step"].fill_(7)
    if not kept:
        state_dicts.clear()
        opt.state_dict()
    with pytest.warns(UserWarning, match=r"load_state_dict\(\) did not follow"):
        run(opt, params, [2])
    with warnings.catch_warnings(action="error"):
        run(opt, params, [3])
    assert len(opt._snapshots) == len(state_dicts)
    for _ in range(3):
        opt.state_dict()
    assert len(opt._snapshots) <= len(state_dicts) + 1  # those that are gone are forgotten


@both_backends
def test_a_state_dict_whose_copies_are_taken_over_is_watched_no_more(backend):
    params = make_params([(512,)])
    opt = SigSignAdamW(params, state_dtype="8bit", backend=backend)
    run(opt, params, range(2))
    saved = opt.state_dict()
    opt.param_groups[0]["state_dtype"] = None
    opt.load_state_dict(saved)
    with warnings.catch_warnings(action="error"):
        run(opt, params, range(2, 5))


def test_a_state_dict_in_inference_mode():
    params = make_params([(512,)])
    opt = SigSignAdamW(params, state_dtype="8bit")
    run(opt, params, range(2))
    with torch.inference_mode():
        assert opt.state_dict()["state"][0]["step"] == 2
    run(opt, params, [2])


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_checkpoint_is_loaded_into_the_optimizer_itself(tmp_path):
    [param] = params = make_params([(512,)])
    opt, other = (SigSignAdamW(params, state_dtype="8bit") for _ in range(2))
    run(opt, params, range(3))
    run(other, params, [0])
    dcp.save({"opt": opt}, checkpoint_id=tmp_path)
    dcp.load({"opt": other}, checkpoint_id=tmp_path)
    assert_same_bits(other.state[param].values(), opt.state[param].values())


# From torch's optimizers.


@both_backends
@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_rsgdm_goes_on_from_sgd_as_nesterov_sgd_would(weight_decay, nesterov, backend):
    params = make_params(dtype=torch.float64)
    options = {"lr": 0.05, "momentum": 0.8, "weight_decay": weight_decay}
    sgd = torch.optim.SGD(params, nesterov=nesterov, **options)
    run(sgd, params, range(3))
    ours = copies(params)
    opt = RSGDM(ours, backend=backend)
    opt.load_state_dict(saved_and_loaded(sgd.state_dict()))
    [group] = opt.param_groups
    assert group["lr"] == pytest.approx(0.25) and group["momentum"] == 0.8
    assert not {"nesterov", "dampening"} & set(group)
    sgd.param_groups[0]["nesterov"] = True
    run(sgd, params, range(3, 7))
    run(opt, ours, range(3, 7))
    torch.testing.assert_close(ours, params, rtol=1e-12, atol=1e-12)


@both_backends
@pytest.mark.parametrize("source", [torch.optim.AdamW, torch.optim.Adam], ids=["AdamW", "Adam"])
def test_moments_of_adam_are_quantized(source, backend):
    params = make_params(dtype=torch.bfloat16)
    theirs = source(params)
    run(theirs, params, range(3))
    ours = copies(params)
    opt = TanhSignAdamW(ours, state_dtype="8bit", master="split", backend=backend)
    opt.load_state_dict(saved_and_loaded(theirs.state_dict()))
    for param, twin in zip(params, ours, strict=True):
        for key in ("exp_avg", "exp_avg_sq"):
            was, now = (
                theirs.state[param][key].float(),
                read_state(twin, opt.state[twin], key, opt.rule.states[key]),
            )
            assert ((now - was).abs() <= was.abs().max() * ERRORS["8bit"]).all() and now.any()
        assert not read_state(
            twin, opt.state[twin], "prev_grad", opt.rule.states["prev_grad"]
        ).any()
    run(opt, ours, [3])
    assert all(state["step"] == 4 and "residual" in state for state in opt.state.values())


# What is refused.


def snapshot(opt):
    return copy.deepcopy((opt.param_groups, list(opt.state.values())))


def assert_unchanged(opt, before):
    groups, states = before
    for group, was in zip(opt.param_groups, groups, strict=True):
        assert_same_bits(group["params"], was["params"])
        assert {**group, "params": 0} == {**was, "params": 0}
    for state, was in zip(opt.state.values(), states, strict=True):
        assert state.keys() == was.keys()
        assert_same_bits(state.values(), was.values())


@both_backends
def test_a_state_of_other_shapes_names_the_parameter_and_changes_nothing(backend):
    model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 30))
    opt = SigSignAdamW(
        model.named_parameters(), master="split", state_dtype="8bit", backend=backend
    )
    run(opt, list(model.parameters()), range(2))
    other_model = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 31))
    other = SigSignAdamW(other_model.named_parameters(), lr=0.5)
    run(other, list(other_model.parameters()), range(2))
    before = snapshot(opt)
    match = (
        r"'exp_avg' of shape \(31, 20\) for parameter 2 of group 0 \('1.weight', shape \(30, 20\)\)"
    )
    with pytest.raises(ValueError, match=match):
        opt.load_state_dict(other.state_dict())
    assert_unchanged(opt, before)
    run(opt, list(model.parameters()), [2])


@both_backends
def test_a_residual_of_another_shape_and_a_complex_state_are_refused(backend):
    params = make_params(dtype=torch.bfloat16)
    opt = SigSignAdamW(params, master="split", backend=backend)
    run(opt, params, range(2))
    before = snapshot(opt)
    for key, bad in (("residual", torch.zeros(4)), ("exp_avg", torch.zeros(300) * 1j)):
        saved = copy.deepcopy(opt.state_dict())
        saved["state"][1][key] = bad
        with pytest.raises(ValueError, match=f"'{key}' of .* for parameter 1 of group 0"):
            opt.load_state_dict(saved)
        assert_unchanged(opt, before)


@both_backends
@every_optimizer
def test_a_state_of_another_class_is_refused_and_nothing_changed(name, backend):
    params = make_params(dtype=torch.bfloat16)
    opt = OPTIMIZERS[name](params, state_dtype="8bit", master="split", backend=backend)
    run(opt, params, range(2))
    other_params = copies(params)
    other = (RSGDM if name in ADAMS else SigSignAdamW)(other_params, state_dtype="8bit")
    run(other, other_params, range(2))
    before = snapshot(opt)
    with pytest.raises(
        ValueError, match=f"not one of {name}: for parameter 0 of group 0 .* and no '"
    ):
        opt.load_state_dict(other.state_dict())
    assert_unchanged(opt, before)


def other_state(key, value):
    return lambda saved: saved["state"][1].update({key: value})


def without_memory(shape):
    tensor = torch.zeros(shape)
    tensor.untyped_storage().resize_(0)
    return tensor


def other_option(key, value):
    return lambda saved: saved["param_groups"][0].update({key: value})


MISFITS = {
    "two steps": (other_state("step", torch.zeros(2)), "'step' of parameter 1 .*one element"),
    "step as text": (other_state("step", "x"), "'step' of parameter 1 .* got 'x'"),
    "no step": (lambda saved: saved["state"][1].pop("step"), "for parameter 1 .* no 'step'"),
    "no moment": (
        lambda saved: saved["state"][1].pop("exp_avg_sq"),
        "not one of SigSignAdamW: for parameter 1 .* no 'exp_avg_sq'",
    ),
    "step below 0": (other_state("step", -1), "'step' of parameter 1 .* got -1"),
    "half a step": (other_state("step", torch.tensor(2.5)), "'step' of parameter 1 .* got 2.5"),
    "step nan": (other_state("step", torch.tensor(torch.nan)), "'step' of parameter 1 .* got nan"),
    "step inf": (other_state("step", torch.tensor(torch.inf)), "'step' of parameter 1 .* got inf"),
    "too many steps": (other_state("step", 1e20), r"'step' of parameter 1 .* got 1e\+20"),
    "an enormous step": (other_state("step", 10**400), "'step' of parameter 1 .* got 1000"),
    "a complex step": (
        other_state("step", torch.tensor(2 + 0j)),
        "'step' of parameter 1 .* count of steps",
    ),
    "step without memory": (
        other_state("step", without_memory(())),
        "'step' of parameter 1 .* has no memory",
    ),
    "state without memory": (
        other_state("exp_avg", without_memory((300,))),
        "'exp_avg' for parameter 1 .* has no memory",
    ),
    "step of gaps": (
        other_state("step", torch.tensor([2.0]).to_sparse()),
        r"'step' of parameter 1 .* layout torch\.sparse_coo",
    ),
    "numbers from JSON": (
        lambda saved: saved.update(state={str(n): s for n, s in saved["state"].items()}),
        "state has '0' where a group has 0.*int again",
    ),
    "a master of integers": (
        other_state("master", torch.ones(300, dtype=torch.int32)),
        "'master' of type torch.int32 for parameter 1 .* must be torch.float32",
    ),
    "residuals beyond 16 bits": (
        other_state("residual", torch.full((300,), 70_000, dtype=torch.int32)),
        "'residual' of type torch.int32 for parameter 1 .* must be torch.int16",
    ),
    "step as dict": (other_state("step", {}), "'step' of parameter 1 .* got {}"),
    "step on meta": (
        other_state("step", torch.tensor(2.0, device="meta")),
        "'step' of parameter 1 .* count of steps",
    ),
    "list": (
        other_state("exp_avg", [1, 2]),
        r"\[1, 2\] as 'exp_avg' for parameter 1 .* not a tensor",
    ),
    "codes": (
        other_state("exp_avg", torch.zeros(300, dtype=torch.uint8)),
        "'exp_avg' of type torch.uint8 for parameter 1",
    ),
    "residual in float": (
        other_state("residual", torch.zeros(300)),
        "'residual' of type torch.float32 for parameter 1.*must be torch.int16 or torch.int8",
    ),
    "sparse": (
        other_state("exp_avg", torch.zeros(300).to_sparse()),
        "'exp_avg' for parameter 1 .*dense",
    ),
    "on meta": (
        other_state("exp_avg", torch.zeros(300, device="meta")),
        "'exp_avg' for parameter 1 .* on the meta device",
    ),
    "a state of None": (
        lambda saved: saved["state"].update({1: None}),
        "None for parameter 1 .* not a dict",
    ),
    "step of None": (other_state("step", None), "for parameter 1 .* no 'step'"),
    "no states": (lambda saved: saved.pop("state"), "the state_dict has no 'state'"),
    "states of None": (lambda saved: saved.update(state=None), "has None as 'state'"),
    "no groups": (lambda saved: saved.pop("param_groups"), "the state_dict has no 'param_groups'"),
    "groups of None": (lambda saved: saved.update(param_groups=None), "None as 'param_groups'"),
    "a group of None": (
        lambda saved: saved.update(param_groups=[None]),
        "the state_dict's group 0 is None",
    ),
    "no params": (
        lambda saved: saved["param_groups"][0].pop("params"),
        "the state_dict's group 0 has no params",
    ),
    "params of None": (other_option("params", None), "group 0 has None as 'params'"),
    "params of lists": (other_option("params", [[0], [1]]), "group 0 has .* as 'params'"),
    "a name for five": (other_option("param_names", ["a"]), r"\['a'\] as 'param_names' of 5"),
    "no dict": (lambda saved: saved["state"].update({1: 7}), "7 for parameter 1 .* not a dict"),
    "lr": (other_option("lr", -1), "group 0: lr must be at least 0 and finite, got -1"),
    "betas": (other_option("betas", (0.9,)), r"group 0: betas must be a pair .* got \(0.9,\)"),
    "max_grad_norm": (other_option("max_grad_norm", -5), "group 0: max_grad_norm must .* got -5"),
    "seed": (other_option("seed", -5), "group 0: seed must .* got -5"),
    "maximize": (other_option("maximize", "x"), "group 0: maximize must .* got 'x'"),
}


@both_backends
@pytest.mark.parametrize("misfit", MISFITS)
def test_what_does_not_fit_in_a_state_dict_is_named_and_nothing_changed(misfit, backend):
    spoil, match = MISFITS[misfit]
    params = make_params(dtype=torch.bfloat16)
    opt = SigSignAdamW(params, master="split", state_dtype="8bit", backend=backend)
    run(opt, params, range(2))
    saved = copy.deepcopy(opt.state_dict())
    saved["param_groups"][0].update(lr=0.5)
    spoil(saved)
    before = snapshot(opt)
    with pytest.raises((TypeError, ValueError), match=match):
        opt.load_state_dict(saved)
    assert_unchanged(opt, before)
    run(opt, params, [2])


@pytest.mark.parametrize("what", [None, 7, [], "x"])
def test_what_is_no_state_dict_is_refused(what):
    opt = SigSignAdamW(make_params())
    with pytest.raises(TypeError, match="load_state_dict takes what state_dict"):
        opt.load_state_dict(what)


@pytest.mark.parametrize("key", ["momentum", "lr"])
def test_a_group_of_sgd_without_its_numbers_is_refused(key):
    sgd = torch.optim.SGD(make_params(), 0.1, momentum=0.9)
    saved = sgd.state_dict()
    saved["param_groups"][0][key] = None
    with pytest.raises(TypeError, match=f"the state_dict's group 0: {key} must be"):
        RSGDM(make_params()).load_state_dict(saved)


@both_backends
@pytest.mark.parametrize("options", [{"state_dtype": "8bit"}, {}], ids=str)
def test_a_state_that_is_given_twice_is_two_parameters_own(options, backend):
    params = make_params([(300,), (300,)])
    opt = SigSignAdamW(params, backend=backend, **options)
    run(opt, params, range(2))
    saved = opt.state_dict()
    saved["param_groups"][0]["params"] = [0, 0]
    del saved["state"][1]
    saved["state"][0]["prev_grad"] = saved["state"][0]["exp_avg"]
    other = SigSignAdamW(copies(params), backend=backend, **options)
    other.load_state_dict(saved)
    run(other, other.param_groups[0]["params"], [2])
    tensors = [
        value
        for state in other.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    assert len({value.data_ptr() for value in tensors}) == len(tensors) == 8
    assert all(state["step"] == 3 for state in other.state.values())
    assert saved["state"][0]["step"] == 2


@both_backends
def test_negated_views_and_tensors_that_require_gradients_are_loaded(backend):
    params = make_params()
    opt = SigSignAdamW(params, backend=backend)
    run(opt, params, range(2))
    saved = copy.deepcopy(opt.state_dict())
    right = saved["state"][0]["exp_avg"]
    saved["state"][0]["exp_avg"] = torch._neg_view(-right)
    saved["state"][0]["step"] = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    saved["state"][1]["exp_avg"].requires_grad_()
    other_params = copies(params)
    other = SigSignAdamW(other_params, backend=backend)
    other.load_state_dict(saved)
    for state in other.state.values():
        assert not any(value.requires_grad or value.is_neg() for value in state.values())
    run(opt, params, [2])
    run(other, other_params, [2])
    assert_same_states(opt, params, other, other_params)


@both_backends
def test_mappings_of_other_kinds_and_expanded_tensors_are_loaded(backend):
    params = make_params()
    opt = SigSignAdamW(params, backend=backend)
    run(opt, params, range(2))
    saved = opt.state_dict()
    expanded = torch.tensor(0.25).expand(params[0].shape)
    saved["state"][0] = UserDict(saved["state"][0], exp_avg=expanded)
    groups = tuple(map(UserDict, saved["param_groups"]))
    given = UserDict(state=UserDict(saved["state"]), param_groups=groups)
    other = SigSignAdamW(copies(params), backend=backend)
    other.load_state_dict(given)
    theirs = other.param_groups[0]["params"]
    assert (other.state[theirs[0]]["exp_avg"] == 0.25).all()
    run(other, theirs, [2])


def test_what_this_optimizer_does_not_load_need_not_fit_it():
    params = make_params()
    opt = SigSignAdamW(params)
    saved = opt.state_dict()
    saved["param_groups"][0].update(backend="cuda", master="bf16", fused="yes")
    opt.load_state_dict(saved)
    assert opt.param_groups[0]["backend"] == "auto" and "fused" not in opt.param_groups[0]


def test_a_lazy_parameter_takes_no_state():
    saved = SigSignAdamW(make_params([(3, 4), (3,)]))
    run(saved, saved.param_groups[0]["params"], range(1))
    layer = nn.LazyLinear(3)
    opt = SigSignAdamW(layer.parameters(), lr=0.5)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .* before it has a shape; run"):
        opt.load_state_dict(saved.state_dict())
    assert opt.param_groups[0]["lr"] == 0.5 and not opt.state
    layer(torch.ones(2, 4))
    opt.load_state_dict(saved.state_dict())
    assert all(state["step"] == 1 for state in opt.state.values())


@both_backends
def test_a_state_dict_by_names_is_loaded(backend):
    """As torch's distributed checkpoints make them: parameters are named, and not numbered."""
    params, twins = make_params(), make_params()
    opt, twin = (SigSignAdamW(p, backend=backend) for p in (params, twins))
    run(opt, params, range(2))
    saved = opt.state_dict()
    names = [f"layer.{number}" for number in saved["param_groups"][0]["params"]]
    saved["state"] = {names[number]: state for number, state in saved["state"].items()}
    saved["param_groups"][0]["params"] = names
    twin.load_state_dict(saved)
    assert_same_states(opt, params, twin, twins)
