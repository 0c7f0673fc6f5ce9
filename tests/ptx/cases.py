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

import torch
from plan_driver import BLOCK, CHUNK, QUANTIZED, STATES, Driven, Form
from torch import Tensor

from friction_kernels import backends

FLOAT, BFLOAT, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float16, torch.float64
FORMS = {
    "float32": Form((0,)),
    "bfloat16": Form((0,), BFLOAT, states=(FLOAT, FLOAT, BFLOAT)),
    "float64": Form((0,), DOUBLE, states=DOUBLE),
    "float16": Form((0,), HALF, states=HALF),
    "8 bits": Form((0,), states=QUANTIZED),
    "8 bits, split": Form((0,), HALF, states=QUANTIZED, master="split8"),
    "mixed": Form((0,), HALF, FLOAT, states=(QUANTIZED, HALF, BFLOAT)),
    "mixed, split": Form((0,), BFLOAT, states=FLOAT, master="split"),
    "mixed, master": Form((0,), BFLOAT, DOUBLE, states=BFLOAT, master="fp32"),
    "stochastic": Form((0,), BFLOAT, states=QUANTIZED, stochastic=True, shard=(7, 96, 288)),
    "float64, gradient in 16 bits": Form((0,), DOUBLE, HALF, states=DOUBLE),
}
SIZES = [0, 1, 9, BLOCK - 1, BLOCK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 9 * CHUNK + 8]
ROWS = [
    (5, 31),
    (5, 33),
    (2, 255),
    (3, 257),
    (2, 2049),
    (1, 9_000),
    (70, 31),
    (700, 1),
    (0, 3),
    (9,),
]
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

    def allow_only(self, tensors: list[Tensor]) -> None:
        if self.interpreter is not None:
            self.interpreter.ptx_allow(None, ctypes.c_size_t(0))
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
        if step == steps - 1 and rule != "rsgdm":
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
    driven, target = Driven("rsgdm", forms, seed=3), number(-1.0, DOUBLE)
    driven.new_gradients()
    memory.allow_only([*(param.grad for param in driven.params), target])
    for _ in range(2):  # with memory of its own, and with that of before
        assert driven.squared_norm([True] * len(forms), [(0, target)]) is None
    return [target.numpy().tobytes()]


def number(value: float, dtype: torch.dtype = FLOAT) -> Tensor:
    return torch.tensor([value], dtype=dtype)


def of_shapes(form: Form, shapes: list, layout: str = "contiguous") -> list[Form]:
    shapes = [shape if isinstance(shape, tuple) else (shape,) for shape in shapes]
    return [replace(form, shape=shape, layout=layout) for shape in shapes]


CASES: dict[str, Callable[[], list[bytes]]] = {}

# Every choice alone and all together, in every kind of kernel.
ON_OFF = ("tanh", "normalized", "maximize", "nesterov")
CHOICES = [{}, *({name: 1.0} for name in ON_OFF), dict.fromkeys(ON_OFF, 1.0), {"decoupled": 0.0}]
for rule in STATES:
    for kind, form in FORMS.items():
        for choice in CHOICES:
            settings = {"weight_decay": 0.1, "beta3": 3.0, **choice}
            shapes = [3, 300, CHUNK + 8, (40, 33)]
            CASES[f"choices {rule}, {kind}, {choice}"] = partial(
                drive, rule, of_shapes(form, shapes), settings
            )

# Sizes and layouts.
for kind, form in FORMS.items():
    for layout in ("contiguous", "offset", "gaps", "deep"):
        for rule in STATES:
            shapes = DEEP if layout == "deep" else ROWS if rule == "friction_adamp" else SIZES
            settings = {"normalized": 1.0, "grad_factor": 0.3, "delta": 3.0, "wd_ratio": 0.5}
            CASES[f"sizes {rule}, {kind}, {layout}"] = partial(
                drive, rule, of_shapes(form, shapes, layout), settings
            )


def orthogonal(decision: str) -> Callable[[Driven], None]:
    """Gradients that AdamP projects row by row, as a whole, or not."""

    def change(driven: Driven) -> None:
        for param in driven.params:
            p = param.detach().double()
            g = torch.randn(p.shape, generator=driven.generator, dtype=DOUBLE)
            squares = p.square().sum(1, keepdim=True)
            g -= (p * g).sum(1, keepdim=True) / squares * p
            if decision == "whole":  # rows' shares that add up to nothing
                signs = torch.tensor([1.0, -1.0]).repeat(len(p))[: len(p), None]
                signs[-1] *= 1 - len(p) % 2
                g += 0.5 * signs * p * (squares.mean() / squares)
            if decision == "none":
                g += 0.5 * p
            param.grad.copy_(g)

    return change


