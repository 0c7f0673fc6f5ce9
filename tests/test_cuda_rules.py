"""What CUDA threads compute, run on the host by the same functions, against the processor's kernels."""

import ctypes
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from host_launch import (
    DTYPE_CONFIGS,
    describe,
    pointer,
    settings_array,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_cases import MEASURED, PROJECTED
from test_native import CHUNK, options_of

from friction_kernels import OPTIMIZERS, friction_stats

pytestmark = pytest.mark.deep

EXAMPLES = 200  # the host runs every thread of a launch, one after another
# The storage of a launch: the parameter's, the gradient's type.
KINDS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "mixed": (torch.bfloat16, torch.float32),
    "mixed half": (torch.float16, torch.float16),
    "mixed wide": (torch.float32, torch.float64),
    "float64": (torch.float64, torch.float64),
    "float64 mixed": (torch.float64, torch.float32),
}
SHAPES = st.lists(
    st.sampled_from(
        [
            (0,),
            (1,),
            (3,),
            (CHUNK - 1,),
            (CHUNK,),
            (CHUNK + 1,),
            (3 * CHUNK,),
            (5, 509),
            (2, 3, 3, 3),
        ]
    ),
    min_size=1,
    max_size=4,
)
MATRICES = st.lists(
    st.sampled_from(
        [(7,), (40, 3), (3, 700), (2, 2500), (64, 40), (1, 5000), (300, 31), (33, 1), (16, 3, 3, 3)]
    ),
    min_size=1,
    max_size=3,
)


def after_two_steps(name, shapes, options, kind, seed):
    """An optimizer whose states are no longer zero, about to make its third step."""
    param_dtype, grad_dtype = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)

    def random(shape, dtype):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    params = [torch.nn.Parameter(random(shape, param_dtype)) for shape in shapes]
    opt = OPTIMIZERS[name](params, **options, backend="native")
    for step in range(3):
        for param in params:
            if grad_dtype != param_dtype:
                param.grad_dtype = grad_dtype
            param.grad = random(param.shape, grad_dtype)
        if step < 2:
            opt.step()
    return opt, params


def lists_of(opt, param):
    keys = opt.rule.states
    return [param.data, param.grad, *(opt.state[param][key] for key in keys)]


def run_on_host(host, opt, params, kind, blocks, *, function, count_on_device=False):
    """The launch's third step on copies of everything."""
    copies = [[tensor.clone() for tensor in lists_of(opt, param)] for param in params]
    steps = [torch.tensor(2.0) for _ in params] if count_on_device else None
    given_tensors, _alive = describe(copies, steps=steps)
    numbers = settings_array(opt)
    now = np.array([0.0 if count_on_device else 3.0])
    getattr(host, function)(
        *(given_tensors, ctypes.c_int64(len(copies)), pointer(numbers), pointer(now)),
        *(ctypes.c_int64(1), ctypes.c_int64(blocks), DTYPE_CONFIGS[kind.split()[0]]),
        ctypes.c_bool(False),
    )
    assert not count_on_device or all(step == 3.0 for step in steps)
    return copies


def total_deviation(host, opt, params, kind, blocks):
    """Of the friction in the third step, from its value without friction."""
    given_tensors, _alive = describe([lists_of(opt, param) for param in params])
    numbers, moments = settings_array(opt), np.zeros(2)
    host.friction_stats(
        *(given_tensors, ctypes.c_int64(len(params)), pointer(numbers), pointer(np.array([3.0]))),
        *(
            ctypes.c_int64(1),
            ctypes.c_int64(blocks),
            DTYPE_CONFIGS[kind.split()[0]],
            pointer(moments),
        ),
    )
    return moments[0]


def assert_same_bits(copies, opt, params):
    for lists, param in zip(copies, params, strict=True):
        for ours, native_list in zip(lists, lists_of(opt, param), strict=True):
            assert torch.equal(ours, native_list)


def with_options(names, **values):
    """A class and options of a group of its own."""
    return st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), options_of(name, **values))
    )


@settings(max_examples=2 * EXAMPLES)
@given(
    with_options([name for name in OPTIMIZERS if name not in PROJECTED]),
    SHAPES,
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 9999),
)
def test_elementwise_rules_give_the_processors_bits(
    host, named, shapes, kind, blocks, count_on_device, seed
):
    name, options = named
    opt, params = after_two_steps(name, shapes, options, kind, seed)
    copies = run_on_host(
        *(host, opt, params, kind, blocks),
        function=opt.rule.name,
        count_on_device=count_on_device,
    )
    if name in MEASURED:
        [stats] = friction_stats(opt)
        deviation = total_deviation(host, opt, params, kind, blocks)
    opt.step()
    assert_same_bits(copies, opt, params)
    if name in MEASURED and stats.count:
        neutral = 1.0 if name.startswith("Tanh") else 0.5
        assert neutral + deviation / stats.count == pytest.approx(stats.mean, rel=1e-5, abs=1e-6)


