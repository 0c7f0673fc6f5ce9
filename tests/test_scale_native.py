"""Options that say how numbers are kept: a native step is the plain kernel's between exact formats.

What a step of any options must leave is made of three parts: the formats as plain torch reads them
(friction_kernels/optim/states.py, tested by themselves), the default float32 kernel (held against the
equations in float64 by test_native.py), and the formats as plain torch writes them. All to the bit.
"""

import math
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import LAYOUTS, lay_out, options_of

from friction_kernels import OPTIMIZERS, _native
from friction_kernels.optim.blockwise import quantize, threshold_of
from friction_kernels.optim.element_order import ElementOrder
from friction_kernels.optim.master_weights import split
from friction_kernels.optim.rounding import RandomKey, round_from, round_stochastically
from friction_kernels.optim.states import QUANTIZED, read_state, read_wide, reals

CHUNK, BLOCK = 2048, 256  # kChunk and kBlock of csrc
KINDS_OF_STATES = {
    key: kind for cls in OPTIMIZERS.values() for key, kind in cls.rule.states.items()
}
AVERAGES = ("exp_avg", "exp_avg_sq", "momentum_buffer")

shapes = st.one_of(
    st.sampled_from([(), (1,), (0,), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (CHUNK,), (CHUNK + 3,)]),
    st.sampled_from([(3, 700), (700, 3), (2, 3, 41), (40, 60), (64, 3, 3, 3), (2, 2 * CHUNK + 5)]),
)


@dataclass(frozen=True)
class Case:
    shape: tuple[int, ...]
    dtype: torch.dtype
    grad_dtype: torch.dtype
    param_layout: str
    grad_layout: str
    grad_scale: float


cases = st.builds(
    Case,
    shape=shapes,
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.complex64]),
    grad_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    param_layout=st.sampled_from(LAYOUTS),
    grad_layout=st.sampled_from(LAYOUTS),
    grad_scale=st.sampled_from([1.0, 1e-4, 30.0]),
)

state_types = st.sampled_from([None, "fp32", "bf16", "8bit", "8bit"])
KEPT = {
    "master": st.sampled_from([None, "split", "split8", "fp32"]),
    "rounding": st.sampled_from(["nearest", "stochastic"]),
    "seed": st.sampled_from([0, 1, 2**40 + 5]),
    "max_grad_norm": st.sampled_from([None, 0.5, math.inf]),
}


@st.composite
def problems(draw):
    name = draw(st.sampled_from(sorted(OPTIMIZERS)))
    options = draw(options_of(name))
    kept = draw(st.fixed_dictionaries(KEPT))
    if kept["master"] is not None:
        kept["rounding"] = "nearest"
    states = OPTIMIZERS[name].rule.states
    kept["state_dtype"] = draw(
        st.one_of(state_types, st.fixed_dictionaries({state: state_types for state in states}))
    )
    return (
        name,
        options,
        kept,
        draw(st.lists(cases, min_size=1, max_size=3)),
        draw(st.sampled_from(_native.instruction_sets())),
        draw(st.sampled_from([0, 1, 7, 1000])),
        draw(st.integers(0, 9999)),
    )


def asks_for_complex_bf16(case: Case, kept: dict) -> bool:
    asked = kept["state_dtype"]
    values = asked.values() if isinstance(asked, dict) else [asked]
    return case.dtype.is_complex and "bf16" in values


def random(shape, dtype: torch.dtype, scale: float, generator: torch.Generator) -> torch.Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return (torch.randn(shape, dtype=wide, generator=generator) * scale).to(dtype)


def make(name, options, kept, problem, step, seed):
    """The optimizer in the midst of a training, its states not zero."""
    generator = torch.Generator().manual_seed(seed)
    params = []
    for case in problem:
        param = torch.nn.Parameter(
            lay_out(random(case.shape, case.dtype, 1.0, generator), case.param_layout)
        )
        grad_dtype = case.dtype if case.dtype.is_complex else case.grad_dtype
        param.grad_dtype = grad_dtype
        grad = random(case.shape, grad_dtype, case.grad_scale, generator)
        param.grad = lay_out(grad, case.grad_layout)
        params.append(param)
    opt = OPTIMIZERS[name](params, backend="native", **options, **kept)
    opt.step()  # makes states
    for param in params:
        opt.state[param]["step"].fill_(step)
    return opt, params


