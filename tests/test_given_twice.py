"""A parameter that is given twice is warned of as by torch, and stepped as torch's loop would: twice."""

import warnings

import pytest
import torch
from optimizer_cases import every_optimizer
from torch import nn

from friction_kernels import OPTIMIZERS, RSGDM, SigSignAdamW, TanhSignAdamW, release_gradients

every_backend = pytest.mark.parametrize("backend", ["auto", "reference"])
pytestmark = pytest.mark.filterwarnings(
    "ignore:optimizer contains a parameter group with duplicate", "ignore:.*it is given twice"
)


def trained(shape=(40, 30)):
    return nn.Parameter(torch.linspace(-1, 1, 1200).reshape(shape))


def gradient(number, like):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def test_it_is_warned_of_as_by_torch():
    for cls in (torch.optim.AdamW, SigSignAdamW):
        param = trained()
        with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
            cls([param, param])


@every_backend
@every_optimizer
def test_it_is_stepped_once_for_each_time_it_is_given(name, backend):
    twice, other, once = trained(), trained(), trained()
    opt = OPTIMIZERS[name]([twice, other, twice], backend=backend)
    plain = OPTIMIZERS[name]([once], backend=backend)
    for number in range(3):
        twice.grad, other.grad = gradient(number, twice), gradient(9, other)
        once.grad = gradient(number, once)
        opt.step()
        plain.step()
        plain.step()
    torch.testing.assert_close(twice, once, rtol=1e-5, atol=1e-6)
    if "step" in opt.state[twice]:
        assert opt.state[twice]["step"] == 6
    assert opt.state[other]["step"] == 3


@every_backend
def test_its_steps_are_those_of_torchs_loop(backend):
    ours, theirs = trained(), trained()
    opt = TanhSignAdamW([ours, ours], beta3=0.0, backend=backend)  # no friction
    adamw = torch.optim.AdamW([theirs, theirs], foreach=False)
    for number in range(3):
        ours.grad, theirs.grad = gradient(number, ours), gradient(number, theirs)
        opt.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@every_optimizer
def test_both_backends_are_alike_in_every_way_to_keep_it(name):
    options = {"state_dtype": "8bit", "rounding": "stochastic", "seed": 3}
    found = []
    for backend in ("auto", "reference"):
        param = nn.Parameter(trained().detach().bfloat16())
        opt = OPTIMIZERS[name]([param, param], lr=0.01, backend=backend, **options)
        for number in range(3):
            param.grad = gradient(number, param)
            opt.step()
        found.append(param.detach().float())
    torch.testing.assert_close(*found, rtol=2**-7, atol=1e-3)


@every_backend
def test_its_gradient_counts_twice_in_the_norm_as_in_torchs(backend):
    param, other = trained(), trained()
    opt = SigSignAdamW([param, param, other], max_grad_norm=1.0, backend=backend)
    for number in range(2):
        param.grad, other.grad = gradient(number, param), gradient(5, other)
        opt.step()
        expected = torch.nn.utils.get_total_norm([param.grad, param.grad, other.grad])
        torch.testing.assert_close(opt.grad_norm, expected)


@every_optimizer
def test_native_alone_cannot_serve_it_and_says_so(name):
    param = trained()
    opt = OPTIMIZERS[name]([param, param], backend="native")
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"parameter 1 of group 0 .*it is given twice"):
        opt.step()
    assert torch.equal(param, trained())
    assert not opt.state


@every_backend
def test_it_may_have_been_put_into_a_second_group_by_hand(backend):
    param, once = trained(), trained()
    opt = RSGDM([{"params": [param]}, {"params": [trained()], "lr": 0.01}], backend=backend)
    plain = RSGDM([once], backend=backend)
    opt.param_groups[1]["params"].append(param)
    for number in range(2):
        param.grad, once.grad = gradient(number, param), gradient(number, once)
        opt.step()
        for lr in (0.1, 0.01):
            plain.param_groups[0]["lr"] = lr
            plain.step()
    torch.testing.assert_close(param, once, rtol=1e-5, atol=1e-6)


def test_its_state_is_saved_and_loaded():
    param, other = trained(), trained()
    opt = SigSignAdamW([param, param], state_dtype="8bit")
    param.grad = gradient(0, param)
    opt.step()
    loaded = SigSignAdamW([other, other], state_dtype="8bit")
    loaded.load_state_dict(opt.state_dict())
    assert torch.equal(loaded.state[other]["exp_avg"], opt.state[param]["exp_avg"])


def test_the_warning_of_plain_torch_says_why():
    param = trained()
    opt = SigSignAdamW([param, param])
    param.grad = torch.ones_like(param)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opt.step()
    assert ["it is given twice" in str(warning.message) for warning in caught] == [True]


def test_it_is_not_released():
    model = nn.Linear(3, 2)
    opt = SigSignAdamW([model.weight, model.weight, model.bias])
    with pytest.raises(ValueError, match="a parameter is given to the optimizer twice"):
        release_gradients(model, opt)