def make_extreme(opt, params, scales):
    """Two more steps, so that states are extreme, too, and another gradient."""
    usual = [param.grad for param in params]
    for step in range(3):
        for param, grad in zip(params, usual, strict=True):
            of_each = scales[(torch.arange(grad.numel()) + step) % len(scales)]
            param.grad = (grad * of_each).to(grad.dtype)
        if step < 2:
            opt.step()
    for param in params:
        opt.state[param]["step"].fill_(2.0)


@pytest.mark.parametrize("friction_input", ["product", "normalized"])
@pytest.mark.parametrize("beta3", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "mixed half"])
def test_extreme_gradients_give_the_processors_bits(host, kind, beta3, friction_input):
    """Where the normalizer overflows, the product or neither."""
    options = {"beta3": beta3, "friction_input": friction_input}
    opt, params = after_two_steps("TanhSignAdamW", [(CHUNK + 1,), (300,)], options, kind, 4)
    scales = torch.tensor([1.0, 1e20, 1e25, 1e-30, 0.0, 3e37, 1.0])
    make_extreme(opt, params, scales if kind != "mixed half" else scales.clamp(max=1e4))
    copies = run_on_host(host, opt, params, kind, 2, function="friction_adam")
    assert math.isfinite(total_deviation(host, opt, params, kind, 2))
    opt.step()
    assert all(param.isfinite().all() for param in params)
    assert_same_bits(copies, opt, params)


@pytest.mark.parametrize(
    ("count", "finite"), [(0.0, True), (2.0**60, True), (math.nan, False), (-3.0, False)]
)
def test_a_counter_on_the_device_that_counts_no_steps_is_not_hidden(host, count, finite):
    opt, params = after_two_steps("SigSignAdamW", [(40,)], {}, "float32", 1)
    copies = [[tensor.clone() for tensor in lists_of(opt, param)] for param in params]
    steps = [torch.tensor(count)]
    given_tensors, _alive = describe(copies, steps=steps)
    numbers, now = settings_array(opt), np.zeros(1)
    host.friction_adam(
        *(given_tensors, ctypes.c_int64(1), pointer(numbers), pointer(now), ctypes.c_int64(1)),
        *(ctypes.c_int64(1), DTYPE_CONFIGS["float32"], ctypes.c_bool(False)),
    )
    assert copies[0][0].isfinite().all() == finite and copies[0][0].isnan().all() != finite


