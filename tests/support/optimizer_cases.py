"""What tests of optimizers share: every class and backend, numbers, parameters, steps, comparisons."""

import math

import pytest
import torch
from torch import nn

from friction_kernels import OPTIMIZERS
from friction_kernels.optim.friction_adam import FrictionAdam
from friction_kernels.optim.rule import MeasuredRule

FRICTION = [name for name, cls in OPTIMIZERS.items() if issubclass(cls, FrictionAdam)]
MEASURED = [name for name, cls in OPTIMIZERS.items() if isinstance(cls.rule, MeasuredRule)]
PROJECTED = [name for name, cls in OPTIMIZERS.items() if cls.rule.projects_rows]
ADAMS = [name for name, cls in OPTIMIZERS.items() if "exp_avg" in cls.rule.states]
# Each shares its code with a class that every run tests, and is left to the deep runs.
COUSINS = {"TanhSignGrad", "SigSignAdamW", "TanhSignAdamP", "DiffGradW", "Adam"}
# Tensors of several blocks of 8-bit state, of one that is not full, and too small for any.
SHAPES = [(20, 30), (300,), (5,), (), (4, 3, 5, 6)]


def case_of(name, *more):
    """A test's parameters, of which the first is a class."""
    return pytest.param(name, *more, marks=pytest.mark.deep if name in COUSINS else ())


def each_of(names, argument="name"):
    """Parametrises a test by class."""
    return pytest.mark.parametrize(argument, list(map(case_of, names)))


def moment_of(name):
    """The first state of a class, which averages gradients."""
    return next(iter(OPTIMIZERS[name].rule.states))


every_optimizer = each_of(OPTIMIZERS)
every_friction = each_of(FRICTION)
every_measured = each_of(MEASURED)
both_backends = pytest.mark.parametrize("backend", ["native", "reference"])


class Odd(torch.Tensor):
    """A tensor subclass, whose memory only torch knows."""


def noise(shape, seed, dtype=torch.float32):
    """The same numbers for the same shape and seed, rounded to the type."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=wide).to(dtype)


def make_params(shapes=SHAPES, dtype=torch.float32):
    return [nn.Parameter(noise(shape, index, dtype)) for index, shape in enumerate(shapes)]


def copies(params):
    return [nn.Parameter(param.detach().clone()) for param in params]


def gradient_of(param, index, step):
    return noise(param.shape, 100 * (step + 1) + index, param.dtype)


def give_gradients(params, step, factor=1.0):
    for index, param in enumerate(params):
        param.grad = gradient_of(param, index, step) * factor


def norm_of(params):
    return math.sqrt(sum(param.grad.abs().double().square().sum().item() for param in params))


def run(opts, params, steps):
    """Steps of one optimizer, or of several that share the parameters."""
    for step in steps:
        give_gradients(params, step)
        for opt in opts if isinstance(opts, list) else [opts]:
            opt.step()


def backward(params, step):
    """Give each parameter the gradient that `run` gives it."""
    grads = [gradient_of(param, index, step) for index, param in enumerate(params)]
    torch.autograd.backward([param * 1 for param in params], grads)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 50), nn.Linear(50, 2))


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        if not isinstance(a, torch.Tensor):  # what a state notes beside its tensors
            assert a == b
            continue
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def assert_same_states(opt, params, other, other_params):
    for param, other_param in zip(params, other_params, strict=True):
        state, twin = opt.state[param], other.state[other_param]
        assert state.keys() == twin.keys()
        assert_same_bits(
            [v for v in state.values() if isinstance(v, torch.Tensor)],
            [twin[k] for k, v in state.items() if isinstance(v, torch.Tensor)],
        )
