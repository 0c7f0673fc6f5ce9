"""Bytes that a step moves for each parameter, counted from the tensors that it is given and that it keeps.

A list is read where other numbers in it make another step, and written where the step changes it; nobody
says which. DESIGN.md's table, plus the scales of 8-bit blocks, 4 bytes for 256 elements.
"""

import copy

import pytest
import torch
from torch import nn

from friction_kernels import RSGDM, SGD, Adam, AdamP, AdamW, DiffGrad, SigSignAdamW

SIZE = 64 * 256
SCALES = 4 / 256


def lists_of(param, opt):
    tensors = {k: v for k, v in opt.state[param].items() if isinstance(v, torch.Tensor)}
    state = {key: value for key, value in tensors.items() if key != "step"}
    return {"param": param.data, "grad": param.grad, **state}


def ready(make, dtype):
    """An optimizer after two steps, with a gradient for the third."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(SIZE, generator=generator).to(dtype) for _ in range(4)]
    param = nn.Parameter(values[0])
    opt = make([param])
    for grad in values[1:3]:
        param.grad = grad
        opt.step()
    param.grad = values[3]
    return param, opt


def after_a_step(param, opt, spoilt=None):
    """All lists after a step, of which one had other numbers before."""
    grad = param.grad.clone()  # a copied parameter has none
    param, opt = copy.deepcopy((param, opt))
    param.grad = grad
    if spoilt is not None:
        values = lists_of(param, opt)[spoilt]
        half = len(values) // 2
        values[half:] = values[half:].flip(0).clone()
    before = {key: value.clone() for key, value in lists_of(param, opt).items()}
    opt.step()
    return before, lists_of(param, opt)


def bytes_moved(make, dtype=torch.float32):
    param, opt = ready(make, dtype)
    before, after = after_a_step(param, opt)
    written = [key for key in after if not torch.equal(after[key], before[key])]
    read = []
    for key in before:
        _, others = after_a_step(param, opt, key)
        if any(not torch.equal(others[other], after[other]) for other in written):
            read.append(key)
    return sum(after[key].nbytes for key in (*read, *written)) / SIZE


def ours(cls, **options):
    return lambda params: cls(params, lr=0.1, backend="native", **options)


TABLE = {
    "torch.optim.AdamW": (lambda params: torch.optim.AdamW(params, lr=0.1, fused=True), 28, 0),
    "friction, prev_grad fp32": (ours(SigSignAdamW), 36, 0),
    "friction, prev_grad bf16": (ours(SigSignAdamW, state_dtype={"prev_grad": "bf16"}), 32, 0),
    "friction, prev_grad 8bit": (ours(SigSignAdamW, state_dtype={"prev_grad": "8bit"}), 30, 1),
    "friction, all in 8bit": (ours(SigSignAdamW, state_dtype="8bit"), 18, 3),
    "DiffGrad": (ours(DiffGrad), 36, 0),
    "AdamW": (ours(AdamW), 28, 0),
    "Adam": (ours(Adam), 28, 0),
    "AdamP": (ours(AdamP), 28, 0),
    "AdamW, all in 8bit": (ours(AdamW, state_dtype="8bit"), 16, 2),
    "RSGDM": (ours(RSGDM), 20, 0),
    "SGD": (ours(SGD, momentum=0.9), 20, 0),
    "SGD, 8bit": (ours(SGD, momentum=0.9, state_dtype="8bit"), 14, 1),
}


@pytest.mark.parametrize("row", TABLE)
def test_a_step_moves_the_bytes_of_its_floor(row):
    make, expected, quantized_states = TABLE[row]
    assert bytes_moved(make) == expected + 2 * quantized_states * SCALES


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"master": "split", "state_dtype": "8bit"}, 2 * (2 + 2 + 3 * (1 + SCALES)) + 2),
        ({"rounding": "stochastic", "state_dtype": "8bit"}, 2 * (2 + 3 * (1 + SCALES)) + 2),
    ],
    ids=str,
)
def test_a_low_precision_step_moves_what_it_keeps_twice_and_the_gradient(options, expected):
    assert bytes_moved(ours(SigSignAdamW, **options), torch.bfloat16) == expected
