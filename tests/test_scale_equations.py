"""Steps with options of precision against the equations in float64, with the same quantisers in Python.

What is kept is rounded: a number near a boundary may go either way. So of each list a step may leave few
numbers, CROSSED of them, off by more than the arithmetic's error, and none by more than its format's step.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import LAYOUTS, lay_out, options_of
from torch import Tensor, nn

from friction_kernels import OPTIMIZERS
from friction_kernels.optim.companions import join, split
from friction_kernels.optim.packed import pack, threshold_of, unpack
from friction_kernels.optim.rounding import RandomKey, round_from, round_stochastically
from friction_kernels.optim.states import read_list, read_wide
from friction_kernels.optim.walk import Walk

# Arithmetic: in units of float32's rounding error, of the stored number and of the terms of its change,
# which may cancel; a clipping factor comes from a sum in another order. As in tolerances.py.
STORED_ULPS, CHANGE_ULPS = 4, 128
EPS = torch.finfo(torch.float32).eps
CROSSED, FEW = 0.02, 2
# A place of a parameter with 8 bits more is 32 (fp16) or 128 (bf16) of float32's: more are near a boundary.
CROSSED_SPLIT8 = 1 / 8
# Steps of the formats, relative to the number (and, of codes, to the block's largest).
BF16_STEP, CODE_STEP = 2.0**-7, 1 / 15
CODE_FLOOR = {True: 1 / 240 / 15, False: 1 / 61680 / 15}

state_types = st.sampled_from([None, "fp32", "bf16", "8bit", "8bit"])


@dataclass(frozen=True)
class Case:
    name: str
    options: dict
    kept: dict
    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str
    step: int
    seed: int


@st.composite
def cases(draw):
    name = draw(st.sampled_from(sorted(OPTIMIZERS)))
    states = OPTIMIZERS[name].state_lists
    kept = {
        "master": draw(st.sampled_from([None, None, "split", "split8", "fp32"])),
        "seed": draw(st.sampled_from([0, 2**40 + 5])),
        "max_grad_norm": draw(st.sampled_from([None, 0.5, math.inf])),
        "state_dtype": draw(
            st.one_of(state_types, st.fixed_dictionaries({state: state_types for state in states}))
        ),
    }
    if kept["master"] is None:
        kept["rounding"] = draw(st.sampled_from(["stochastic", "nearest"]))
    return Case(
        name,
        draw(st.fixed_dictionaries(options_of(name))),
        kept,
        draw(st.sampled_from([(), (5,), (257,), (2051,), (30, 40), (8, 3, 3, 4), (3, 700)])),
        draw(st.sampled_from([torch.bfloat16, torch.float16, torch.float32])),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.sampled_from([1, 2, 8, 1000])),
        draw(st.integers(0, 9999)),
    )


def start(case: Case, backend: str):
    """An optimizer whose states are not zero, about to make step `case.step`."""
    generator = torch.Generator().manual_seed(case.seed)
    values = [torch.randn(case.shape, generator=generator).to(case.dtype) for _ in range(3)]
    param = nn.Parameter(lay_out(values[0], case.layout))
    opt = OPTIMIZERS[case.name]([param], backend=backend, **case.options, **case.kept)
    param.grad = lay_out(values[1], case.layout)
    opt.step()
    opt.state[param]["step"].fill_(case.step - 1)
    param.grad = lay_out(values[2], case.layout)
    return param, opt


@dataclass
class Exact:
    """Numbers in float64: the wide value, and the lists."""

    wide: Tensor
    lists: dict[str, Tensor]


def exact_step(case: Case, param: Tensor, opt, magnitude: bool = False) -> Exact:
    """One step by the equations; magnitude: from absolute values, so that no terms cancel."""
    state = opt.state[param]
    wide = read_wide(param.detach(), state).double().clone()
    lists = {key: read_list(param, state, key).double().clone() for key in opt.state_lists}
    grad = param.grad.double() * clipping_factor(case, param.grad)
    [group] = opt.param_groups
    if magnitude:
        wide, grad = wide.abs(), grad.abs()
        lists = {key: value.abs() for key, value in lists.items()}
        group = {**group, "maximize": False, "delta": 0.0}
    opt._reference_update(wide, grad, lists, group, step=float(case.step), whole=param)
    return Exact(wide, lists)


def clipping_factor(case: Case, grad: Tensor) -> float:
    bound = case.kept["max_grad_norm"]
    if bound is None:
        return 1.0
    return min(bound / (grad.double().norm().item() + 1e-6), 1.0)


def near_adamps_bounds(case: Case, param: Tensor, opt) -> bool:
    """Near |cos| = delta / sqrt(len) rounding may decide either way; such a case proves nothing."""
    if not opt.projects_rows or param.dim() < 2:
        return False
    value = read_wide(param.detach(), opt.state[param]).double()
    for rows in (param.shape[0], 1):
        p, g = value.reshape(rows, -1), param.grad.double().reshape(rows, -1)
        cosine = torch.nn.functional.cosine_similarity(p, g).abs().max()
        if abs(cosine * p.shape[1] ** 0.5 / case.options["delta"] - 1) < 1e-3:
            return True
    return False


# Quantisers: what a format makes of numbers in float64, as numbers again, and the format's step there.


def kept_list(key: str, numbers: Tensor, dtype: torch.dtype, walk: Walk, step: int):
    wide, is_copy = numbers.float(), key == "prev_grad"
    if dtype == torch.uint8:
        signed = key != "exp_avg_sq"
        flat = walk.flatten(wide)
        codes = pack(flat, signed=signed, threshold=0.5 if is_copy else threshold_of(step))
        values = walk.unflatten(unpack(codes, flat.numel(), signed=signed), wide.shape)
        floor = CODE_FLOOR[signed] * wide.abs().max()
        return values, CODE_STEP * wide.abs() + floor
    if dtype == torch.bfloat16:
        rounded = wide.bfloat16() if is_copy else round_from(wide, threshold_of(step))
        return rounded.float(), BF16_STEP * wide.abs()
    return wide.to(dtype).float(), torch.finfo(dtype).eps * wide.abs()


def kept_wide(case: Case, numbers: Tensor, state: dict, walk: Walk):
    wide = numbers.float()
    if case.dtype == torch.float32 or "master" in state:
        return wide, EPS * wide.abs()
    if "residual" in state:
        narrow, residual = split(wide, case.dtype, state["residual"].dtype)
        return join(narrow, residual), 2.0**-14 * wide.abs()
    spacing = torch.finfo(case.dtype).eps * wide.abs() + 2.0**-24
    if case.kept["rounding"] == "nearest":
        return wide.to(case.dtype).float(), spacing
    key = RandomKey(case.kept["seed"], case.step, 0)
    flat = round_stochastically(walk.flatten(wide), case.dtype, key)
    return walk.unflatten(flat, wide.shape).float(), spacing


def assert_near(
    what, ours: Tensor, kept: tuple[Tensor, Tensor], start, exact, magnitude, share=CROSSED
):
    expected, format_step = kept
    change = (magnitude - start.abs()).abs()
    arithmetic = EPS * (STORED_ULPS * (exact.abs() + start.abs()) + CHANGE_ULPS * change)
    arithmetic += torch.finfo(torch.float32).smallest_normal
    off = (ours.double() - expected.double()).abs()
    crossed = int((off > arithmetic).sum())
    assert crossed <= FEW + share * off.numel(), f"{what}: {crossed} of {off.numel()}"
    assert (off <= arithmetic + 1.01 * format_step).all(), what


def check(case: Case, backend: str) -> None:
    param, opt = start(case, backend)
    if near_adamps_bounds(case, param, opt):
        return
    exact, magnitude = (exact_step(case, param, opt, absolute) for absolute in (False, True))
    state, walk = opt.state[param], Walk.of(param, opt.projects_rows)
    before = Exact(
        read_wide(param.detach(), state).double().clone(),
        {key: read_list(param, state, key).double().clone() for key in opt.state_lists},
    )
    opt.step()
    assert state["step"] == case.step
    for key, numbers in exact.lists.items():
        kept = kept_list(key, numbers, state[key].dtype, walk, case.step)
        ours = read_list(param, state, key)
        assert_near(key, ours, kept, before.lists[key], numbers, magnitude.lists[key])
    ours = read_wide(param.detach(), state)
    kept = kept_wide(case, exact.wide, state, walk)
    share = CROSSED_SPLIT8 if case.kept["master"] == "split8" else CROSSED
    assert_near("parameter", ours, kept, before.wide, exact.wide, magnitude.wide, share)
    if "master" in state or "residual" in state:
        assert (param.float() - ours).abs().max() <= torch.finfo(case.dtype).eps * ours.abs().max()


@pytest.mark.parametrize("backend", ["native", "reference"])
# The same examples in every run: the share that may cross is no bound for every case that chance finds.
@settings(max_examples=settings.default.max_examples * 3 // 4, derandomize=True)
@given(cases())
def test_a_step_is_the_equations_between_quantisers(backend, case):
    torch.set_num_threads(1)
    check(case, backend)
