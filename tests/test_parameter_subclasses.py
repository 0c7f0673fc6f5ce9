"""Subclasses of nn.Parameter that leave everything to torch are served natively; others are not."""

import gc
import weakref

import pytest
import torch
from optimizer_cases import every_optimizer
from torch import nn

from friction_kernels import OPTIMIZERS, SigSignAdamW, count_launches
from friction_kernels.backends import native_fallback_reason


class Tagged(nn.Parameter):
    """As of libraries that note something of a parameter."""

    tag = "expert"


class Logged(nn.Parameter):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


class Elsewhere(torch.Tensor):
    """A wrapper: its memory is another tensor's."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        unwrapped = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        return func(*unwrapped, **(kwargs or {}))


class OwnGradient(nn.Parameter):
    @property
    def grad(self):
        return None


class Dispatching(nn.Parameter):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def values():
    return torch.linspace(-1, 1, 600)


@pytest.mark.filterwarnings("error")
@every_optimizer
def test_a_plain_subclass_is_served_natively(name):
    ours, twin = Tagged(values()), nn.Parameter(values())
    opts = [OPTIMIZERS[name]([param], state_dtype="8bit") for param in (ours, twin)]
    for number in range(3):
        ours.grad, twin.grad = torch.full((600,), 1.0 + number), torch.full((600,), 1.0 + number)
        with count_launches() as launches:
            opts[0].step()
        assert launches.total > 0
        opts[1].step()
    assert type(ours) is Tagged and ours.tag == "expert"
    assert torch.equal(ours, twin)


def test_a_class_made_anew_is_served_natively_and_kept_apart_from_others():
    for number in range(20):
        kind = type(f"Tagged{number}", (nn.Parameter,), {})
        param = kind(values())
        param.grad = values()
        SigSignAdamW([param], backend="native").step()
        del kind, param
        logged = type(f"Logged{number}", (Logged,), {})(values())
        assert native_fallback_reason(logged).startswith(f"it is a Logged{number}")


def test_a_class_lives_no_longer_than_its_parameters():
    kinds = []
    for number in range(3):
        kind = type(f"Tagged{number}", (nn.Parameter,), {})
        param = kind(values())
        param.grad = values()
        SigSignAdamW([param], backend="native").step()
        kinds.append(weakref.ref(kind))
    del kind, param
    gc.collect()
    assert [kind() for kind in kinds] == [None] * 3


def test_a_flat_parameter_of_fsdp_is_served_natively():
    flat_param = pytest.importorskip("torch.distributed.fsdp._flat_param")
    param = flat_param.FlatParameter(values(), requires_grad=True)
    param.grad = values()
    SigSignAdamW([param], backend="native").step()
    assert not torch.equal(param, values())


@pytest.mark.parametrize("make", [Logged, Elsewhere, OwnGradient, Dispatching])
def test_a_subclass_with_ways_of_its_own_is_not(make):
    param = make(values())
    assert f"it is a {make.__name__}, whose memory only torch knows" in native_fallback_reason(
        param
    )


def test_a_lazy_parameter_is_served_natively_once_it_has_a_shape():
    model = nn.LazyLinear(4)
    opt = SigSignAdamW(model.parameters(), backend="native")
    opt.step()
    model(torch.ones(2, 3)).sum().backward()
    opt.step()
    assert opt.state[model.weight]["exp_avg"].shape == (4, 3)
