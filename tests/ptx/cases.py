"""Steps, statistics and norms that between them execute nearly every instruction of the CUDA kernels.

usage: python cases.py FILE: writes what they make, as digests, where the host walks the launches.
"""

import ctypes
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from plan_driver import BLOCK, CHUNK, MASTERS, PROJECTED, QUANTIZED, STATES, Driven, Form
from torch import Tensor

from friction_kernels import backends

FLOAT, BFLOAT, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
FORMS = {  # one for each kind of kernels
    "float32": Form((0,)),
    "bfloat16": Form((0,), BFLOAT, states=(FLOAT, FLOAT, BFLOAT)),
    "float64": Form((0,), DOUBLE, HALF, states=DOUBLE),
    "8 bits": Form((0,), HALF, states=QUANTIZED, master="split8"),
    "mixed": Form((0,), HALF, FLOAT, states=(QUANTIZED, HALF, BFLOAT)),
}
# What 16-bit parameters may have: a master weight, or stochastic rounding, in whole tensors and in shards.
KEPT = [
    *({"master": master} for master in (None, *MASTERS)),
    *({"stochastic": True, "shard": shard} for shard in (None, (7, 96, 288))),
]
EVERY_FORM = [
    Form((0,), param, grad, states, **kept)
    for param in (FLOAT, BFLOAT, HALF)
    for grad in (FLOAT, BFLOAT, HALF, DOUBLE)
    for kept in (KEPT if param != FLOAT else [{}])
    for states in (
        FLOAT,
        BFLOAT,
        HALF,
        QUANTIZED,
        (QUANTIZED, FLOAT, BFLOAT),
        (HALF, QUANTIZED, HALF),
    )
] + [Form((0,), DOUBLE, grad, DOUBLE) for grad in (FLOAT, BFLOAT, HALF, DOUBLE)]
LAYOUTS = ("contiguous", "offset", "gaps", "deep")
SIZES = [0, 1, 9, BLOCK - 1, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 8]
ROWS = [(5, 31), (5, 33), (3, 257), (2, 2049), (1, 9_000), (70, 31), (700, 1), (0, 3), (9,)]
DEEP = [(3, 4, 5), (2, 3, 2, 3, 2), (70, 33), (0, 3), (2, 2, 2, 2, 2, 2, 2)]


class Memory:
    """What kernels may access where their PTX is executed: the tensors of a plan, not one byte more."""

    def __init__(self) -> None:
        self.device: list[Tensor] = []
        self.interpreter = ctypes.CDLL("libcuda.so.1") if "FRICTION_PTX" in os.environ else None

    def allocate(self, count: int, device: int) -> Tensor:
        """Memory on the device, which is not zero."""
        self.device.append(torch.full((count,), 0xAB, dtype=torch.uint8))
        self.allow(self.device[-1])
        return self.device[-1]

    def allow(self, tensor: Tensor) -> None:
        if self.interpreter is None or tensor.numel() == 0:
            return
        start, count = tensor.data_ptr(), tensor.nbytes
        if not tensor.is_contiguous():  # of gaps, whose bytes are its own
            start, count = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        self.interpreter.ptx_allow(ctypes.c_void_p(start), ctypes.c_size_t(count))

    def allow_all(self) -> None:
        if self.interpreter is not None:
            self.interpreter.ptx_allow(None, ctypes.c_size_t(0))

    def allow_only(self, tensors: list[Tensor]) -> None:
        self.allow_all()
        for tensor in [*self.device, *tensors]:
            self.allow(tensor)


memory = Memory()


def drive(
    rule: str,
    forms: list[Form],
    *groups: dict,
    steps: int = 2,
    on_device: bool = False,
    scaling: tuple | None = None,
    change: Callable[[Driven], None] = lambda driven: None,
) -> list[bytes]:
    """The numbers after some steps, and the statistics before the last one. scaling: of the second."""
    memory.device.clear()
    driven = Driven(rule, [of_rule(rule, form) for form in forms], seed=3, on_device=on_device)
    groups = groups if len(groups) > 1 else (groups or ({},)) * len(driven.param_groups)
    found = []
    for step in range(steps):
        driven.new_gradients()
        change(driven)
        scalings = [(0, *scaling)] if scaling and step == 1 else []
        numbers = [x for x in scaling or () if isinstance(x, Tensor)]
        memory.allow_only([*driven.lists(), *(p.grad for p in driven.params), *numbers])
        if step == steps - 1 and hasattr(driven.plan, "statistics"):
            found.append(repr(driven.statistics(*groups, scaling=scalings)).encode())
        problem = driven.step(*groups, scaling=scalings)
        assert problem is None, problem
    return found + driven.numbers()


def of_rule(rule: str, form: Form) -> Form:
    """The form with as many states as the rule has."""
    if isinstance(form.states, tuple):
        form = replace(form, states=form.states[: len(STATES[rule])])
    return form


