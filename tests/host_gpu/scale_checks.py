"""Run by tests/test_cuda_plan.py in a process of its own, where the host stands for a GPU: what is stored
in few bits, norms, and steps that are scaled or skipped. The processor's kernels are the oracle."""

import math

import pytest
import torch
from plan_driver import (
    BLOCK,
    CHUNK,
    MASTERS,
    PROJECTED,
    QUANTIZED,
    STATES,
    Driven,
    Form,
    quantized_bytes,
)

from friction_kernels import count_launches

FLOAT, BFLOAT, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
SIZES = [1, 255, 256, 257, 2047, 2048, 2049, 5 * 2048, 7000, 4096 + 8]
ODD_SIZES = [1, 257, 2049, 4096]
PARAMS = [
    (FLOAT, None, None, False),
    (FLOAT, BFLOAT, None, False),
    *((kind, None, name, False) for kind in (BFLOAT, HALF) for name in (None, *MASTERS)),
    (BFLOAT, FLOAT, "split", False),
    (HALF, DOUBLE, "fp32", False),
    (BFLOAT, None, None, True),
    (HALF, FLOAT, None, True),
]
STATE_KINDS = [FLOAT, BFLOAT, HALF, QUANTIZED]
MIXED_STATES = [(QUANTIZED, FLOAT, BFLOAT), (FLOAT, FLOAT, QUANTIZED), (BFLOAT, QUANTIZED, HALF)]
MATRICES = [(7,), (40, 3), (3, 700), (2, 2500), (64, 40), (1, 5000), (300, 31), (33, 1), (8, 3, 3)]


@pytest.fixture
def on_the_processor(monkeypatch):
    """Runs a function with the processor's kernels."""

    def run(function):
        monkeypatch.setenv("FRICTION_HOST_IS_HOST", "1")
        made = function()
        monkeypatch.delenv("FRICTION_HOST_IS_HOST")
        return made

    return run


def after(rule, forms, steps=3, on_device=False, **settings) -> Driven:
    driven = Driven(rule, forms, seed=3, on_device=on_device)
    start = driven.bits()
    for _ in range(steps):
        driven.new_gradients()
        assert driven.step(*[settings] * len(driven.param_groups)) is None
    assert driven.bits() != start
    return driven


@pytest.mark.parametrize("layout", ["contiguous", "offset", "gaps"])
@pytest.mark.parametrize(("param", "grad", "master", "stochastic"), PARAMS)
@pytest.mark.parametrize("rule", ["adam", "friction_adam", "sgd"])
def test_every_form_gives_the_processors_bits(
    rule, param, grad, master, stochastic, layout, on_the_processor
):
    sizes = SIZES if layout == "contiguous" else ODD_SIZES
    for states in STATE_KINDS + (MIXED_STATES if rule == "friction_adam" else []):
        forms = [
            Form((size,), param, grad, states, master, stochastic, layout=layout) for size in sizes
        ]
        for settings in ({"normalized": 1.0}, {"maximize": 1.0, "grad_factor": 0.3}):
            ours = after(rule, forms, **settings)
            theirs = on_the_processor(lambda: after(rule, forms, **settings))  # noqa: B023
            assert ours.bits() == theirs.bits(), (states, settings)


def test_all_forms_together_are_a_launch_for_each_kind_of_kernel(on_the_processor):
    """8 bits, mixed types, and those that have kernels of their own; in groups of their own settings."""
    forms = [
        Form((1000,), param, grad, states, master, stochastic, group=i % 3)
        for i, (param, grad, master, stochastic) in enumerate(PARAMS)
        for states in STATE_KINDS + MIXED_STATES
    ]
    forms += [Form((1000,), FLOAT), Form((9,), DOUBLE, states=DOUBLE)]
    forms += [Form((77,), BFLOAT, states=(FLOAT, FLOAT, BFLOAT))] * 700
    groups = [{"lr": 0.01}, {"lr": 0.02, "seed": 9.0}, {"lr": 0.1, "normalized": 1.0}]

    def run() -> Driven:
        driven = Driven("friction_adam", forms)
        for _ in range(3):
            driven.new_gradients()
            with count_launches() as launches:
                assert driven.step(*groups) is None
        driven.launches = dict(launches)
        return driven

    ours = run()
    assert ours.launches["friction_adam"] == 5  # float32, bfloat16, mixed, float64, quantized
    assert ours.bits() == on_the_processor(run).bits()


