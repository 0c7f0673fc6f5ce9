"""Steps with options of precision against the equations in float64, with the same quantisers in Python.

Every quantiser is monotonic. So what a step keeps of a number lies between what the quantiser makes of the
exact number less the arithmetic's error and of the exact number plus it: a bound for each number, whatever is
near a rounding boundary.
"""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import LAYOUTS, lay_out, options_of
from torch import Tensor, nn

from friction_kernels import OPTIMIZERS
from friction_kernels.optim.blockwise import BLOCK, dequantize, quantize, threshold_of
from friction_kernels.optim.element_order import ElementOrder
from friction_kernels.optim.master_weights import join, split
from friction_kernels.optim.rounding import RandomKey, round_from, round_stochastically
from friction_kernels.optim.rule import Operands
from friction_kernels.optim.states import read_state, read_wide

# Arithmetic: in units of float32's rounding error, of the stored number and of the terms of its change,
# which may cancel; a clipping factor comes from a sum in another order. As in tolerances.py.
STORED_ULPS, CHANGE_ULPS = 4, 128
EPS = torch.finfo(torch.float32).eps

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
    states = OPTIMIZERS[name].rule.states
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
        draw(options_of(name)),
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
    lists = {
        key: read_state(param, state, key, kind).double().clone()
        for key, kind in opt.rule.states.items()
    }
    grad = param.grad.double() * clipping_factor(case, param.grad)
    [group] = opt.param_groups
    if magnitude:
        wide, grad = wide.abs(), grad.abs()
        lists = {key: value.abs() for key, value in lists.items()}
        group = {**group, "maximize": False, "delta": 0.0}
    opt.rule.update(Operands(wide, grad, lists, float(case.step), param.dim() > 1), group)
    return Exact(wide, lists)


def clipping_factor(case: Case, grad: Tensor) -> float:
    bound = case.kept["max_grad_norm"]
    if bound is None:
        return 1.0
    return min(bound / (grad.double().norm().item() + 1e-6), 1.0)


def near_adamps_bounds(case: Case, param: Tensor, opt) -> bool:
    """Near |cos| = delta / sqrt(len) rounding may decide either way; such a case proves nothing."""
    if not opt.rule.projects_rows or param.dim() < 2:
        return False
    value = read_wide(param.detach(), opt.state[param]).double()
    for rows in (param.shape[0], 1):
        p, g = value.reshape(rows, -1), param.grad.double().reshape(rows, -1)
        cosine = torch.nn.functional.cosine_similarity(p, g).abs().max()
        if abs(cosine * p.shape[1] ** 0.5 / case.options["delta"] - 1) < 1e-3:
            return True
    return False


# Quantisers: what a format makes of numbers in float64, as numbers again.


def kept_state(
    key: str, numbers: Tensor, dtype: torch.dtype, order: ElementOrder, step: int
) -> Tensor:
    wide, is_copy = numbers.float(), key == "prev_grad"
    if dtype == torch.uint8:
        signed = key != "exp_avg_sq"
        flat = order.flatten(wide if signed else wide.clamp(min=0))
        codes = quantize(flat, signed=signed, threshold=0.5 if is_copy else threshold_of(step))
        return order.unflatten(dequantize(codes, flat.numel(), signed=signed), wide.shape)
    if dtype == torch.bfloat16:
        rounded = wide.bfloat16() if is_copy else round_from(wide, threshold_of(step))
        return rounded.float()
    return wide.to(dtype).float()


def kept_wide(case: Case, numbers: Tensor, state: dict, order: ElementOrder) -> Tensor:
    wide = numbers.float()
    if case.dtype == torch.float32 or "master" in state:
        return wide
    if "residual" in state:
        return join(*split(wide, case.dtype, state["residual"].dtype))
    if case.kept["rounding"] == "nearest":
        return wide.to(case.dtype).float()
    key = RandomKey(case.kept["seed"], case.step, 0)
    flat = round_stochastically(order.flatten(wide), case.dtype, key)
    return order.unflatten(flat, wide.shape).float()


def largest_of_blocks(x: Tensor, order: ElementOrder) -> Tensor:
    """For each element, the largest magnitude of the block that it is in."""
    flat = order.flatten(x.abs())
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).reshape(-1, BLOCK)
    largest = blocks.amax(1).repeat_interleave(BLOCK)[: len(flat)]
    return order.unflatten(largest, x.shape)


def assert_between(what: str, ours: Tensor, keep, start, exact, magnitude, blocks=None) -> None:
    """keep: the quantiser; blocks: the order whose blocks share a scale."""
    change = (magnitude - start.abs()).abs()
    error = EPS * (STORED_ULPS * (exact.abs() + start.abs()) + CHANGE_ULPS * change)
    error += (magnitude > 0) * torch.finfo(torch.float32).smallest_normal
    low, high = exact - error, exact + error
    if blocks is not None:  # a scale has an error, too, which the bounds must not change
        scale = largest_of_blocks(exact, blocks)
        relative = (largest_of_blocks(error, blocks) / scale).nan_to_num(0, posinf=0)
        error += 2 * exact.abs() * relative
        low, high = (x.clamp(-scale, scale) for x in (exact - error, exact + error))
        low, high = (torch.where(exact.abs() == scale, exact, x) for x in (low, high))
    low, high = keep(low).double(), keep(high).double()
    outside = torch.maximum(low - ours, ours - high) - 2 * error
    worst = int(outside.argmax()) if outside.numel() else 0
    assert (outside <= 0).all(), (
        f"{what}[{worst}]: {ours.flatten()[worst]} is not in "
        f"[{low.flatten()[worst]}, {high.flatten()[worst]}]"
    )


def check(case: Case, backend: str) -> None:
    param, opt = start(case, backend)
    if near_adamps_bounds(case, param, opt):
        return
    exact, magnitude = (exact_step(case, param, opt, absolute) for absolute in (False, True))
    state, order = opt.state[param], ElementOrder.of(param, opt.rule.projects_rows)
    before = Exact(
        read_wide(param.detach(), state).double().clone(),
        {
            key: read_state(param, state, key, kind).double().clone()
            for key, kind in opt.rule.states.items()
        },
    )
    opt.step()
    assert state["step"] == case.step
    for key, numbers in exact.lists.items():
        dtype = state[key].dtype
        assert_between(
            key,
            read_state(param, state, key, opt.rule.states[key]).double(),
            partial(kept_state, key, dtype=dtype, order=order, step=case.step),
            before.lists[key],
            numbers,
            magnitude.lists[key],
            blocks=order if dtype == torch.uint8 else None,
        )
    ours = read_wide(param.detach(), state).double()
    keep = partial(kept_wide, case, state=state, order=order)
    assert_between("parameter", ours, keep, before.wide, exact.wide, magnitude.wide)
    if "master" in state or "residual" in state:
        assert (param.float() - ours).abs().max() <= torch.finfo(case.dtype).eps * ours.abs().max()


@pytest.mark.parametrize("backend", ["native", "reference"])
@settings(max_examples=settings.default.max_examples * 3 // 4)
@given(cases())
def test_a_step_is_the_equations_between_quantisers(backend, case):
    torch.set_num_threads(1)
    check(case, backend)