def norm(forms: list[Form]) -> list[bytes]:
    memory.device.clear()
    driven, target = Driven("sgd", forms, seed=3), number(-1.0, DOUBLE)
    driven.new_gradients()
    memory.allow_only([*(param.grad for param in driven.params), target])
    for _ in range(2):  # with memory of its own, and with that of before
        assert driven.squared_norm([True] * len(forms), [(0, target)]) is None
    return [target.numpy().tobytes()]


def tensors_of(lists: int, scale: float, seed: int = 0) -> list[list[Tensor | None]]:
    """Lists of all types and layouts that correspond; some tensors are missing."""
    generator = torch.Generator().manual_seed(seed)
    made: list[list[Tensor | None]] = [[] for _ in range(lists)]
    for place, size in enumerate([*SIZES, 3 * CHUNK, *SIZES]):
        for number, one in enumerate(made):
            dtype = (FLOAT, BFLOAT, HALF, DOUBLE)[(number + place) % (3 if place % 4 else 4)]
            wide = torch.randn(size + 1, 2, generator=generator, dtype=DOUBLE).mul_(scale).to(dtype)
            alike = place <= len(SIZES)  # in whole vectors
            layout = 0 if alike else (number + place) % 3
            tensor = [wide[:size, 0].clone(), wide[:, 0].clone()[1:], wide[:size, 0]][layout]
            one.append(None if lists > 2 and (number + 2 * place) % 11 == 5 else tensor)
    return made


def allow_lists(lists: list[list[Tensor | None]]) -> None:
    memory.device.clear()
    memory.allow_only([tensor for one in lists for tensor in one if tensor is not None])


