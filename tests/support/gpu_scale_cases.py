"""What tests/test_gpu.py checks on a card of states in few bits, norms and scaled gradients, as functions
of a device; tests/host_gpu/scale_checks.py has many more, on the host."""

import math
from dataclasses import replace

import pytest
import torch
from plan_driver import CHUNK, MASTERS, PROJECTED, QUANTIZED, STATES, Driven, Form

from friction_kernels import lists

FLOAT, BFLOAT, HALF = torch.float32, torch.bfloat16, torch.float16
FORMS = {
    "float32, 8 bits": Form((0,), FLOAT, states=QUANTIZED),
    "bfloat16, 8 bits": Form((0,), BFLOAT, states=QUANTIZED),
    "float32, 8-bit prev_grad": Form((0,), FLOAT, states=(FLOAT, FLOAT, QUANTIZED)),
    "bfloat16 states": Form((0,), FLOAT, BFLOAT, states=BFLOAT),
    "mixed": Form((0,), HALF, FLOAT, states=(QUANTIZED, HALF, BFLOAT)),
    **{f"bfloat16, {c}": Form((0,), BFLOAT, states=QUANTIZED, master=c) for c in MASTERS},
    **{f"float16, {c}": Form((0,), HALF, states=FLOAT, master=c) for c in MASTERS},
    "bfloat16, stochastic": Form((0,), BFLOAT, states=QUANTIZED, stochastic=True),
    "float16, stochastic": Form((0,), HALF, states=FLOAT, stochastic=True),
}
SHAPES = [(1,), (255,), (256,), (257,), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (301, 677)]


def step_of(device: str, rule: str, forms: list[Form]) -> Driven:
    driven = Driven(rule, forms, device=device)
    for _ in range(3):
        driven.new_gradients()
        assert driven.step() is None
    return driven


def check_form(device: str, rule: str, name: str, layout: str) -> None:
    """The processor's bits; of AdamP those of the states, since its sums go in another order."""
    form = FORMS[name]
    if isinstance(form.states, tuple):
        form = replace(form, states=form.states[-len(STATES[rule]) :])
    forms = [replace(form, shape=shape, layout=layout) for shape in SHAPES]
    ours, theirs = step_of(device, rule, forms), step_of("cpu", rule, forms)
    if rule not in PROJECTED:
        assert ours.bits() == theirs.bits()
    for p, q in zip(ours.params, theirs.params, strict=True):
        for key in STATES[rule]:
            assert torch.equal(ours.state[p][key].cpu(), theirs.state[q][key])


def check_squared_norm(device: str) -> None:
    """Gradients of all types; the same bits again."""
    kinds = [FLOAT, BFLOAT, HALF, torch.float64]
    forms = [Form(shape, BFLOAT, grad, QUANTIZED) for shape in SHAPES for grad in kinds]
    driven = Driven("friction_adam", forms, device=device)
    driven.new_gradients()
    found = []
    for _ in range(2):
        target = torch.full((1,), -1.0, dtype=torch.float64, device=device)
        targets = [(target.device.index if target.is_cuda else -1, target)]
        assert driven.squared_norm([True] * len(forms), targets) is None
        found.append(target.item())
    exact = sum(param.grad.double().square().sum().item() for param in driven.params)
    assert found[0] == found[1] == pytest.approx(exact, rel=1e-6)


def check_lists(device: str) -> None:
    """Products of lists of all types and strides, the same bits again; sums with the CPU's bits."""
    kinds = [FLOAT, BFLOAT, HALF, torch.float64]
    generator = torch.Generator().manual_seed(0)
    on_cpu: list[list[torch.Tensor]] = [[] for _ in range(8)]
    for place, shape in enumerate(2 * SHAPES):
        for number, one in enumerate(on_cpu):
            dtype = kinds[(number + place) % (3 if place % 4 else 4)]
            pairs = torch.randn(*shape, 2, generator=generator, dtype=torch.float64).to(dtype)
            is_strided = place >= len(SHAPES) and (number + place) % 3 == 0
            one.append(pairs[..., 0] if is_strided else pairs[..., 0].contiguous())
    weights = torch.linspace(-1, 2, 8, dtype=torch.float64)
    for count in (1, 2, 3, 4, 8):
        theirs = on_cpu[:count]
        mine = [[tensor.to(device) for tensor in one] for one in theirs]
        for by in (None, "tensor"):
            found, again = lists.gram(*mine, by=by), lists.gram(*mine, by=by)
            assert torch.equal(found, again)
            scale = found.diagonal(dim1=-2, dim2=-1).sqrt().cpu()
            error = (found.cpu() - lists.gram(*theirs, by=by)).abs()
            assert (error <= 1e-6 * scale[..., None] * scale[..., None, :]).all()
        expected = lists.combine(theirs, weights[:count])
        for given in (weights[:count].tolist(), weights[:count].to(device)):
            for y, z in zip(lists.combine(mine, given), expected, strict=True):
                assert torch.equal(y.cpu(), z)


def check_gradient_scaling(device: str, rule: str) -> None:
    """On a GPU alone: gradients scaled, clipped and skipped by numbers that lie there."""

    def number(value, dtype=FLOAT):
        return torch.tensor([value], dtype=dtype, device=device)

    forms = [Form((40, 60)), Form((3, 700), BFLOAT, states=QUANTIZED, master="split")]
    ours = Driven(rule, forms, device=device, on_device=True)
    ours.new_gradients()
    index, before = number(0.0).device.index, ours.bits()
    for scaling in (
        (None, None, number(1.0), False),
        (number(math.inf, torch.float64), None, None, True),
        (number(math.nan, torch.float64), number(2.0), number(0.0), True),
    ):
        assert ours.step(scaling=[(index, *scaling)]) is None
        assert ours.bits() == before
    scaling = [(index, number(4e6, torch.float64), number(8.0), number(0.0), True)]
    assert ours.step({"max_norm": 1.0}, scaling=scaling) is None
    theirs = Driven(rule, forms)
    theirs.new_gradients()
    factor = 1.0 / (math.sqrt(4e6) / 8.0 + 1e-6) / 8.0
    assert theirs.step({"grad_factor": factor}) is None
    for p, q in zip(ours.params, theirs.params, strict=True):
        assert ours.state[p]["step"].item() == 1.0
        for key in STATES[rule]:
            assert torch.equal(ours.state[p][key].cpu(), theirs.state[q][key])
        if rule not in PROJECTED:
            assert torch.equal(p.cpu(), q)
