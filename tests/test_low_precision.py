"""Low-precision parameters: small updates are kept, and what keeping them takes is what the report says."""

import math

import pytest
import torch
from optimizer_cases import ADAMS, both_backends, every_optimizer, make_params, noise, run
from torch import nn

from bench.shapes import vit_b_16
from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW
from friction_kernels.optim.states import read_wide

pytestmark = pytest.mark.usefixtures("one_thread")

both_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

# Small updates. Below 1, bf16 numbers are 2**-8 apart and fp16 numbers 2**-11: these steps are less than
# half of either, 50 of them more than either.
RATE, STEPS, GRADIENT = 2e-4, 50, 2.0**-10
KEEPING = {
    "split": {"master": "split"},
    "split8": {"master": "split8"},
    "fp32": {"master": "fp32"},
    "stochastic": {"rounding": "stochastic"},
}


def way_made(name, dtype, backend, **options):
    """How far a constant gradient has moved ones, on average; and what became of them."""
    param = nn.Parameter(torch.ones(20_000, dtype=dtype))
    lr = RATE if name in ADAMS else RATE / GRADIENT  # Adam's steps do not depend on its size
    opt = OPTIMIZERS[name]([param], lr=lr, backend=backend, **options)
    param.grad = torch.full_like(param, GRADIENT)
    for _ in range(STEPS):
        opt.step()
    wide = read_wide(param.detach(), opt.state[param])
    return 1 - wide.double().mean().item(), param


@both_backends
@both_types
@every_optimizer
def test_rounding_to_nearest_stalls_and_the_rest_does_not(name, dtype, backend):
    way, _ = way_made(name, torch.float32, backend)
    assert way > 2.0**-8
    # Chance has its deviation; 8 bits more than bf16 make a half of 2**-16 in each step.
    tolerances = {"stochastic": 0.03 * way, "split8": STEPS * 2.0**-17}
    stalled, param = way_made(name, dtype, backend)
    assert stalled == 0 and (param == 1).all()
    for kind, options in KEEPING.items():
        ours, param = way_made(name, dtype, backend, **options)
        assert abs(ours - way) <= tolerances.get(kind, 1e-3 * way), kind
        assert (param < 1).any(), kind
        assert param.dtype == dtype


# The error of parameter and residual: the bounds that docs/numerics.md states, seen after a step.
BOUNDS = {
    (torch.bfloat16, "split"): 0.0,
    (torch.bfloat16, "split8"): 2.0**-16,
    (torch.bfloat16, "fp32"): 0.0,
    (torch.bfloat16, None): 2.0**-8,
    (torch.float16, "split"): 0.0,
    (torch.float16, "split8"): 2.0**-18,  # 2**-8 of the last of eleven places
    (torch.float16, "fp32"): 0.0,
    (torch.float16, None): 2.0**-11,
}


@both_backends
@pytest.mark.parametrize(("dtype", "master"), BOUNDS, ids=str)
def test_a_pair_is_as_near_to_float32_as_documented(dtype, master, backend):
    start = noise((100_000,), 0).to(dtype)
    start[start.abs() < 0.01] = 1.0  # normal numbers of fp16, also after the step
    param, exact = nn.Parameter(start.clone()), nn.Parameter(start.float())
    opt = RSGDM([param], lr=0.01, master=master, backend=backend)
    other = RSGDM([exact], lr=0.01, backend=backend)
    param.grad = noise((100_000,), 1).clamp(-0.3, 0.3).to(dtype)
    exact.grad = param.grad.float()
    opt.step()
    other.step()
    ours = read_wide(param.detach(), opt.state[param]).double()
    error = ((ours - exact.double()) / exact.double()).abs().max().item()
    bound = BOUNDS[dtype, master]
    assert error <= bound
    assert error >= bound / 2.1  # it is the least such power of two
    parameter_error = ((param.double() - exact.double()) / exact.double()).abs().max()
    assert parameter_error <= BOUNDS[dtype, None]


# Memory.