def products(count: int, scale: float, labels: int) -> list[bytes]:
    lists = tensors_of(count, scale)
    segments = [place * labels // len(lists[0]) for place in range(len(lists[0]))]
    allow_lists(lists)

    def results(device: int) -> Tensor:
        made = torch.full((labels * count**2,), -1.0, dtype=DOUBLE)
        memory.allow(made)
        return made

    reader, given = backends.tensor_reader(), segments if labels > 1 else []
    [made] = backends.native.gram(reader, lists, given, labels, results, 1, memory.allocate, [])
    return [made.numpy().tobytes()]


def combination(count: int, in_place: bool) -> list[bytes]:
    lists = tensors_of(count, 1.0)
    results = tensors_of(1, 1.0, seed=1)[0]
    if in_place:
        results = [t if t is not None else new for t, new in zip(lists[-1], results, strict=True)]
    weights = torch.linspace(-1.0, 2.0, count, dtype=DOUBLE)
    allow_lists([*lists, results, [weights]])
    unread = backends.native.combine(
        backends.tensor_reader(),
        [*lists, results],
        weights.tolist() if in_place else lambda device: weights,
        lambda device: None,
        1,
        memory.allocate,
        [],
    )
    assert unread is None
    return [tensor.to(DOUBLE).numpy().tobytes() for tensor in results]


def number(value: float, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.tensor([value], dtype=dtype)


def of_shapes(form: Form, shapes: list, layout: str = "contiguous") -> list[Form]:
    shapes = [shape if isinstance(shape, tuple) else (shape,) for shape in shapes]
    return [replace(form, shape=shape, layout=layout) for shape in shapes]


def orthogonal(decision: str, driven: Driven) -> None:
    """Gradients that AdamP projects row by row, as a whole, or not."""
    for param in driven.params:
        p = param.detach().double()
        g, squares = driven.random(p.shape), p.square().sum(1, keepdim=True)
        g -= (p * g).sum(1, keepdim=True) / squares * p
        if decision == "whole":  # rows' shares that add up to nothing
            signs = 1.0 - torch.arange(len(p), dtype=DOUBLE).remainder(2)[:, None] * 2
            signs[-1] *= 1 - len(p) % 2
            g += 0.5 * signs * p * (squares.mean() / squares)
        if decision == "none":
            g += 0.5 * p
        param.grad.copy_(g)


SPECIAL = torch.tensor(
    [
        *(0.0, -0.0, 1e-320, 1e-45, -1e-40, 1.2e-38, 1e-20, 1.0, 3e18, 3.4e38, -3.4e38, 1.7e308),
        *(math.inf, -math.inf, math.nan),
    ],
    dtype=DOUBLE,
)


def special(driven: Driven) -> None:
    """Every pair of special numbers as parameter and gradient."""
    for param in driven.params:
        param.data.copy_(SPECIAL.repeat(len(SPECIAL)))
        param.grad.copy_(driven.random(()).sign() * SPECIAL.repeat_interleave(len(SPECIAL)))


CHOICES = ("tanh", "normalized", "maximize", "nesterov")
CHOSEN = [{}, *({name: 1.0} for name in (*CHOICES, "difference")), dict.fromkeys(CHOICES, 1.0)]
CHOSEN += [{"decoupled": 0.0}, {"averages": 0.0}]
SCALINGS = {
    "found_inf": (None, None, number(1.0), False),
    "inf": (number(math.inf, DOUBLE), None, None, True),
    "nan": (number(math.nan, DOUBLE), number(2.0), number(0.0), True),
    "clipped": (number(4e6, DOUBLE), number(8.0), number(0.0), True),
    "scaled": (None, number(1024.0), None, False),
}
CASES: dict[str, Callable[[], list[bytes]]] = {}
for rule in STATES:
    step = partial(drive, rule)
    for kind, form in FORMS.items():
        for chosen in CHOSEN:
            forms = of_shapes(form, [3, 300, CHUNK + 8, (40, 33)])
            settings = {"weight_decay": 0.1, "beta3": 3.0, **chosen}
            CASES[f"{rule}, {kind}, {chosen}"] = partial(step, forms, settings)
        settings = {"normalized": 1.0, "grad_factor": 0.3, "delta": 3.0, "wd_ratio": 0.5}
        for layout in LAYOUTS:
            shapes = DEEP if layout == "deep" else ROWS if rule in PROJECTED else SIZES
            forms = of_shapes(form, shapes, layout)
            CASES[f"{rule}, {kind}, {layout}"] = partial(step, forms, settings)
        for chosen in ({}, {"normalized": 1.0}):
            forms = of_shapes(form, [len(SPECIAL) ** 2])
            CASES[f"{rule}, {kind}, special, {chosen}"] = partial(
                step, forms, chosen, change=special
            )
    # Whole vectors; and one by one.
    for layout, shape in (("contiguous", (16, CHUNK // 16)), ("gaps", (3, 89))):
        forms = [one for form in EVERY_FORM for one in of_shapes(form, [shape], layout)]
        CASES[f"{rule}, every form, {layout}"] = partial(step, forms)
    # Tables and settings in device memory, steps that are counted there.
    forms = [Form(((7 * i) % 23, 1 + i % 3), group=i % 5) for i in range(1100)]
    CASES[f"{rule}, many tensors"] = partial(step, forms, *({"lr": 0.01 + i} for i in range(5)))
    forms = [Form((i % 9,), states=[FLOAT, QUANTIZED][i % 2], group=i) for i in range(260)]
    CASES[f"{rule}, many groups"] = partial(step, forms, *({"lr": 0.01 + i} for i in range(260)))
    forms = [Form((i % 5,)) for i in range(300)]
    CASES[f"{rule}, many steps"] = partial(step, forms, steps=3, on_device=True)
    for name, scaling in SCALINGS.items():
        shapes = [(3, 700), (40, 60), (300,), (0,)]
        forms = [one for form in FORMS.values() for one in of_shapes(form, shapes)]
        CASES[f"{rule}, {name}"] = partial(
            step, forms, {"max_norm": 1.0}, on_device=True, scaling=scaling, steps=3
        )
for rule, kind in product(sorted(PROJECTED), ("float32", "bfloat16", "float64")):
    for decision in ("rows", "whole", "none"):
        forms = of_shapes(FORMS[kind], [(48, 70), (5, 31), (1500, 3), (2, 30_000)])
        settings = {"weight_decay": 0.1, "wd_ratio": 0.5, "lr": 0.1}
        CASES[f"{rule}, {kind}, projects {decision}"] = partial(
            drive, rule, forms, settings, change=partial(orthogonal, decision)
        )
for layout in LAYOUTS:
    for scale in (1.0, 1e30, 1e-7):
        shapes = DEEP if layout == "deep" else SIZES
        forms = [
            one
            for grad in (FLOAT, BFLOAT, HALF, DOUBLE)
            for one in of_shapes(Form((0,), BFLOAT, grad, scale=scale), shapes, layout)
        ]
        CASES[f"norm, {layout}, {scale}"] = partial(norm, forms)
CASES["norm of many"] = partial(norm, [Form((3,))] * 2100)
CASES["norm of nothing"] = partial(norm, [Form((0,))])
for count, scale, labels in product((1, 2, 3, 4, 7, 8), (1.0, 1e25), (1, 5)):
    CASES[f"gram, {count}, {scale}, {labels}"] = partial(products, count, scale, labels)
for count, in_place in product((1, 2, 8), (False, True)):
    CASES[f"combine, {count}, {in_place}"] = partial(combination, count, in_place)


def digest_of(run: Callable[[], list[bytes]]) -> list[str]:
    before, backends.device_bytes = backends.device_bytes, memory.allocate
    try:
        return [hashlib.sha1(bits).hexdigest()[:12] for bits in run()]
    finally:
        backends.device_bytes = before
        memory.allow_all()


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump({name: digest_of(run) for name, run in CASES.items()}, file)