@pytest.mark.parametrize("grad", [math.nan, math.inf, -math.inf, 1e30, 0.0])
@pytest.mark.parametrize("states", [QUANTIZED, MIXED_STATES[0]])
def test_extreme_gradients_give_the_processors_bits(states, grad, on_the_processor):
    def run() -> Driven:
        driven = Driven("friction_adam", [Form((3000,), states=states)] * 2)
        for _ in range(2):
            driven.new_gradients()
            driven.params[0].grad[777] = grad
            driven.params[1].grad.fill_(grad)
            assert driven.step() is None
        return driven

    assert run().numbers() == on_the_processor(run).numbers()


# AdamP: decisions and coefficients rest on sums of another order, states do not.


@pytest.mark.parametrize("delta", [0.0, 0.1, 3.0, 100.0])
@pytest.mark.parametrize(("param", "grad", "master", "stochastic"), PARAMS)
@pytest.mark.parametrize("states", [FLOAT, QUANTIZED, MIXED_STATES[0]])
@pytest.mark.parametrize("rule", ["adamp", "friction_adamp"])
def test_adamp_of_every_form(
    rule, states, param, grad, master, stochastic, delta, on_the_processor
):
    if isinstance(states, tuple):
        states = states[: len(STATES[rule])]
    forms = [Form(shape, param, grad, states, master, stochastic) for shape in MATRICES]
    settings = {"delta": delta, "grad_factor": 0.125}
    ours = after(rule, forms, **settings)
    theirs = on_the_processor(lambda: after(rule, forms, **settings))
    for p, q in zip(ours.params, theirs.params, strict=True):
        for key in STATES[rule]:
            assert torch.equal(ours.state[p][key], theirs.state[q][key]), (p.shape, key)
        difference = (p.detach().double() - q.detach().double()).abs().max()
        assert difference <= 1e-4 * 0.01 + torch.finfo(param).eps * q.detach().abs().max()


# Stochastic rounding.


@pytest.mark.parametrize("states", [FLOAT, QUANTIZED])
@pytest.mark.parametrize("param", [BFLOAT, HALF])
@pytest.mark.parametrize(
    "shard", [(0, 5000, 5000), (3, 5000, 5000), (16, 100, 128), (7, 96, 288), (2**33 + 5, 50, 99)]
)
def test_shards_draw_the_processors_random_numbers(shard, param, states, on_the_processor):
    forms = [
        Form((size,), param, states=states, stochastic=True, shard=shard) for size in (1, 300, 4096)
    ]
    ours = after("friction_adam", forms)
    assert ours.bits() == on_the_processor(lambda: after("friction_adam", forms)).bits()


def test_shards_are_rounded_as_the_whole_is():
    whole = Driven("friction_adam", [Form((5000,), BFLOAT, stochastic=True)], seed=1)
    parts = [
        Driven("friction_adam", [Form((2500,), BFLOAT, stochastic=True, shard=(at, 2500, 2500))])
        for at in (0, 2500)
    ]
    [param] = whole.params
    for part, start in zip(parts, (0, 2500), strict=True):
        part.params[0].data.copy_(param.data[start : start + 2500])
    for _ in range(3):
        whole.new_gradients()
        for part, start in zip(parts, (0, 2500), strict=True):
            part.params[0].grad = param.grad[start : start + 2500].clone()
        for driven in (whole, *parts):
            assert driven.step() is None
    assert torch.equal(param, torch.cat([part.params[0] for part in parts]))


# What is known on the device alone.


def number(value, dtype=FLOAT) -> torch.Tensor:
    return torch.tensor([value], dtype=dtype)


RULES = ["adam", "friction_adam", "sgd", "adamp", "friction_adamp"]
GUARDED = [
    Form((40, 60), group=0),
    Form((3, 700), BFLOAT, states=QUANTIZED, master="split", group=1),
    Form((300,), HALF, states=(FLOAT,), stochastic=True, group=1),
]


def scaled_forms(rule) -> list[Form]:
    return [
        Form(f.shape, f.param, states=f.states if f.states == QUANTIZED else FLOAT, group=f.group,
             master=f.master, stochastic=f.stochastic)
        for f in GUARDED
    ]  # fmt: skip


