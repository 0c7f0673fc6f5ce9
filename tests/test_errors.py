"""Bad input: the error names it and what to do, and nothing has changed."""

import contextlib
import math
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from optimizer_cases import Odd, both_backends, case_of, every_optimizer, noise
from torch import nn

from friction_kernels import OPTIMIZERS, backends
from friction_kernels.optim import checks

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be served by native kernels")

warm_or_not = pytest.mark.parametrize("warm", [0, 2], ids=["at the first step", "after two steps"])


def make_params():
    return [nn.Parameter(noise((3, 4), 0)), nn.Parameter(noise((5,), 1))]


def run(opt, steps):
    for step in range(steps):
        for group in opt.param_groups:
            for index, param in enumerate(group["params"]):
                param.grad = noise(param.shape, 100 * (step + 1) + index)
        opt.step()


def bits(value):
    """A copy to compare with, to the bit."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.device.type == "meta":
        return "meta", value.shape, value.dtype
    return "tensor", value.dtype, value.shape, repr(value.detach().reshape(-1).tolist())  # NaN, too


def snapshot(opt):
    return (
        [
            {key: bits(value) for key, value in group.items() if key != "params"}
            for group in opt.param_groups
        ],
        [
            [(id(param), param._version, bits(param)) for param in group["params"]]
            for group in opt.param_groups
        ],
        {
            id(param): {key: (id(value), bits(value)) for key, value in state.items()}
            for param, state in opt.state.items()
        },
    )


@contextlib.contextmanager
def refused(opt, error, match):
    """The block raises such an error, and nothing of the optimizer has changed."""
    before = snapshot(opt)
    with pytest.raises(error, match=match):
        yield
    assert snapshot(opt) == before


# Options.

FLAGS = (
    *("maximize", "nesterov", "decoupled_weight_decay", "skip_nonfinite", "capturable"),
    "take_gradients",
)
BAD_RATES = (-0.5, math.nan, math.inf, None, torch.tensor([0.1, 0.2]))
BAD_DECAYS = (-0.5, 1.0, 1.5, math.nan, None)
BAD_OPTIONS = {
    "lr": (*BAD_RATES, torch.tensor(-0.1)),
    "eps": BAD_RATES,
    "weight_decay": BAD_RATES,
    "beta3": BAD_RATES,
    "delta": BAD_RATES,
    "wd_ratio": BAD_RATES,
    "momentum": BAD_DECAYS,
    "dampening": (0.5, -1, math.nan, None, "x"),
    "betas": (
        *((bad, 0.9) for bad in BAD_DECAYS),
        *((0.9, bad) for bad in BAD_DECAYS),
        *(0.9, (0.9,), (0.9, 0.99, 0.999), None, "ab"),
    ),
    "friction_input": ("products", None, True),
    "backend": ("cuda", None, 0),
    "max_grad_norm": (0, -1.0, math.nan, "1", True),
    "master": ("bf16", True, 16),
    "rounding": (None, "random", 1),
    "seed": (-1, 2**53, 0.5, True, None),
    "process_group": ("no such group", 0, [None]),
    "state_dtype": (
        *("fp16", 8, torch.float32, {"exp_average": "8bit"}, {"moment": None}),
        *(["8bit"], np.array(["8bit"])),
    ),
    **dict.fromkeys(FLAGS, ("x", None, 2, 0.5, torch.tensor(True))),
}
SAYS = {
    "momentum": "momentum must be at least 0 and below 1",
    "dampening": "dampening must be 0, got ",
    "betas": r"betas(\[[01]\] must be at least 0 and below 1| must be a pair)",
    "friction_input": "friction_input must be one of 'product', 'normalized', got ",
    "backend": "backend must be one of 'auto', 'native', 'reference', got ",
    "max_grad_norm": "max_grad_norm must be a number above 0",
    "master": "master must be one of None, 'split', 'split8', 'fp32', got ",
    "rounding": "rounding must be one of 'nearest', 'stochastic', got ",
    "seed": r"seed must be an integer of at least 0 and below 2\*\*53, got ",
    "state_dtype": "state_dtype must be one of ",
    "process_group": "process_group ('no such group' is none of|must be a torch.distributed.Process)",
    **{flag: f"{flag} must be one of False, True, got " for flag in FLAGS},
}


OPTIONS_THAT_CAN_BE_WRONG = [
    case_of(name, option)
    for name, cls in OPTIMIZERS.items()
    for option in cls(make_params()).defaults
]


@pytest.mark.parametrize(("name", "option"), OPTIONS_THAT_CAN_BE_WRONG)
def test_bad_option_is_refused_by_the_constructor_and_by_add_param_group(name, option):
    says = SAYS.get(option, f"{option} must be at least 0|Tensor {option} must be 1-element")
    bad_options = BAD_OPTIONS[option]
    if (name, option) == ("SGD", "momentum"):  # which adds up, and does not average
        says, bad_options = "momentum must be at least 0", (-0.5, math.nan, math.inf, None)
    opt = OPTIMIZERS[name](make_params())
    for bad in bad_options:
        with pytest.raises((TypeError, ValueError), match=says):
            OPTIMIZERS[name](make_params(), **{option: bad})
        with refused(opt, (TypeError, ValueError), says):
            opt.add_param_group({"params": make_params(), option: bad})


NUMBERS = ("lr", "eps", "weight_decay", "beta3", "delta", "wd_ratio", "momentum")


@both_backends
@warm_or_not
@every_optimizer
def test_nan_set_in_a_group_is_refused_at_the_next_step(name, warm, backend):
    opt = OPTIMIZERS[name](make_params(), backend=backend)
    run(opt, warm)
    group = opt.param_groups[0]
    for param in group["params"]:
        param.grad = torch.ones_like(param)
    for option in {*NUMBERS} & group.keys():
        for bad in (math.nan, torch.tensor(math.nan)):
            kept, group[option] = group[option], bad
            with refused(opt, ValueError, f"{option} must be a number, got nan"):
                opt.step()
            group[option] = kept
    if "betas" in group:
        group["betas"] = (0.9, math.nan)
        with refused(opt, ValueError, "beta2 must be a number, got nan"):
            opt.step()


def test_checks_print_nothing_where_nothing_is_wrong(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("printed")

    monkeypatch.setattr(torch.Tensor, "__repr__", refuse)
    opt = OPTIMIZERS["SigSignAdamP"](make_params(), lr=torch.tensor(0.1), backend="reference")
    run(opt, 2)
    opt.load_state_dict(opt.state_dict())
    run(opt, 1)


@every_optimizer
def test_optimizer_steps_on_after_a_group_was_refused(name):
    opt, twin = OPTIMIZERS[name](make_params()), OPTIMIZERS[name](make_params())
    run(opt, 2)
    run(twin, 2)
    with refused(opt, ValueError, "lr must be at least 0 and finite, got -1"):
        opt.add_param_group({"params": make_params(), "lr": -1, "weight_decay": 0.5})
    run(opt, 2)
    run(twin, 2)
    for group, twin_group in zip(opt.param_groups, twin.param_groups, strict=True):
        assert all(map(torch.equal, group["params"], twin_group["params"]))


@every_optimizer
def test_unknown_option_is_refused_as_by_torch(name):
    with pytest.raises(TypeError, match="learning_rate"):
        torch.optim.AdamW(make_params(), learning_rate=0.1)
    with pytest.raises(TypeError, match="learning_rate"):
        OPTIMIZERS[name](make_params(), learning_rate=0.1)


@both_backends
@every_optimizer
def test_unknown_backend_written_into_a_group_is_refused_at_the_next_step(name, backend):
    opt = OPTIMIZERS[name](make_params(), backend=backend)
    run(opt, 2)
    opt.param_groups[0]["backend"] = "cuda"
    with refused(opt, ValueError, "backend must be one of 'auto', 'native', 'reference'.*'cuda'"):
        opt.step()
    opt.param_groups[0]["backend"] = backend
    opt.step()


# What is no number would stop a step in its midst, and what is of another kind would be read as one.
BAD_CHANGES = {
    "lr": (None, "1e-3", torch.zeros(2)),
    "weight_decay": ("a",),
    "betas": ((0.9,), ("a", 0.9), None),
    "momentum": (None,),
    "seed": (1.5, -1, None),
    "friction_input": ("x",),
    "maximize": ("x",),
    "max_grad_norm": (-1, "x"),
    "skip_nonfinite": ("x",),
    "master": ("x",),
    "state_dtype": ("x",),
    "process_group": ("x", 0),
}


@pytest.mark.parametrize("backends", ["native native", "reference reference", "native reference"])
@warm_or_not
@every_optimizer
def test_bad_option_written_into_a_group_stops_the_step_before_it_begins(name, warm, backends):
    groups = [
        {"params": [param], "backend": backend}
        for param, backend in zip(make_params(), backends.split(), strict=True)
    ]
    opt = OPTIMIZERS[name](groups)
    run(opt, warm)
    for group in opt.param_groups:
        group["params"][0].grad = noise(group["params"][0].shape, 5)
    for option in BAD_CHANGES.keys() & group.keys():
        right = group[option]
        for bad in BAD_CHANGES[option]:
            group[option] = bad
            with refused(opt, (TypeError, ValueError), rf"{option}|beta\d must be a number"):
                opt.step()
        group[option] = right
    opt.step()


@both_backends
def test_numbers_of_numpy_are_numbers(backend):
    options = {"lr": 0.125, "weight_decay": 0.25, "max_grad_norm": 0.5, "seed": 2**40 + 3}
    ours = {key: np.float32(value) for key, value in options.items()}
    ours["seed"] = np.int64(options["seed"])
    found = []
    for given in (options, ours):
        param = nn.Parameter(noise((300,), 0).bfloat16())
        opt = OPTIMIZERS["RSGDM"]([param], rounding="stochastic", backend=backend, **given)
        for step in range(2):
            param.grad = noise((300,), step).bfloat16()
            opt.step()
        found.append(param)
    assert torch.equal(*found)


# Parameters.


def add_group(opt, params):
    opt.add_param_group({"params": params})


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool], ids=str)
@every_optimizer
def test_parameter_of_integer_type_with_a_gradient_is_refused(name, dtype):
    bad = nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)
    bad.grad = torch.ones(3, dtype=dtype)
    named = [("weight", make_params()[0]), ("count", bad)]
    says = rf"parameter 1 of group 0 \('count', shape \(3,\)\) has type {dtype}.*leave it out"
    with pytest.raises(TypeError, match=says):
        OPTIMIZERS[name](named)
    opt = OPTIMIZERS[name](make_params())
    run(opt, 2)
    with refused(opt, TypeError, rf"parameter 1 of group 1 \(shape \(3,\)\) has type {dtype}"):
        add_group(opt, [make_params()[0], bad])
    with refused(opt, TypeError, rf"parameter 0 of group 1 \(shape \(3,\)\) has type {dtype}"):
        add_group(opt, bad)


@every_optimizer
def test_devices_mixed_in_one_group_are_refused(name):
    mixed = [("here", make_params()[0]), ("nowhere", nn.Parameter(torch.zeros(3, device="meta")))]
    says = (
        r"'nowhere'.* is on meta and parameter 0 of the group on cpu; put each kind .* of its own"
    )
    with pytest.raises(ValueError, match=says):
        OPTIMIZERS[name](mixed)
    opt = OPTIMIZERS[name](make_params())
    run(opt, 2)
    with refused(opt, ValueError, r"parameter 1 of group 1 .* is on meta.* of its own"):
        add_group(opt, [param for _, param in mixed])
    OPTIMIZERS[name]([{"params": [param]} for _, param in mixed])


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("tensor", TypeError),
        ({"a", "b"}, TypeError),
        ([nn.Parameter(torch.ones(2)) * 2], ValueError),
        ([nn.Parameter(torch.ones(2)), "tensor"], TypeError),
        ([("name", nn.Parameter(torch.ones(2))), nn.Parameter(torch.ones(2))], ValueError),
        ([None], TypeError),
    ],
    ids=["string", "set", "no leaf", "no tensor", "half named", "None"],
)
@every_optimizer
def test_what_torch_takes_for_no_parameters_is_refused_as_by_torch(name, bad, error):
    opt, adamw = OPTIMIZERS[name](make_params()), torch.optim.AdamW(make_params())
    with pytest.raises(error):
        add_group(adamw, bad)
    with refused(opt, error, "[a-z]{3}"):
        add_group(opt, bad)


@pytest.mark.parametrize("bad", [[], "params", None], ids=repr)
def test_group_that_is_no_dict_is_refused_as_by_torch(bad):
    opt, adamw = OPTIMIZERS["TanhSignAdamW"](make_params()), torch.optim.AdamW(make_params())
    with pytest.raises(TypeError, match="must be a dict"):
        adamw.add_param_group(bad)
    with refused(opt, TypeError, "must be a dict"):
        opt.add_param_group(bad)


@every_optimizer
def test_parameter_of_another_group_is_not_added_again(name):
    opt = OPTIMIZERS[name](make_params())
    run(opt, 2)
    with refused(opt, ValueError, "more than one parameter group"):
        add_group(opt, [*make_params(), opt.param_groups[0]["params"][1]])
    run(opt, 1)


@every_optimizer
def test_optimizer_without_parameters_is_refused(name):
    with pytest.raises(ValueError, match="empty parameter list"):
        OPTIMIZERS[name]([])


@both_backends
@warm_or_not
@every_optimizer
def test_parameter_whose_elements_share_memory_is_refused(name, warm, backend):
    good = make_params()[0]
    bad = torch.zeros(1).expand(4).requires_grad_()
    opt = OPTIMIZERS[name]([("good", good), ("bad", bad)], backend=backend)
    for step in range(warm):
        good.grad = noise((3, 4), step)
        opt.step()
    good.grad, bad.grad = noise((3, 4), 7), torch.ones(4)
    says = r"parameter 1 of group 0 \('bad', shape \(4,\)\).*share memory.*clone\(\)"
    with refused(opt, RuntimeError, says):
        opt.step()


@warm_or_not
@every_optimizer
def test_parameter_whose_rows_overlap_is_refused_natively(name, warm):
    good = make_params()[0]
    bad = torch.zeros(5).as_strided((3, 3), (1, 1)).requires_grad_()
    opt = OPTIMIZERS[name]([("good", good), ("bad", bad)], backend="native")
    for step in range(warm):
        good.grad = noise((3, 4), step)
        opt.step()
    good.grad, bad.grad = noise((3, 4), 7), torch.ones(3, 3)
    with refused(opt, RuntimeError, r"parameter 1 of group 0 \('bad', .* share memory.*clone\(\)"):
        opt.step()


@both_backends
@warm_or_not
@every_optimizer
def test_state_whose_elements_share_memory_is_refused(name, warm, backend):
    opt = OPTIMIZERS[name](make_params(), backend=backend)
    run(opt, 1 + warm)
    param = opt.param_groups[0]["params"][1]
    key = next(key for key in opt.state[param] if key != "step")
    opt.state[param][key] = torch.zeros(1).expand(5)
    with refused(opt, RuntimeError, "parameter 1 of group 0 .*share memory"):
        opt.step()


@both_backends
@every_optimizer
def test_meta_parameter_with_a_gradient_is_refused(name, backend):
    good, bad = make_params()[0], nn.Parameter(torch.zeros(3, device="meta"))
    groups = [
        {"params": [("good", good)], "backend": backend},
        {"params": [("bad", bad)], "backend": "auto"},
    ]
    opt = OPTIMIZERS[name](groups)
    for step in range(2):
        good.grad = noise((3, 4), step)
        opt.step()
    bad.grad = torch.zeros(3, device="meta")
    says = r"parameter 0 of group 1 \('bad', shape \(3,\)\) is on the meta device.*to_empty\(\)"
    with refused(opt, RuntimeError, says):
        opt.step()


# Gradients.


@both_backends
@warm_or_not
@every_optimizer
def test_sparse_gradient_is_refused(name, warm, backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(6, 4, sparse=True), nn.Linear(4, 2))
    opt = OPTIMIZERS[name](model.named_parameters(), backend=backend)
    run(opt, warm)
    opt.zero_grad()
    model(torch.tensor([1, 2])).sum().backward()
    assert model[0].weight.grad.is_sparse
    says = r"parameter 0 of group 0 \('0.weight', shape \(6, 4\)\) has a sparse.*sparse=False"
    for _ in range(2):
        with refused(opt, RuntimeError, says):
            opt.step()
    model[0].weight.grad = model[0].weight.grad.to_dense()
    before = model[0].weight.detach().clone()
    opt.step()
    assert not torch.equal(model[0].weight, before)


@both_backends
@warm_or_not
@every_optimizer
def test_gradient_of_another_shape_is_refused(name, warm, backend):
    opt = OPTIMIZERS[name]([("a", make_params()[0]), ("b", make_params()[1])], backend=backend)
    run(opt, max(warm, 1))
    if not warm:
        opt.state.clear()
    param = opt.param_groups[0]["params"][1]
    param.data = torch.zeros(7)
    says = r"parameter 1 of group 0 \('b', shape \(7,\)\) has a gradient of shape \(5,\).*zero_grad"
    with refused(opt, RuntimeError, says):
        opt.step()


# States put in by hand.


@both_backends
@pytest.mark.parametrize("index", [0, 1])
@every_optimizer
def test_state_that_does_not_fit_is_refused(name, index, backend):
    params = make_params()
    opt = OPTIMIZERS[name]([("a", params[0]), ("b", params[1])], backend=backend)
    run(opt, 2)
    state, called = opt.state[params[index]], f"parameter {index} of group 0 .*'{'ab'[index]}'"
    for key in [key for key in state if key != "step"]:
        right = state[key]
        state[key] = torch.zeros(2, 2)
        says = rf"{called}.*'{key}' of shape \(2, 2\) where .* delete its state, or load one with"
        with refused(opt, RuntimeError, says):
            opt.step()
        state[key] = torch.zeros_like(right, device="meta")
        says = rf"{called}.* is on cpu, state '{key}' on meta; .*load_state_dict"
        with refused(opt, RuntimeError, says):
            opt.step()
        state[key] = right
    opt.step()


@both_backends
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("count", [-1.0, 2.5, math.nan, math.inf, 2.0**54])
@every_optimizer
def test_step_count_that_is_none_is_refused(name, count, index, backend):
    params = make_params()
    opt = OPTIMIZERS[name]([("a", params[0]), ("b", params[1])], backend=backend)
    run(opt, 2)
    state = opt.state[params[index]]
    says = (
        rf"state 'step' of parameter {index} of group 0 \('{'ab'[index]}'.* must be a count of "
        r"steps, a whole number from 0 to 2\*\*53, got"
    )
    for write in (state["step"].fill_, lambda count: state.update(step=torch.tensor(count))):
        write(count)
        with refused(opt, RuntimeError, says):
            opt.step()
    state["step"].fill_(2.0)
    opt.step()


@both_backends
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("name", "key"),
    [case_of(name, key) for name, cls in OPTIMIZERS.items() for key in ("step", *cls.rule.states)],
)
def test_state_that_lacks_a_tensor_is_refused(name, key, index, backend):
    params = make_params()
    opt = OPTIMIZERS[name]([("a", params[0]), ("b", params[1])], backend=backend)
    run(opt, 2)
    right = opt.state[params[index]].pop(key)
    says = (
        rf"parameter {index} of group 0 \('{'ab'[index]}'.* has no state '{key}'; .*load_state_dict"
    )
    with refused(opt, RuntimeError, says):
        opt.step()
    opt.state[params[index]][key] = right
    opt.step()


@both_backends
@pytest.mark.parametrize(
    "bad",
    [3, torch.zeros(2), torch.zeros((), device="meta")],
    ids=["Python number", "two", "meta"],
)
@every_optimizer
def test_step_count_that_is_no_single_number_is_refused(name, bad, backend):
    params = make_params()
    opt = OPTIMIZERS[name](params, backend=backend)
    run(opt, 2)
    opt.state[params[1]]["step"] = bad
    with refused(opt, RuntimeError, "parameter 1 of group 0 .*'step'"):
        opt.step()


@both_backends
@every_optimizer
def test_float32_state_of_a_float64_parameter_is_refused(name, backend):
    param = nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = OPTIMIZERS[name]([param], backend=backend)
    param.grad = torch.ones(3, dtype=torch.float64)
    opt.step()
    state = opt.state[param]
    key = next(key for key in state if key != "step")
    state[key] = state[key].float()
    says = rf"parameter 0 of group 0 .*float64, state '{key}' torch.float32; .*load_state_dict"
    with refused(opt, RuntimeError, says):
        opt.step()


# Backends.


@warm_or_not
@every_optimizer
def test_native_refuses_a_tensor_subclass_and_says_why(name, warm):
    good, odd = make_params()[0], noise((5,), 1).as_subclass(Odd).requires_grad_()
    opt = OPTIMIZERS[name]([("good", good), ("odd", odd)], backend="native")
    for step in range(warm):
        good.grad = noise((3, 4), step)
        opt.step()
    good.grad, odd.grad = noise((3, 4), 9), noise((5,), 9)
    says = r"parameter 1 of group 0 \('odd', shape \(5,\)\): it is a Odd.*use backend='auto'"
    with refused(opt, RuntimeError, says):
        opt.step()


@every_optimizer
def test_auto_serves_a_tensor_subclass_by_the_reference(name):
    params = [make_params()[0], noise((5,), 1).as_subclass(Odd).requires_grad_()]
    good, plain = make_params()
    run(OPTIMIZERS[name](params, backend="auto"), 3)
    run(OPTIMIZERS[name]([good], backend="native"), 3)
    reference = OPTIMIZERS[name]([{"params": [plain]}], backend="reference")
    for step in range(3):
        plain.grad = noise((5,), 100 * (step + 1) + 1)
        reference.step()
    assert torch.equal(params[0], good)
    assert torch.equal(params[1].as_subclass(torch.Tensor), plain)
    assert isinstance(params[1], Odd)


@every_optimizer
def test_what_auto_gives_to_the_reference_is_warned_of_once(name):
    def stepped(backend):
        odd = [noise((5,), seed).as_subclass(Odd).requires_grad_() for seed in range(3)]
        opt = OPTIMIZERS[name]([{"params": make_params()}, {"params": odd}], backend=backend)
        for _ in range(3):
            for param in odd[:2]:  # the third has no gradient
                param.grad = noise((5,), 7)
            opt.step()

    says = r"parameter 0 of group 1 \(shape \(5,\)\) and 1 more cannot be served .*: it is a Odd.* backend="
    with pytest.warns(UserWarning, match=says) as warned:
        stepped("auto")
    assert len(warned) == 1 and warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped("reference")


@every_optimizer
def test_auto_serves_a_gradient_of_a_tensor_subclass(name):
    params, twins = make_params(), make_params()
    opt, twin_opt = OPTIMIZERS[name](params), OPTIMIZERS[name](twins)
    for step in range(3):
        for index, (param, twin) in enumerate(zip(params, twins, strict=True)):
            twin.grad = noise(twin.shape, 10 * step + index)
            param.grad = twin.grad.clone().as_subclass(Odd)
        opt.step()
        twin_opt.step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param, twin, rtol=1e-6, atol=1e-7)


@pytest.fixture
def no_native(monkeypatch):
    """As if the extension had not been built."""
    says = "friction_kernels._native cannot be imported (not here); install with `pip install .`"

    def forget():
        backends.tensor_reader.cache_clear()
        backends.native_unavailable_reason.cache_clear()

    with monkeypatch.context() as patch:
        patch.setattr(backends, "native", None)
        patch.setattr(backends, "_import_error", says, raising=False)
        forget()
        yield
    forget()


@every_optimizer
def test_without_the_extension_native_is_refused_with_the_reason(name, no_native):
    says = r"_native cannot be imported \(not here\); install with `pip install .`.*backend='auto'"
    with pytest.raises(RuntimeError, match=says):
        OPTIMIZERS[name](make_params(), backend="native")
    opt = OPTIMIZERS[name](make_params())
    run(opt, 2)
    with refused(opt, RuntimeError, says):
        opt.add_param_group({"params": make_params(), "backend": "native"})
    opt.param_groups[0]["backend"] = "native"
    with refused(opt, RuntimeError, says.replace("`.*", "`; use ")):
        opt.step()


@every_optimizer
def test_without_the_extension_auto_works_by_the_reference(name, no_native):
    params, twins = make_params(), make_params()
    run(OPTIMIZERS[name](params, backend="auto"), 3)
    run(OPTIMIZERS[name](twins, backend="reference"), 3)
    for param, twin, start in zip(params, twins, make_params(), strict=True):
        assert torch.equal(param, twin)
        assert not torch.equal(param, start)


def test_without_the_extension_describe_says_why(no_native):
    lines = backends.describe()
    says = "friction_kernels._native cannot be imported (not here); install with `pip install .`"
    assert lines["backend native, CPU"] == f"inactive: {says}"
    assert lines["backend reference"].startswith("active")


WITHOUT_EXTENSION = """
import runpy, sys
sys.modules["friction_kernels._native"] = None