for kind in ("float32", "bfloat16", "float64"):
    for decision in ("rows", "whole", "none"):
        forms = of_shapes(FORMS[kind], [(48, 70), (5, 31), (1500, 3), (2, 30_000)])
        CASES[f"decisions {kind}, {decision}"] = partial(
            drive,
            "friction_adamp",
            forms,
            {"weight_decay": 0.1, "wd_ratio": 0.5, "lr": 0.1},
            change=orthogonal(decision),
        )

# Tables in device memory, settings of many groups, steps that are counted there.
for rule in STATES:
    tensors = [Form(((7 * i) % 23, 1 + i % 3), group=i % 5) for i in range(1100)]
    CASES[f"many tensors {rule}"] = partial(
        drive, rule, tensors, *({"lr": 0.01 * (1 + i)} for i in range(5))
    )
    tensors = [
        Form((1 + i % 9,), [FLOAT, BFLOAT, HALF][i % 3], states=[FLOAT, QUANTIZED][i % 2], group=i)
        for i in range(260)
    ]
    CASES[f"many groups {rule}"] = partial(
        drive, rule, tensors, *({"lr": 0.001 * (i + 1), "seed": i} for i in range(260))
    )
    CASES[f"many steps {rule}"] = partial(
        drive, rule, [Form((i % 5,)) for i in range(300)], steps=3, on_device=True
    )

SCALINGS = {
    "found_inf": (None, None, number(1.0), False),
    "inf": (number(math.inf, DOUBLE), None, None, True),
    "nan": (number(math.nan, DOUBLE), number(2.0), number(0.0), True),
    "clipped": (number(4e6, DOUBLE), number(8.0), number(0.0), True),
    "scaled": (None, number(1024.0), None, False),
}
SCALED = [(3, 700), (40, 60), (300,), (0,)]
for rule in STATES:
    for name, scaling in SCALINGS.items():
        forms = [
            form
            for kind in ("float32", "8 bits, split", "mixed", "bfloat16", "float64")
            for form in of_shapes(FORMS[kind], SCALED)
        ]
        CASES[f"scaling {rule}, {name}"] = partial(
            drive,
            rule,
            forms,
            {"max_norm": 1.0},
            on_device=True,
            scaling=scaling,
            steps=3,
        )

for layout in ("contiguous", "offset", "gaps", "deep"):
    for scale in (1.0, 1e30):
        shapes = DEEP if layout == "deep" else SIZES
        forms = [
            form
            for kind in (FLOAT, BFLOAT, HALF, DOUBLE)
            for form in of_shapes(Form((0,), BFLOAT, kind, FLOAT, scale=scale), shapes, layout)
        ]
        CASES[f"norm {layout}, {scale}"] = partial(norm, forms)
CASES["norm of many"] = partial(norm, [Form((3,))] * 2100)
CASES["norm of nothing"] = partial(norm, [Form((0,))])

SPECIAL = torch.tensor(
    [0.0, -0.0, 1e-45, -1e-40, 1.2e-38, 1e-20, 1.0, 3e18, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan],
    dtype=DOUBLE,
)  # fmt: skip


def special(driven: Driven) -> None:
    """Every pair of special numbers as parameter and gradient."""
    for param in driven.params:
        param.data.copy_(SPECIAL.repeat(len(SPECIAL)))
        param.grad.copy_(driven.random(()).sign() * SPECIAL.repeat_interleave(len(SPECIAL)))


for rule in STATES:
    for kind, form in FORMS.items():
        for normalized in (0.0, 1.0):
            CASES[f"special {rule}, {kind}, {normalized}"] = partial(
                drive,
                rule,
                of_shapes(form, [len(SPECIAL) ** 2]),
                {"normalized": normalized},
                change=special,
            )


def digest(name: str) -> list[str]:
    backends.device_bytes = memory.allocate
    return [hashlib.sha1(bits).hexdigest()[:12] for bits in CASES[name]()]


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump({name: digest(name) for name in CASES}, file)
