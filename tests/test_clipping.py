"""The norm of the gradients: clipping and the check for infinities within the step, and outside of it."""

import math

import pytest
import torch
from optimizer_cases import (
    assert_same_bits,
    both_backends,
    copies,
    every_optimizer,
    give_gradients,
    make_params,
    noise,
    norm_of,
)
from torch import nn
from torch.distributed.tensor import DTensor

from friction_kernels import OPTIMIZERS, SigSignAdamW, clip_grad_norm_

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = range(4)
TORCHS = torch.nn.utils.clip_grad_norm_


def pair(name, backend, dtype=torch.float32, **options):
    """An optimizer with options, one without, and the parameters of each."""
    params, twins = make_params(dtype=dtype), make_params(dtype=dtype)
    cls = OPTIMIZERS[name]
    return params, cls(params, backend=backend, **options), twins, cls(twins, backend=backend)


# Within the step. Gradients of these sizes are clipped at every step, at some, and at none.


@both_backends
@pytest.mark.parametrize("max_norm", [1e-3, 36.0, 1e9], ids=["always", "sometimes", "never"])
@every_optimizer
def test_clipping_is_that_of_torch_before_the_step(name, max_norm, backend):
    params, opt, twins, other = pair(name, backend, max_grad_norm=max_norm, weight_decay=0.1)
    other.param_groups[0]["weight_decay"] = 0.1
    for step in STEPS:
        give_gradients(params, step)
        give_gradients(twins, step)
        grads = [param.grad.clone() for param in params]
        versions = [param.grad._version for param in params]
        opt.step()
        assert_same_bits([param.grad for param in params], grads)
        assert [param.grad._version for param in params] == versions
        norm = TORCHS(twins, max_norm)
        other.step()
        assert opt.grad_norm.dtype == torch.float32 and opt.grad_norm.shape == ()
        assert opt.grad_norm.device == params[0].device
        torch.testing.assert_close(opt.grad_norm, norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(params, twins, rtol=1e-5, atol=1e-6)


@both_backends
def test_gradients_near_the_bound_are_clipped_at_some_steps_only(backend):
    # What the case "sometimes" above stands on.
    params = make_params()
    norms = []
    for step in STEPS:
        give_gradients(params, step)
        norms.append(norm_of(params))
    assert min(norms) < 36 < max(norms)


@both_backends
@every_optimizer
def test_each_group_is_scaled_to_its_own_bound_by_the_norm_of_all_that_ask(name, backend):
    params, twins = make_params(), make_params()
    bounds = [1.0, None, 0.01]
    opt, other = (
        OPTIMIZERS[name](
            [{"params": p[:2]}, {"params": p[2:4]}, {"params": p[4:]}], backend=backend
        )
        for p in (params, twins)
    )
    for group, bound in zip(opt.param_groups, bounds, strict=True):
        group["max_grad_norm"] = bound
    for step in STEPS:
        give_gradients(params, step)
        give_gradients(twins, step)
        norm = norm_of([*params[:2], *params[4:]])
        for group, bound in zip(other.param_groups, bounds, strict=True):
            for param in group["params"]:
                param.grad *= 1 if bound is None else bound / norm
        opt.step()
        other.step()
        assert opt.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    torch.testing.assert_close(params, twins, rtol=1e-5, atol=1e-6)


@both_backends
@every_optimizer
def test_an_infinite_bound_measures_and_changes_no_bit(name, backend):
    params, opt, twins, other = pair(name, backend, max_grad_norm=math.inf)
    assert opt.grad_norm is None
    for step in STEPS:
        give_gradients(params, step)
        give_gradients(twins, step)
        opt.step()
        other.step()
        assert opt.grad_norm.item() == pytest.approx(norm_of(params), rel=1e-6)
    assert_same_bits(params, twins)
    assert other.grad_norm is None
    opt.param_groups[0]["max_grad_norm"] = None
    opt.step()
    assert opt.grad_norm is None


@both_backends
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.complex64], ids=str
)
def test_clipping_of_other_types(dtype, backend):
    wide = torch.promote_types(dtype, torch.float32)
    params, twins = make_params(dtype=dtype), make_params(dtype=wide)
    options = {"lr": 0.5, "eps": 0.1, "backend": backend}  # so that the gradients' size matters
    opt, other = SigSignAdamW(params, max_grad_norm=0.5, **options), SigSignAdamW(twins, **options)
    give_gradients(params, 0)
    norm = norm_of(params)
    for param, twin in zip(params, twins, strict=True):
        twin.data = param.detach().to(wide).clone()
        twin.grad = param.grad.to(wide) * (0.5 / norm)
    opt.step()
    other.step()
    assert opt.grad_norm.item() == pytest.approx(norm, rel=1e-6)
    eps = max(2 * torch.finfo(dtype).eps, 1e-6)
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param.to(wide), twin, rtol=eps, atol=1e-6)


@both_backends
def test_gradients_too_large_to_be_squared_in_float32_are_clipped(backend):
    params, opt, twins, other = pair("RSGDM", backend, max_grad_norm=1.0)
    for param, twin in zip(params, twins, strict=True):
        param.grad = torch.full_like(param, 1e30)
        twin.grad = torch.full_like(twin, 1 / math.sqrt(sum(p.numel() for p in params)))
    opt.step()
    other.step()
    assert opt.grad_norm.item() == pytest.approx(norm_of(params), rel=1e-6)
    torch.testing.assert_close(params, twins, rtol=1e-5, atol=1e-6)