def test_numbers_of_a_step_are_made_without_undefined_conversions(tmp_path):
    """Whatever a counter holds; the compiler's checks end the program at the first one."""
    source = tmp_path / "steps.cpp"
    source.write_text("""
#include <cstdio>
#include <initializer_list>
#include <limits>
#include "formats/blockwise.h"
int main() {
  using namespace friction;
  const double inf = std::numeric_limits<double>::infinity();
  for (double step : {3.0, 2.5, 0.0, -1.0, -1e300, -inf, inf, 1e300, 9007199254740994.0, inf - inf})
    std::printf("%.17g %d %d\\n", integer_power(0.5, step), int(whole_steps(step) % 1000),
                int(narrow_from(1.0f, threshold_of(step)).bits));
}
""")
    program, csrc = tmp_path / "steps", Path(__file__).parents[1] / "csrc"
    checks = ["-fsanitize=undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
    command = ["g++", "-std=c++17", "-O1", *checks, f"-I{csrc}", str(source), "-o", str(program)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    powers = [float(line.split()[0]) for line in printed.splitlines()]
    assert powers[:3] == [0.125, 0.25, 1.0] and powers[6:9] == [0.0, 0.0, 0.0]
    assert all(map(math.isnan, powers[3:6] + powers[9:]))


def run_adamp_on_host(host, opt, params, kind, blocks):
    copies = [[tensor.clone() for tensor in lists_of(opt, param)] for param in params]
    given_tensors, _alive = describe(copies, matrices=True)
    numbers, now = settings_array(opt), np.array([3.0])
    projected = np.zeros(len(params), dtype=np.uint8)  # 0: not, 1: by rows, 2: as one row
    as_one_row = np.zeros(len(params))
    coefficients = np.zeros(sum(p.shape[0] for p in params if p.dim() > 1) + 1)
    getattr(host, opt.rule.name)(
        *(given_tensors, ctypes.c_int64(len(copies)), pointer(numbers), pointer(now)),
        *(ctypes.c_int64(1), ctypes.c_int64(blocks), DTYPE_CONFIGS[kind.split()[0]]),
        *(pointer(projected), pointer(coefficients), pointer(as_one_row)),
    )
    return copies, projected


# How far sums of another order may move a parameter, in units of its step; beside its own rounding.
ADAMP_TOLERANCE = {"float32": 2e-4, "mixed": 2e-2, "float64": 1e-11}


@settings(max_examples=EXAMPLES)
@given(
    with_options(PROJECTED, delta=[0.0, 0.1, 1.0, 100.0]),
    MATRICES,
    st.sampled_from(["float32", "float64", "float64 mixed"]),
    st.integers(0, 9999),
)
def test_adamp_agrees_with_the_processor_whatever_the_number_of_blocks(
    host, named, shapes, kind, seed
):
    name, options = named
    opt, params = after_two_steps(name, shapes, options, kind, seed)
    before = [param.detach().clone() for param in params]
    copies, projected = run_adamp_on_host(host, opt, params, kind, 1)
    again, _ = run_adamp_on_host(host, opt, params, kind, 7)
    for a, b in zip(copies, again, strict=True):
        assert all(map(torch.equal, a, b))
    opt.step()
    tolerance = ADAMP_TOLERANCE[kind.split()[0]]
    for lists, param, start in zip(copies, params, before, strict=True):
        for ours, theirs in zip(lists[2:], lists_of(opt, param)[2:], strict=True):
            assert torch.equal(ours, theirs)
        change = (param.detach() - start).double().abs().max()
        rounding = torch.finfo(param.dtype).eps * start.double().abs().max()
        off = (lists[0] - param.detach()).double().abs().max()
        assert off <= tolerance * change + rounding
    if options["delta"] == 100.0:
        assert all(projected.astype(bool) == np.array([param.dim() > 1 for param in params]))
    if options["delta"] == 0.0:
        assert not projected.any()


# 6,000 rows are decided for in 16 groups; rows of less than 32 elements have a lane each.
@pytest.mark.parametrize("shape", [(9, 300), (6000, 40), (6000, 5)])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_adamp_projects_a_whole_tensor_where_its_rows_do_not_pass(host, kind, shape):
    """One row is parallel to its gradient, the whole is not."""
    opt, params = after_two_steps("SigSignAdamP", [shape], {"delta": 2.0}, kind, 1)
    [param] = params
    param.grad[4] = 1e-3 * param.detach()[4]
    copies, projected = run_adamp_on_host(host, opt, params, kind, 3)
    opt.step()
    assert projected == [2]
    torch.testing.assert_close(copies[0][0], param.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("delta", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("shape", [(9, 20), (9, 300), (2, 5000)])
def test_adamp_decides_alike_where_sums_overflow_in_float32(host, shape, delta):
    opt, params = after_two_steps("SigSignAdamP", [shape, shape], {"delta": delta}, "float32", 1)
    params[0].grad *= 1e25  # its squares overflow, and so does the product with the second
    params[1].data *= 1e25
    states = [[tensor.clone() for tensor in lists_of(opt, param)] for param in params]
    copies, projected = run_adamp_on_host(host, opt, params, "float32", 3)
    opt.step()
    for lists, param, (start, *_) in zip(copies, params, states, strict=True):
        assert param.isfinite().all()
        change = (param.detach() - start).double().abs().max()
        assert (lists[0] - param.detach()).double().abs().max() <= 2e-4 * change + 1e-15
    assert projected.all() if delta == 100.0 else delta > 0.1 or not projected.any()


@settings(max_examples=EXAMPLES)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([(0,), (1,), (7,), (CHUNK - 1,), (CHUNK,), (2 * CHUNK + 8,), (5, 509)]),
            st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
            st.booleans(),
        ),
        max_size=6,
    ),
    st.integers(0, 9999),
)
def test_squared_norm_is_the_same_whatever_the_number_of_blocks(host, cases, seed):
    """Of gradients of all types together, contiguous or not."""
    generator = torch.Generator().manual_seed(seed)
    grads = []
    for shape, dtype, gaps in cases:
        grad = torch.randn((*shape, 2), generator=generator, dtype=torch.float64).to(dtype)
        grads.append(grad[..., 0] if gaps else grad[..., 0].contiguous())
    given_tensors, _alive = describe([[grad] for grad in grads])
    norms = {
        host.squared_norm(given_tensors, ctypes.c_int64(len(grads)), ctypes.c_int64(blocks))
        for blocks in (1, 3, 8)
    }
    exact = sum(grad.double().square().sum().item() for grad in grads)
    assert len(norms) == 1
    assert norms.pop() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("offset", [0, 1])
def test_squares_beyond_float32_are_summed_in_double(host, dtype, offset):
    whole = torch.full((5000,), 1e25, dtype=dtype)
    grad = whole[offset:]
    given_tensors, _alive = describe([[grad]])
    squared = host.squared_norm(given_tensors, ctypes.c_int64(1), ctypes.c_int64(3))
    assert squared == pytest.approx(grad.double().square().sum().item(), rel=1e-12)
    whole[77] = float("inf")
    assert host.squared_norm(given_tensors, ctypes.c_int64(1), ctypes.c_int64(3)) == float("inf")
    whole[78] = float("nan")
    squared = host.squared_norm(given_tensors, ctypes.c_int64(1), ctypes.c_int64(3))
    assert squared != squared
