"""Where gradients cannot be released: the error says why, and nothing is changed."""

import pytest
import torch
from optimizer_cases import assert_same_bits, backward, copies, make_params, network, noise
from torch import nn

from friction_kernels import SigSignAdamW, release_gradients


@pytest.mark.parametrize("option", [{"max_grad_norm": 1.0}, {"skip_nonfinite": True}], ids=str)
def test_options_that_need_all_gradients_are_refused(option):
    [name] = option
    params = make_params()
    opt = SigSignAdamW([{"params": params[:2]}, {"params": params[2:], **option}])
    with pytest.raises(ValueError, match=f"{name} needs all gradients at once"):
        release_gradients(params, opt)
    backward(params, 0)
    assert all(param.grad is not None for param in params)  # nothing was registered

    params = make_params()
    opt = SigSignAdamW(params)
    release_gradients(params, opt)
    backward(params, 0)
    before = copies(params)
    opt.param_groups[0].update(option)
    with pytest.raises(RuntimeError, match=f"{name} needs all gradients at once"):
        backward(params, 1)
    with pytest.raises(RuntimeError, match=f"{name} needs all gradients at once"):
        opt.step()
    assert_same_bits(params, before)


def test_a_grad_scaler_is_refused():
    model = network()
    opt, scaler = SigSignAdamW(model.parameters()), torch.amp.GradScaler("cpu")
    release_gradients(model, opt)
    scaler.scale(model(noise((8, 6), 0)).sum()).backward()
    with pytest.raises(RuntimeError, match="GradScaler"):
        scaler.step(opt)


def test_a_gradient_that_is_there_again_is_not_stepped_by_twice():
    params = make_params()
    opt = SigSignAdamW([{"params": params[:2]}, {"params": params[2:]}])
    handle = release_gradients(params, opt)
    backward(params, 0)
    before = copies(params)
    params[2].grad = torch.ones_like(params[2])
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 1 .* has its gradient again"):
        opt.step()
    assert_same_bits(params, before)
    handle.remove()
    opt.step()
    assert [opt.state[param]["step"].item() for param in params] == [1, 1, 2, 1, 1]


def test_other_misuse_is_refused():
    model = network()
    with pytest.raises(TypeError, match="AdamW is none of"):
        release_gradients(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(ValueError, match="none of these parameters"):
        release_gradients(model, SigSignAdamW(network().parameters()))
    with pytest.raises(ValueError, match="frozen"):
        opt = SigSignAdamW(model.requires_grad_(False).parameters())
        release_gradients(model, opt)
    lazy = nn.LazyLinear(3)
    with pytest.raises(ValueError, match="lazy"):
        release_gradients(lazy, SigSignAdamW(lazy.parameters()))
