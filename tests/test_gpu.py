"""What only a card shows: `pytest -m gpu`. The bodies that a processor can run are in gpu_cases.py."""

import subprocess
import sys

import pytest
import torch
from gpu_cases import (
    DTYPES,
    ELEMENTWISE,
    SHAPES,
    bits,
    check_extreme_numbers,
    check_friction_stats,
    check_infinite_parameters_stay,
    check_nothing_to_do,
    check_one_launch,
    check_projection,
    check_same_bits_as_cpu,
    check_same_bits_twice,
    check_state_dict,
    check_step,
    device_steps,
    launches_of,
    make,
    same_bits,
    steps,
)
from gpu_graphs import MANY, check_eager_steps_between, check_schedule, on_device
from gpu_scale_cases import (
    FORMS,
    check_form,
    check_gradient_scaling,
    check_lists,
    check_squared_norm,
)
from hypothesis import assume, given, settings
from optimizer_cases import FRICTION, PROJECTED, each_of, every_measured, every_optimizer
from test_native import LAYOUTS

from friction_kernels import OPTIMIZERS, count_launches, lists
from friction_kernels.backends import cuda_unavailable_reason

UNAVAILABLE = (
    "torch finds no CUDA device" if not torch.cuda.is_available() else cuda_unavailable_reason()
)
if UNAVAILABLE is not None:
    pytest.skip(f"needs a GPU: {UNAVAILABLE}", allow_module_level=True)
pytestmark = pytest.mark.gpu
eager_and_capturable = pytest.mark.parametrize("capturable", [False, True])


@eager_and_capturable
@settings(max_examples=150)
@given(example=device_steps())
def test_a_step_is_as_exact_as_plain_torch(capturable, example):
    assume(check_step(example, "cuda", capturable))


# Bits. The kernels are compiled without fused multiply-add, and with division and root rounded as IEEE
# 754 asks, which is nvcc's default: nothing is left that could differ from the processor's.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_of(ELEMENTWISE)
def test_elementwise_rules_give_the_cpus_bits(name, dtype):
    check_same_bits_as_cpu(name, "cuda", dtype, "contiguous")


@pytest.mark.parametrize("layout", LAYOUTS)
@each_of(ELEMENTWISE)
def test_layouts_give_the_cpus_bits(name, layout):
    check_same_bits_as_cpu(name, "cuda", torch.float32, layout)


@each_of(ELEMENTWISE)
def test_the_normalized_form_and_maximize_give_the_cpus_bits(name):
    options = {"maximize": True, "weight_decay": 0.1}
    if name in FRICTION:
        options |= {"friction_input": "normalized", "beta3": 5.0}
    check_same_bits_as_cpu(name, "cuda", torch.float32, "contiguous", **options)


@each_of(ELEMENTWISE)
def test_extreme_numbers_give_the_cpus_bits(name):
    check_extreme_numbers(name, "cuda")


@every_optimizer
def test_infinite_parameters_stay(name):
    check_infinite_parameters_stay(name, "cuda")


@eager_and_capturable
@every_optimizer
def test_two_runs_give_the_same_bits(name, capturable):
    check_same_bits_twice(name, "cuda", capturable=capturable)


@every_optimizer
def test_capturable_changes_no_bit(name):
    assert same_bits(steps(name, "cuda", capturable=True), steps(name, "cuda"))


def test_more_elements_than_32_bits_count():
    count = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 24e9:
        pytest.skip("needs 24 GB of free GPU memory")
    param = torch.full((count,), 0.5, dtype=torch.bfloat16, device="cuda").requires_grad_()
    param.grad = torch.full_like(param, 0.25)
    OPTIMIZERS["RSGDM"]([param], lr=1.0, momentum=0.0, backend="native").step()
    assert (param == 0.25).all()


# Launches.


@pytest.mark.parametrize("count", [1, 300, 700, 10_000])
@pytest.mark.parametrize("name", ["SigSignAdamW", "RSGDM"])
def test_any_number_of_tensors_is_one_launch(name, count):
    check_one_launch(name, "cuda", count)


@each_of(ELEMENTWISE)
def test_capturable_steps_are_one_launch(name):
    check_one_launch(name, "cuda", 700, capturable=True)


@pytest.mark.parametrize("groups", [3, 8, 9, 40])
@pytest.mark.parametrize("name", ["TanhSignAdamW", "RSGDM"])
def test_all_groups_are_one_launch(name, groups):
    check_one_launch(name, "cuda", 80, groups)