def test_a_vision_transformer_takes_less_than_7_2_bytes_a_parameter():
    # Gradients without memory of their own, which the report does not count.
    params = [nn.Parameter(torch.zeros(s, dtype=torch.bfloat16)) for s in vit_b_16()]
    for param in params:
        param.grad = torch.zeros((), dtype=torch.bfloat16).expand(param.shape)
    opt = SigSignAdamW(params, master="split", state_dtype="8bit", backend="native")
    opt.step()
    report = opt.memory_report()
    assert report.parameters == 86_567_656
    assert report.bytes_per_parameter <= 7.2
    each = report.per_parameter
    assert each["parameter"] == each["residual"] == 2
    for key in ("exp_avg", "exp_avg_sq", "prev_grad"):
        assert 1 + 4 / 256 <= each[key] < 1.02
    assert (
        report.total
        == sum(report.sizes.values())
        == sum(
            tensor.numel() * tensor.element_size()
            for tensor in (*params, *(v for s in opt.state.values() for v in s.values()))
            if isinstance(tensor, torch.Tensor)
        )
    )


def test_frozen_parameters_do_not_hide_what_a_trainable_one_takes():
    frozen = nn.Parameter(torch.zeros(1000), requires_grad=False)
    stopped, trained = (nn.Parameter(torch.zeros(100)) for _ in range(2))
    opt = RSGDM([frozen, stopped, trained])
    run(opt, [stopped, trained], range(1))
    stopped.requires_grad_(False)  # and keeps its state
    report = opt.memory_report()
    assert (report.parameters, report.trainable_parameters) == (1200, 100)
    state = 4 * 100 + opt.state[trained]["step"].nbytes
    assert report.bytes_per_trainable_parameter == (4 * 100 + state) / 100
    assert report.total == 4 * 1200 + 2 * state
    head, *rows, last = str(report).splitlines()
    assert head.endswith("bytes a trainable parameter") and "1,200 parameters, 100 of them" in last
    assert [row.split()[-1] for row in rows] == ["4.000", "0.040", "4.000", "8.040"]
    assert rows[0].split()[1:3] == ["4,800", "4.000"]


@both_backends
def test_the_table_of_a_report_can_be_read(backend):
    params = make_params(dtype=torch.bfloat16)
    opt = SigSignAdamW(params, master="split", state_dtype="8bit", backend=backend)
    assert set(opt.memory_report().sizes) == {"parameter"}
    run(opt, params, range(1))
    lines = str(opt.memory_report()).splitlines()
    assert lines[0].split("  ")[-1].strip() == "bytes a parameter"
    rows = [line.split() for line in lines[1:-1]]
    names = ["parameter", "step", "exp_avg", "exp_avg_sq", "prev_grad", "residual", "in"]
    assert [row[0] for row in rows] == names
    count = sum(param.numel() for param in params)
    assert rows[0] == ["parameter", f"{2 * count:,}", "2.000"]
    assert lines[-1] == f"{count:,} parameters; gradients not counted"
    total = int(rows[-1][2].replace(",", ""))
    assert total == sum(int(row[1].replace(",", "")) for row in rows[:-1])
    assert float(rows[-1][3]) == pytest.approx(total / count, abs=6e-4)
    assert len({len(line) for line in lines[:-1]}) == 1 and math.isfinite(total)


@pytest.mark.deep
@both_backends
@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
def test_averages_in_few_bits_do_not_freeze(state_dtype, backend):
    """Each step moves exp_avg_sq by a thousandth, less than half a code or half a bf16's last place."""
    param = nn.Parameter(torch.ones(256))
    opt = SigSignAdamW([param], lr=0.0, state_dtype=state_dtype, backend=backend)
    large, small = torch.ones(256), torch.cat([torch.ones(128), torch.full((128,), 1e-3)])
    for grad, steps in ((large, 1000), (small, 2000)):
        param.grad = grad
        for _ in range(steps):
            opt.step()
    fell = opt.state_dict()["state"][0]["exp_avg_sq"][128:].float()
    exact = (1 - 0.999**1000) * 0.999**2000
    assert (fell / exact - 1).abs().max() < 0.2
