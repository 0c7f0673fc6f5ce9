"""Parameters that somebody else writes, or gives another type, between steps."""

import pytest
import torch
from optimizer_cases import both_backends, every_optimizer

from friction_kernels import OPTIMIZERS, SigSignAdamW

MASTERS = {"split": "residual", "split8": "residual", "fp32": "master"}


def stepped(param, opt, steps=1):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
        opt.step()


@both_backends
@every_optimizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_master_gives_way_to_what_was_written(name, dtype, backend):
    param = torch.nn.Parameter(torch.randn(300, 3, dtype=dtype))
    opt = OPTIMIZERS[name]([param], lr=1e-4, master="fp32", backend=backend)
    stepped(param, opt, steps=2)
    kept = opt.state[param]["master"].clone()
    written = torch.zeros_like(param, dtype=torch.bool)
    written[::7] = True
    with torch.no_grad():
        param[::7] = 5.0
    stepped(param, opt)
    master = opt.state[param]["master"]
    torch.testing.assert_close(
        master[written], torch.full_like(master[written], 5.0), rtol=0, atol=0.01
    )
    torch.testing.assert_close(master[~written], kept[~written], rtol=0, atol=0.01)
    assert (master[~written] != kept[~written]).any()
    assert torch.equal(master.to(dtype), param)


@pytest.mark.parametrize("master", MASTERS)
@both_backends
def test_a_model_that_becomes_bf16_between_steps_gets_its_master_weight(master, backend):
    param = torch.nn.Parameter(torch.ones(300))
    opt = SigSignAdamW([param], lr=1e-4, master=master, backend=backend)
    stepped(param, opt)
    assert MASTERS[master] not in opt.state[param]
    param.data = param.data.bfloat16()
    stepped(param, opt)
    assert MASTERS[master] in opt.state[param]


@both_backends
def test_small_steps_move_a_model_that_became_bf16(backend):
    param = torch.nn.Parameter(torch.ones(300))
    options = {"weight_decay": 0, "beta3": 0, "rounding": "stochastic"}  # each step is lr / 2
    opt = SigSignAdamW([param], lr=1e-4, backend=backend, **options)
    param.grad = torch.ones_like(param)
    opt.step()
    param.data, param.grad = param.data.bfloat16(), None
    for _ in range(100):
        param.grad = torch.ones_like(param)
        opt.step()
    assert param.float().mean().item() == pytest.approx(1 - 101 * 0.5e-4, abs=1e-3)