@pytest.mark.parametrize("count", [5, 700])
@pytest.mark.parametrize("name", PROJECTED)
def test_adamp_is_three_launches(name, count):
    params = make([(4, 3)] * count, "cuda")
    opt = OPTIMIZERS[name](params, backend="native")
    opt.step()
    with count_launches() as launches:
        opt.step()
    assert dict(launches) == launches_of(name)


@every_optimizer
def test_the_profiler_sees_these_kernels_and_no_wait(name):
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    params = make(SHAPES, "cuda")
    opt = OPTIMIZERS[name](params, backend="native")
    opt.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        opt.step()
        names = []
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            names += [event.name] * ("Optimizer.step" not in event.name)  # torch's own annotation
        else:  # the profiler itself waits for the device at its end, and once
            assert "Memcpy" not in event.name and "StreamSynchronize" not in event.name
    if not names:
        pytest.skip("the profiler sees no kernels on this machine")
    assert len(names) == sum(launches_of(name).values()) and all("friction" in n for n in names)


@every_optimizer
def test_a_step_without_gradients_launches_nothing(name):
    check_nothing_to_do(name, "cuda")


@eager_and_capturable
@every_optimizer
def test_the_host_never_waits(name, capturable):
    params = make(SHAPES, "cuda")
    opt = OPTIMIZERS[name](params, backend="native", capturable=capturable)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            opt.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_optimizer
def test_memory_does_not_grow(name):
    params = make(MANY + SHAPES, "cuda")
    opt = OPTIMIZERS[name](params, backend="native")
    for step in range(103):
        for param in params:
            param.grad = torch.ones_like(param)
        opt.step()
        if step == 2:
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before


# Streams and devices.


@every_optimizer
def test_a_step_runs_on_the_current_stream(name):
    params, twins = make(SHAPES, "cuda"), make(SHAPES, "cuda")
    opt, twin = (OPTIMIZERS[name](p, backend="native") for p in (params, twins))
    opt.step()
    twin.step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = [torch.full_like(param, 0.5) for param in params]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # about 50 ms, after which the gradients arrive
        for param, grad in zip(params, late, strict=True):
            param.grad.copy_(grad)
        opt.step()
    stream.synchronize()
    for param, grad in zip(twins, late, strict=True):
        param.grad.copy_(grad)
    twin.step()
    assert same_bits(bits(opt, params), bits(twin, twins))


