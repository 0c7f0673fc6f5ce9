"""Adam, AdamW, AdamP and SGD: the steps of the libraries they are known from, the bits of their equations."""

from unittest import mock

import adamp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optimizer_cases import both_backends, noise
from test_native import options_of

from friction_kernels import OPTIMIZERS

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = (torch.float32, torch.float64)
# How far a trajectory may be from another library's, relative to its largest number.
BOUNDS = {torch.float32: 4 * torch.finfo(torch.float32).eps, torch.float64: 1e-12}
MOMENTUM = {"lr": 0.05, "momentum": 0.9}
OF_ADAM = [
    {},
    {"lr": 3e-3, "weight_decay": 0.1},
    {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
    {"betas": (0.0, 0.0), "eps": 1e-2},
]
OF_SGD = [
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.1, "maximize": True},
    MOMENTUM,
    {**MOMENTUM, "nesterov": True},
    {**MOMENTUM, "weight_decay": 0.1},
    {**MOMENTUM, "momentum": 0.5, "weight_decay": 0.1, "nesterov": True, "maximize": True},
    {"lr": 1e-3, "momentum": 1.0},
]
OF_ADAMP = [
    {},
    {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3},
    {"lr": 1e-2, "weight_decay": 0.1, "delta": 100.0, "wd_ratio": 0.5},
    {"lr": 1e-2, "delta": 1.0, "nesterov": True},
]
THEIRS = {
    "Adam": (torch.optim.Adam, OF_ADAM),
    "AdamW": (torch.optim.AdamW, OF_ADAM),
    "SGD": (torch.optim.SGD, OF_SGD),
    "AdamP": (adamp.AdamP, OF_ADAMP),
}


def trajectory(make, dtype, steps=20):
    """Parameters after each step, of a matrix and of a vector."""
    params = [
        noise(shape, seed, dtype).requires_grad_() for seed, shape in enumerate([(7, 5), (9,)])
    ]
    opt, points = make(params), []
    for step in range(steps):
        for index, param in enumerate(params):
            param.grad = noise(param.shape, 10 * step + index, dtype)
        opt.step()
        points.append(torch.cat([param.detach().reshape(-1) for param in params]))
    return torch.stack(points)


@both_backends
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "options"),
    [(name, options) for name, (_, each) in THEIRS.items() for options in each],
    ids=str,
)
def test_steps_are_those_of_the_library_it_is_known_from(name, options, dtype, backend):
    theirs = trajectory(lambda params: THEIRS[name][0](params, **options), dtype)
    ours = trajectory(lambda params: OPTIMIZERS[name](params, backend=backend, **options), dtype)
    assert (ours - theirs).abs().max() <= BOUNDS[dtype] * theirs.abs().max()


def rounded_root(tensor):
    return torch.as_tensor(np.sqrt(tensor.numpy()))


@given(
    st.sampled_from(["Adam", "AdamW", "SGD"]).flatmap(
        lambda name: st.tuples(st.just(name), options_of(name))
    ),
    st.sampled_from(DTYPES),
    st.sampled_from([(), (5,), (40, 60), (2, 2053)]),
    st.sampled_from([1.0, 1e-4, 30.0]),
    st.integers(0, 9999),
)
def test_kernels_give_the_bits_of_the_equations(named, dtype, shape, scale, seed):
    name, options = named
    found = []
    # torch's square root on a processor, MKL's, is not rounded to nearest as the kernels' and numpy's is.
    with mock.patch.object(torch.Tensor, "sqrt", rounded_root):
        for backend in ("native", "reference"):
            param = noise(shape, seed, dtype).requires_grad_()
            opt = OPTIMIZERS[name]([param], backend=backend, **options)
            for step in range(4):
                param.grad = scale * noise(shape, seed + 1 + step, dtype)
                opt.step()
            found.append([param.detach(), *opt.state[param].values()])
    assert all(map(torch.equal, *found))