@pytest.mark.parametrize("max_norm", [0.5, 1e6, math.inf])
@pytest.mark.parametrize("grad_scale", [None, 1024.0, 3.0])
@pytest.mark.parametrize("rule", RULES)
def test_gradients_are_scaled_and_clipped_as_the_processor_is_told_to(
    rule, grad_scale, max_norm, on_the_processor
):
    forms = scaled_forms(rule)
    ours = Driven(rule, forms)
    ours.new_gradients()
    squared = sum(param.grad.double().square().sum().item() for param in ours.params)
    scale = None if grad_scale is None else number(grad_scale)
    scaling = [(0, number(squared, DOUBLE), scale, None, False)]
    # The first group alone is clipped.
    assert ours.step({"max_norm": max_norm, "grad_factor": 0.7}, {}, scaling=scaling) is None

    scale = grad_scale or 1.0
    clip = min(1.0, max_norm / (math.sqrt(squared) / scale + 1e-6))
    factors = [0.7 * (clip / scale), 1 / scale]

    def run() -> Driven:
        driven = Driven(rule, forms)
        driven.new_gradients()
        assert driven.step(*({"grad_factor": factor} for factor in factors)) is None
        return driven

    theirs = on_the_processor(run)
    if rule in PROJECTED:  # see above
        for p, q in zip(ours.params, theirs.params, strict=True):
            for key in STATES[rule]:
                assert torch.equal(ours.state[p][key], theirs.state[q][key])
    else:
        assert ours.bits() == theirs.bits()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "scaling",
    [
        lambda value: (None, None, number(float(not math.isfinite(value))), False),
        lambda value: (number(value, DOUBLE), number(2.0), None, True),
        lambda value: (number(value, DOUBLE), None, number(0.0), True),
    ],
    ids=["found_inf", "squared", "both"],
)
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_skipped_step_changes_nothing_and_counts_no_step(rule, scaling, bad):
    driven = Driven(rule, scaled_forms(rule), on_device=True)
    driven.new_gradients()
    assert driven.step() is None
    before = driven.bits()
    driven.new_gradients()
    assert driven.step(scaling=[(0, *scaling(bad))]) is None
    assert driven.bits() == before
    assert driven.step(scaling=[(0, *scaling(2.0))]) is None
    after_it = driven.bits()
    assert all(a != b for a, b in zip(after_it, before, strict=True))
    assert [state["step"].item() for state in driven.state.values()] == [2.0] * len(GUARDED)


# Gradients that are taken.


def kept_forms(takes: bool) -> list[Form]:
    """Of every size of gradients and of their states, aligned and not, and with gaps."""
    return [
        Form(shape, param, states=(FLOAT, FLOAT, param), master=master, layout=layout, takes=takes)
        for shape in ((5,), (4096,), (2049,), (64, 40))
        for layout in ("contiguous", "offset", "gaps")
        for param, master in ((FLOAT, None), (BFLOAT, None), (BFLOAT, "split"))
    ]


@pytest.mark.parametrize("factor", [1.0, 0.7])
@pytest.mark.parametrize("rule", ["friction_adam", "friction_adamp"])
def test_taken_gradients_give_the_numbers_of_copied_ones(rule, factor):
    made = []
    for takes in (True, False):
        driven = Driven(rule, kept_forms(takes), seed=3)
        for _ in range(3):
            driven.new_gradients()
            memory = [param.grad.data_ptr() for param in driven.params]
            scaling = [(0, None, number(1 / factor), None, False)]
            assert driven.step(scaling=scaling) is None
            if takes:
                kept = [driven.state[param]["prev_grad"].data_ptr() for param in driven.params]
                assert kept == memory and all(param.grad is None for param in driven.params)
        made.append(driven.bits())
    assert made[0] == made[1]


@pytest.mark.parametrize("rule", ["friction_adam", "friction_adamp"])
def test_a_skipped_step_that_takes_gradients_leaves_what_was_kept(rule):
    driven = Driven(rule, kept_forms(takes=True), on_device=True)
    driven.new_gradients()
    assert driven.step() is None
    before = driven.bits()
    driven.new_gradients()
    assert driven.step(scaling=[(0, None, None, number(1.0), False)]) is None
    assert all(param.grad is None for param in driven.params)
    assert driven.bits() == before


def test_steps_counted_on_the_device_give_the_bits_of_those_counted_here():
    forms = [Form((size,), BFLOAT, None, QUANTIZED, None, True) for size in SIZES]
    ours, theirs = (after("friction_adam", forms, on_device=flag) for flag in (True, False))
    assert ours.bits() == theirs.bits()


@pytest.mark.parametrize("skip", [(None, None, number(0.0), False), (None, None, None, True)])
def test_a_step_that_may_be_skipped_must_be_counted_on_the_device(skip):
    driven = Driven("friction_adam", [Form((5,))])
    driven.new_gradients()
    before = driven.bits()
    entry, what = driven.step(scaling=[(0, *skip)])
    assert entry == 0 and "capturable=True" in what
    assert driven.bits() == before
    assert driven.step(scaling=[(0, number(1.0, DOUBLE), number(2.0), None, False)]) is None