@every_optimizer
def test_several_devices_serve_one_optimizer(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    shapes = [(3, 4), (2049,)]
    params = [make(shapes, f"cuda:{i}") for i in (0, 1)]
    opt = OPTIMIZERS[name]([{"params": group} for group in params], backend="native")
    opt.step()
    with count_launches() as launches:
        opt.step()
    assert dict(launches) == {key: 2 for key in launches_of(name)}
    assert same_bits(bits(opt, params[0]), bits(opt, params[1]))


# AdamP, statistics, states.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("decision", ["rows", "whole", "none"])
@pytest.mark.parametrize("name", PROJECTED)
def test_adamp_decides_as_the_equations_do(name, decision, dtype):
    check_projection(name, "cuda", decision, dtype)


@every_measured
def test_friction_stats_are_the_cpus(name):
    check_friction_stats(name, "cuda")


@eager_and_capturable
@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")], ids=str)
@each_of(ELEMENTWISE)
def test_a_run_moves_between_devices(name, devices, capturable):
    check_state_dict(name, devices, capturable)


# States in few bits, residuals, stochastic rounding; norms and gradient scaling.

every_rule = pytest.mark.parametrize(
    "rule", ["adam", "friction_adam", "sgd", "adamp", "friction_adamp"]
)


@pytest.mark.parametrize("layout", ["contiguous", "offset", "gaps"])
@pytest.mark.parametrize("form", FORMS)
@every_rule
def test_every_form_gives_the_cpus_bits(rule, form, layout):
    check_form("cuda", rule, form, layout)


def test_the_norm_of_gradients_of_all_types():
    check_squared_norm("cuda")


def test_products_and_sums_of_lists():
    check_lists("cuda")


def test_products_and_sums_in_a_graph():
    both = [[torch.randn(n, device="cuda") for n in (3, 5000, 77)] for _ in range(2)]
    sums = [torch.empty_like(tensor) for tensor in both[0]]
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        lists.combine(both, lists.gram(*both)[0], out=sums)  # loads the kernels
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        products = lists.gram(*both)
        lists.combine(both, products[0], out=sums)
    for tensor in (tensor for one in both for tensor in one):
        tensor.normal_()
    graph.replay()
    assert torch.equal(products, lists.gram(*both))
    expected = lists.combine(both, products[0])
    assert all(torch.equal(a, b) for a, b in zip(sums, expected, strict=True))


@every_rule
def test_gradients_are_scaled_clipped_and_skipped(rule):
    check_gradient_scaling("cuda", rule)


# CUDA graphs.


@every_optimizer
def test_a_graph_follows_a_schedule(name):
    check_schedule(name, "cuda")


@every_optimizer
def test_a_graph_of_many_tensors_follows_a_schedule(name):
    check_schedule(name, "cuda", shapes=MANY)


@pytest.mark.parametrize("name", ["SigSignAdamW", "RSGDM"])
def test_a_graph_of_tensors_with_gaps_follows_a_schedule(name):
    check_schedule(name, "cuda", layout="gaps")


@pytest.mark.parametrize("layout", ["contiguous", "gaps"])
@pytest.mark.parametrize("shapes", [MANY, [(3, 4), (2049,), (64, 40)]], ids=["many", "few"])
@every_optimizer
def test_eager_steps_leave_a_captured_graph_alone(name, shapes, layout):
    check_eager_steps_between(name, "cuda", shapes=shapes, layout=layout)


@pytest.mark.parametrize("name", ["SigSignAdamW", "SigSignAdamP"])
def test_a_graph_may_hold_the_first_step_after_loading(name):
    """The states are there, but no kernel has run yet in this process."""
    code = f"""
import torch
from friction_kernels import {name} as Cls
p = torch.ones(3, 4, device="cuda", requires_grad=True)
p.grad = torch.ones_like(p)
opt = Cls([p], capturable=True, backend="native")
keys = [k for k in opt.rule.states]
opt.state[p] = {{"step": torch.zeros((), device="cuda"), **{{k: torch.zeros_like(p) for k in keys}}}}
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    opt.step()
graph.replay()
assert opt.state[p]["step"].item() == 1 and (p != 1).all()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def expect_refusal(opt, match: str) -> None:
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), pytest.raises(RuntimeError, match=match):
        opt.step()


@every_optimizer
def test_a_host_counted_step_is_not_captured(name):
    params = make([(3, 4)], "cuda")
    opt = OPTIMIZERS[name](params, backend="native")
    opt.step()
    before = bits(opt, params)
    expect_refusal(opt, "capturable=True")
    assert same_bits(before, bits(opt, params))


@pytest.mark.parametrize("missing", [1, 2], ids=["one missing", "all missing"])
@every_optimizer
def test_a_parameter_without_gradient_is_not_captured_in_silence(name, missing):
    params = make([(3, 4), (5,)], "cuda")
    opt = OPTIMIZERS[name](params, backend="native", capturable=True)
    opt.step()
    for param in params[:missing]:
        param.grad = None
    for _ in range(2):  # also where the last step found nothing to do
        expect_refusal(opt, "no gradient while a CUDA graph is captured")


@every_optimizer
def test_states_are_not_made_during_capture(name):
    opt = OPTIMIZERS[name](make([(3, 4)], "cuda"), backend="native", capturable=True)
    expect_refusal(opt, "run a step before capturing")


@every_optimizer
def test_settings_on_another_device_are_refused(name):
    params = make([(3,)], "cuda")
    with pytest.raises(ValueError, match="lr is a tensor on cpu"):
        OPTIMIZERS[name](params, lr=on_device(0.1, "cpu"), capturable=True)


def test_an_error_names_kernel_tensors_and_device():
    """A launch into a capture that a synchronization has broken; apart, since a context may suffer."""
    code = """
import torch
from friction_kernels import SigSignAdamW
params = [torch.ones(5, device="cuda", requires_grad=True) for _ in range(3)]
for p in params:
    p.grad = torch.ones_like(p)
opt = SigSignAdamW(params, capturable=True, backend="native")
opt.step()
torch.cuda.synchronize()
try:
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            pass
        try:
            opt.step()
        except RuntimeError as error:
            print(error)
except RuntimeError:
    pass
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "friction_adam over 3 tensors on cuda:0 failed: " in done.stdout, done.stderr