@both_backends
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@every_optimizer
def test_clipping_by_a_norm_that_is_not_finite_is_that_of_torch(name, bad, backend):
    params, opt, twins, other = pair(name, backend, max_grad_norm=1.0)
    for each in (params, twins):
        give_gradients(each, 0)
        each[1].grad[3] = bad
    opt.step()
    norm = TORCHS(twins, 1.0)
    other.step()
    torch.testing.assert_close(opt.grad_norm, norm, equal_nan=True)
    for param, twin in zip(params, twins, strict=True):
        assert torch.equal(param.isnan(), twin.isnan())


@both_backends
def test_steps_without_gradients_have_a_norm_of_zero(backend):
    params, opt, *_ = pair("SigSignAdamW", backend, max_grad_norm=1.0)
    before = copies(params)
    opt.step()
    assert opt.grad_norm == 0
    assert_same_bits(params, before)


def test_both_backends_in_one_optimizer_have_one_norm():
    params, twins = make_params(), make_params()
    groups = [{"params": params[:2]}, {"params": params[2:], "backend": "reference"}]
    opt, other = SigSignAdamW(groups, max_grad_norm=0.1), SigSignAdamW(twins, max_grad_norm=0.1)
    for step in STEPS:
        give_gradients(params, step)
        give_gradients(twins, step)
        opt.step()
        other.step()
        torch.testing.assert_close(opt.grad_norm, other.grad_norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(params, twins, rtol=1e-6, atol=1e-7)


# Infinities without a GradScaler.


@both_backends
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", range(5))
@pytest.mark.parametrize("bound", [None, 1.0])
def test_a_step_with_what_is_not_finite_changes_nothing(bound, where, bad, backend):
    # One group asks; the other one's gradients count, too.
    params = make_params()
    groups = [{"params": params[:2], "skip_nonfinite": True}, {"params": params[2:]}]
    groups[1]["max_grad_norm"] = bound
    opt = SigSignAdamW(groups, backend=backend)
    give_gradients(params, 0)
    opt.step()
    before = copies(params)
    states = {p: {k: v.clone() for k, v in s.items()} for p, s in opt.state.items()}
    give_gradients(params, 1)
    params[where].grad.view(-1)[-1] = bad
    opt.step()
    assert_same_bits(params, before)
    for param, state in states.items():
        assert_same_bits(opt.state[param].values(), state.values())
    give_gradients(params, 1)
    opt.step()
    assert not any(map(torch.equal, params, before))
    assert all(state["step"] == 2 for state in opt.state.values())


@both_backends
@every_optimizer
def test_finite_steps_are_the_same_to_the_bit_whether_they_are_checked(name, backend):
    params, opt, twins, other = pair(name, backend, skip_nonfinite=True)
    for step in STEPS:
        give_gradients(
            params, step, 1e25
        )  # squares of these are infinite in float32, these are not
        give_gradients(twins, step, 1e25)
        opt.step()
        other.step()
    assert_same_bits(params, twins)
    assert all(state["step"] == 4 for state in opt.state.values())


# clip_grad_norm_.


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("norm_type", [2.0, 2, 1.0, math.inf, "inf", 0.5])
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clip_grad_norm_is_torchs_to_the_bit(max_norm, norm_type, foreach):
    params, twins = make_params(), make_params()
    for each in (params, twins):
        give_gradients(each, 0)
        each[2].grad = None
    ours = clip_grad_norm_(params, max_norm, norm_type, foreach=foreach)
    theirs = TORCHS(twins, max_norm, norm_type, foreach=foreach)
    assert_same_bits([ours], [theirs])
    grads = [[p.grad for p in each if p.grad is not None] for each in (params, twins)]
    assert_same_bits(*grads)
    assert not ours.requires_grad


def test_clip_grad_norm_takes_what_torchs_takes():
    params = make_params()
    assert clip_grad_norm_(params, 1.0) == 0 and clip_grad_norm_([], 1.0) == 0
    give_gradients(params, 0)
    first = params[0].grad.norm()
    assert clip_grad_norm_(params[0], 1.0) == first
    assert params[0].grad.norm() <= 1
    assert clip_grad_norm_((p for p in params[1:3]), 1.0) > 1
    with pytest.warns(UserWarning, match="empty generator"):
        clip_grad_norm_((p for p in ()), 1.0)
    params[0].grad[0, 0] = math.nan
    with pytest.raises(RuntimeError, match="non-finite"):
        clip_grad_norm_(params, 1.0, error_if_nonfinite=True)


def test_clip_grad_norm_of_distributed_tensors(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        param = nn.Parameter(torch.distributed.tensor.distribute_tensor(noise((6, 4), 0), mesh))
        param.grad = torch.distributed.tensor.distribute_tensor(noise((6, 4), 1), mesh)
        norm = clip_grad_norm_([param], 0.5)
        assert isinstance(norm, DTensor)
        torch.testing.assert_close(norm.full_tensor(), noise((6, 4), 1).norm())
        torch.testing.assert_close(param.grad.full_tensor().norm(), torch.tensor(0.5))
    finally:
        torch.distributed.destroy_process_group()