import torch
from friction_kernels import RSGDM, count_launches, friction_stats, TanhSignAdamW

param = torch.ones(3, requires_grad=True)
param.grad = torch.ones(3)
opt = TanhSignAdamW([param])
with count_launches() as launches:
    assert friction_stats(opt)[0].count == 3
    opt.step()
assert (param < 1).all() and launches.total == 0
try:
    RSGDM([param], backend="native")
except RuntimeError as error:
    print(error)
runpy.run_module("friction_kernels", run_name="__main__")
"""


def test_package_works_where_the_extension_cannot_be_imported():
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTENSION], capture_output=True, encoding="utf-8"
    )
    assert process.returncode == 0, process.stderr
    refusal, *lines = process.stdout.splitlines()
    assert "backend='native' cannot serve: friction_kernels._native cannot be imported" in refusal
    (why,) = (line for line in lines if line.startswith("backend native, CPU"))
    assert "inactive: friction_kernels._native cannot be imported" in why
    assert "import of friction_kernels._native halted" in why and "`pip install " in why


def test_torch_without_the_exchange_interface_leaves_the_reference(monkeypatch):
    class Old(torch.Tensor):
        __dlpack_c_exchange_api__ = None

    monkeypatch.setattr(backends.torch, "Tensor", Old)
    backends.tensor_reader.cache_clear()
    backends.native_unavailable_reason.cache_clear()
    try:
        reason = backends.native_unavailable_reason()
    finally:
        backends.tensor_reader.cache_clear()
        backends.native_unavailable_reason.cache_clear()
    assert f"torch {torch.__version__}" in reason
    assert "__dlpack_c_exchange_api__; install torch 2.11 or newer" in reason


@every_optimizer
def test_a_number_given_as_text_is_refused(name):
    with pytest.raises(TypeError, match="lr must be at least 0 and finite, got '1e-3'"):
        OPTIMIZERS[name](make_params(), lr="1e-3")


def in_graph(**attributes):
    parameter = {"is_cuda": True, "grad": object(), "requires_grad": True, "shape": (3,)}
    parameter["device"] = torch.device("cuda")
    return SimpleNamespace(**{**parameter, **attributes})


def test_what_a_cuda_graph_would_leave_out_is_refused():
    whole = {"params": [in_graph(), in_graph(grad=None, requires_grad=False)], "capturable": True}
    checks.check_captured([whole])
    checks.check_captured([{"params": [in_graph(is_cuda=False, grad=None)], "capturable": False}])
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 1 .*capturable=True"):
        checks.check_captured([whole, {"params": [in_graph()], "capturable": False}])
    with pytest.raises(
        RuntimeError, match=r"parameter 1 of group 0 .*no gradient while a CUDA graph"
    ):
        checks.check_captured([{"params": [in_graph(), in_graph(grad=None)], "capturable": True}])
    with pytest.raises(ValueError, match="lr is a tensor on cpu and a parameter is on cuda"):
        checks.check_captured([{**whole, "lr": torch.tensor(0.1)}])


def test_a_friction_input_misspelt_in_a_group_is_found_by_the_step():
    [param] = params = [nn.Parameter(torch.ones(3))]
    opt = OPTIMIZERS["SigSignAdamW"](params, backend="native")
    param.grad = torch.ones(3)
    opt.param_groups[0]["friction_input"] = "normalised"
    with pytest.raises(ValueError, match="friction_input must be one of 'product', 'normalized'"):
        opt.step()
    assert torch.equal(param, torch.ones(3))


def test_a_capturable_step_reads_settings_of_its_own_device():
    meta = nn.Parameter(torch.ones(3, device="meta"))
    with pytest.raises(ValueError, match=r"lr is a tensor on cpu and a parameter is on meta"):
        OPTIMIZERS["RSGDM"]([meta], lr=torch.tensor(0.1), capturable=True)
    with pytest.raises(ValueError, match="capturable must be one of False, True, got 'yes'"):
        OPTIMIZERS["RSGDM"]([nn.Parameter(torch.ones(3))], capturable="yes")


@both_backends
@every_optimizer
def test_a_group_that_becomes_capturable_is_looked_at_anew(name, backend):
    params, elsewhere = make_params(), nn.Parameter(torch.ones(3, device="meta"))
    groups = [{"params": params}, {"params": [elsewhere], "lr": torch.tensor(0.1)}]
    opt = OPTIMIZERS[name](groups, backend=backend)
    for step in range(2):
        params[0].grad = noise((3, 4), step)
        opt.step()
    opt.param_groups[1]["capturable"] = True
    with refused(opt, ValueError, "lr is a tensor on cpu and a parameter is on meta"):
        opt.step()
    opt.param_groups[1]["capturable"] = "yes"
    with refused(opt, ValueError, "capturable must be one of False, True, got 'yes'"):
        opt.step()
    opt.param_groups[1]["capturable"] = False
    opt.step()


IMPORTED_ON_META = """
import torch
with torch.device("meta"):
    import friction_kernels
    from friction_kernels import integrations, losses
param = torch.nn.Parameter(torch.ones(300, dtype=torch.bfloat16))
param.grad = torch.ones_like(param)
friction_kernels.SigSignAdamW([param], lr=0.1, state_dtype="8bit", backend="reference").step()
assert (param < 1).all()
"""


def test_package_may_be_imported_where_another_device_is_the_default():
    subprocess.run([sys.executable, "-c", IMPORTED_ON_META], check=True)