class Twin:
    """A parameter of float32 in the default options, from the same numbers."""

    def __init__(self, opt, name, options, param):
        state = opt.state[param]
        wide = torch.promote_types(param.dtype, torch.float32)
        self.numbers = {
            key: read_state(param, state, key, kind).clone()
            for key, kind in opt.rule.states.items()
        }
        value = param.detach() if param.is_complex() else read_wide(param.detach(), state)
        self.param = torch.nn.Parameter(value.clone(memory_format=torch.preserve_format).to(wide))
        self.opt = OPTIMIZERS[name]([self.param], backend="native", **options)
        self.opt.state[self.param] = {"step": state["step"].clone()} | {
            key: torch.view_as_complex(numbers.contiguous()) if param.is_complex() else numbers
            for key, numbers in self.numbers.items()
        }

    def step(self, grad: torch.Tensor, factor: float) -> None:
        self.param.grad = (
            grad.to(self.param.dtype) * torch.tensor(factor, dtype=torch.float32)
        ).to(self.param.dtype)
        self.opt.step()

    def list(self, key: str) -> torch.Tensor:
        return reals(self.opt.state[self.param][key])


def factor_of(kept: dict, params) -> float:
    if kept["max_grad_norm"] is None:
        return 1.0
    squares = [reals(p.grad).double().square().sum().item() for p in params]
    ratio = kept["max_grad_norm"] / (math.sqrt(sum(squares)) + 1e-6)
    return min(ratio, 1.0)


@settings(max_examples=settings.default.max_examples * 3 // 2)
@given(problems())
def test_native_steps_are_exact_formats_around_the_plain_kernel(problem):
    name, options, kept, tensors, instruction_set, step, seed = problem
    tensors = [case for case in tensors if not asks_for_complex_bf16(case, kept)]
    if not tensors:
        return
    _native.use_instruction_set(instruction_set)
    try:
        opt, params = make(name, options, kept, tensors, step, seed)
        twins = [Twin(opt, name, options, param) for param in params]
        factor = factor_of(kept, params)
        opt.step()
        for twin, param in zip(twins, params, strict=True):
            twin.step(param.grad, factor)
    finally:
        _native.use_instruction_set(_native.instruction_sets()[-1])
    for ordinal, (twin, param) in enumerate(zip(twins, params, strict=True)):
        state, order = opt.state[param], ElementOrder.of(param, opt.rule.projects_rows)
        assert state["step"] == step + 1
        # A clipped norm is summed in another order here, so its last bits may differ.
        exact = factor == 1.0
        for key in opt.rule.states:
            check_one_state(param, state, key, twin.list(key), order, step + 1, exact)
        quantized = any(state[key].dtype == QUANTIZED for key in opt.rule.states)
        if opt.rule.projects_rows and quantized:
            exact = False  # rows' sums are taken in another order
        key = RandomKey(kept["seed"], step + 1, ordinal)
        random_key = key if kept["rounding"] == "stochastic" else None
        check_param(param.detach(), state, twin.param.detach(), order, random_key, exact)


def check_one_state(param, state, key, wide, order, step, exact):
    value = state[key]
    if value.dtype == QUANTIZED:
        threshold = threshold_of(step) if key in AVERAGES else 0.5
        expected = quantize(order.flatten(wide), signed=key != "exp_avg_sq", threshold=threshold)
        if exact:
            assert torch.equal(value, expected), key
        numbers = read_state(param, state, key, KINDS_OF_STATES[key])
        largest = wide.abs().max() if wide.numel() else 0.0
        torch.testing.assert_close(numbers, wide, rtol=0.05, atol=0.02 * float(largest))
    elif exact and value.dtype == torch.bfloat16 and key in AVERAGES:
        assert torch.equal(value, round_from(wide, threshold_of(step))), key
    elif exact:
        assert torch.equal(reals(value), wide.to(reals(value).dtype)), key
    else:
        torch.testing.assert_close(reals(value).float(), wide, rtol=1e-2, atol=1e-6)


def check_param(param, state, wide, order, random_key, exact):
    if not exact:
        got = param if param.is_complex() else read_wide(param, state)
        eps = torch.finfo(param.dtype).eps if not state.keys() & {"residual", "master"} else 2**-15
        torch.testing.assert_close(got, wide, rtol=2 * eps, atol=1e-5, equal_nan=True)
    elif "residual" in state:
        narrow, residual = split(wide, param.dtype, state["residual"].dtype)
        assert torch.equal(param, narrow) and torch.equal(state["residual"], residual)
    elif "master" in state:
        assert torch.equal(state["master"], wide) and torch.equal(param, wide.to(param.dtype))
    elif random_key is not None and param.dtype in (torch.bfloat16, torch.float16):
        flat = round_stochastically(order.flatten(wide), param.dtype, random_key)
        assert torch.equal(order.flatten(param), flat)
    else:
        assert torch.equal(param, wide.to(param.dtype))