def test_scaling_of_other_types_or_devices_are_refused():
    driven = Driven("friction_adam", [Form((5,))])
    driven.new_gradients()
    for wrong in (
        (0, number(1.0), None, None, False),
        (0, None, number(1.0, DOUBLE), None, False),
        (0, None, None, torch.zeros(2), False),
        (1, None, number(1.0), None, False),
    ):
        with pytest.raises(ValueError, match="a scaling number is one number on its device"):
            driven.step(scaling=[wrong])


# The norm.


def squared_norm(driven, counted) -> float:
    target = number(-1.0, DOUBLE)
    problem = driven.squared_norm(counted, [(0, target)])
    assert problem is None
    return target.item()


@pytest.mark.parametrize("layout", ["contiguous", "offset", "gaps"])
@pytest.mark.parametrize("master", [None, "split"])
def test_one_launch_sums_gradients_of_all_types_and_groups(layout, master):
    types = [FLOAT, BFLOAT, HALF, DOUBLE]
    forms = [
        Form((size,), BFLOAT, grad, QUANTIZED, master, layout=layout, group=i % 3)
        for i, (size, grad) in enumerate((size, grad) for size in SIZES for grad in types)
    ]
    driven = Driven("friction_adam", forms)
    for groups in ([True] * 3, [True, False, True], [False] * 3):
        counted = [groups[form.group] for form in driven.forms]
        driven.new_gradients()
        before = driven.bits()
        with count_launches() as launches:
            found = squared_norm(driven, counted)
        assert launches["squared_norm"] == 1
        exact = sum(
            param.grad.double().square().sum().item()
            for param, counts in zip(driven.params, counted, strict=True)
            if counts
        )
        assert found == pytest.approx(exact, rel=1e-6)
        assert squared_norm(driven, counted) == found
        assert driven.bits() == before
    assert driven.step() is None


def test_the_norm_of_thousands_of_gradients_and_of_none():
    driven = Driven("sgd", [Form((3,))] * 5000)
    assert squared_norm(driven, [True] * len(driven.params)) == 0.0
    for _ in range(3):
        driven.new_gradients()
        exact = sum(param.grad.double().square().sum().item() for param in driven.params)
        assert squared_norm(driven, [True] * len(driven.params)) == pytest.approx(exact, rel=1e-6)


def test_the_norm_in_a_graph_uses_memory_of_its_own(monkeypatch):
    driven = Driven("sgd", [Form((300,), layout="gaps")] * 5)
    driven.new_gradients()
    found = squared_norm(driven, [True] * len(driven.params))
    monkeypatch.setenv("FRICTION_HOST_CAPTURES", "1")
    assert squared_norm(driven, [True] * len(driven.params)) == found
    assert driven.kept
    driven.new_gradients()
    kept = [memory.clone() for memory in driven.kept]
    monkeypatch.delenv("FRICTION_HOST_CAPTURES")
    assert squared_norm(driven, [True] * len(driven.params)) != found
    assert torch.equal(driven.kept[0], kept[0])


def test_a_norm_without_a_place_to_go_is_refused():
    driven = Driven("sgd", [Form((3,))])
    driven.new_gradients()
    with pytest.raises(ValueError, match="no target for a device"):
        driven.squared_norm([True], [])


def test_states_of_types_without_kernels_are_refused():
    driven = Driven("friction_adam", [Form((9,)), Form((9,), states=(FLOAT, DOUBLE, FLOAT))])
    driven.new_gradients()
    before = driven.bits()
    entry, what = driven.step()
    assert entry == 1 and "load_state_dict" in what
    assert driven.bits() == before


# Bytes.


@pytest.mark.parametrize(
    ("rule", "states", "expected"),
    [
        ("adam", FLOAT, 28),
        ("adam", QUANTIZED, 16),
        ("friction_adam", FLOAT, 36),
        ("friction_adam", (FLOAT, FLOAT, BFLOAT), 32),
        ("friction_adam", (FLOAT, FLOAT, QUANTIZED), 30),
        ("friction_adam", QUANTIZED, 18),
        ("sgd", FLOAT, 20),
        ("sgd", QUANTIZED, 14),
    ],
)
def test_lists_move_as_many_bytes_as_designed(rule, states, expected):
    """Everything that is written is read first; scales come to 8 bytes for each block of a list."""
    numel = 100 * CHUNK
    driven = Driven(rule, [Form((numel,), states=states)])
    driven.new_gradients()
    [param], [state] = driven.params, driven.state.values()
    lists = [param, *(state[key] for key in STATES[rule])]
    moved = param.grad.nbytes + sum(2 * tensor.nbytes for tensor in lists)
    scales = sum(2 * (quantized_bytes(numel) - numel) for key in STATES[rule]
                 if state[key].dtype == QUANTIZED)  # fmt: skip
    assert (moved - scales) / numel == expected
    assert scales / numel <= 3 * 8 / BLOCK
