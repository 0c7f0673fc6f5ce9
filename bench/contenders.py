"""The optimizers that are compared, as data: how each is built, and what its step reads beside its state."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import friction_kernels as fk
from bench import eager
from bench.eager import Compiled, Eager
from bench.machine import COPY_BYTES

Build = Callable[[list[Tensor]], object]  # to something with step()


@dataclass(frozen=True)
class Contender:
    """A way to step.

    An ideal step reads and writes parameters and states once. `reads` are the lists that it reads
    beside that: g gradients, p parameters, s states; `reads_on_card` where that differs on a GPU.
    """

    name: str
    build: Build
    reads: str = "g"
    reads_on_card: str | None = None
    dtype: torch.dtype | None = None  # of parameters, where not the scenario's
    ours: bool = False
    plain: str | None = None  # who computes the same in plain torch, operator by operator
    baseline: str | None = None  # whose time it is compared with first
    alone: str | None = None  # whose step it adds something to
    slow: bool = False  # measured in fewer rounds
    at_once: int = 0  # lists as long as the parameters that a step makes
    compiles: bool = False  # for half a minute and more
    graphed: bool = False  # captured in a CUDA graph, and replayed
    new_gradients: bool = False  # gradients are other tensors at every step
    unwritten: str | None = None  # a state that a step reads and does not write
    needs: str | None = None  # a module that may be missing

    def lists(self, device: str) -> str:
        on_card = device == "cuda" and self.reads_on_card is not None
        return self.reads_on_card if on_card else self.reads


def optimizer(cls: type, **options) -> Build:
    return lambda params: cls(params, **options)


def native(name: str, cls: type, options: dict | None = None, **fields) -> Contender:
    build = optimizer(cls, backend="native", **(options or {}))
    return Contender(name, build, ours=True, **fields)


def equations(name: str, update: Callable[..., None], reads: str = "g", **options) -> Contender:
    return Contender(name, optimizer(Eager, update=update, **options), reads=reads, slow=True)


def adamw(name: str, graphed: bool = False, slow: bool = False, **options) -> Contender:
    build = optimizer(torch.optim.AdamW, lr=1e-3, capturable=graphed, **options)
    at_once = int(options.get("foreach", False))
    return Contender(name, build, graphed=graphed, slow=slow, at_once=at_once, plain=ADAMW_FOR_LOOP)


def sgd(name: str, slow: bool = False, **options) -> Contender:
    build = optimizer(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, **options)
    return Contender(name, build, slow=slow, plain=SGD_FOR_LOOP)


class Copy:
    """What memory can do: a large copy.

    It writes lines that it has not read, which costs some processors an extra read; a step writes where
    it reads, and so may reach more than a copy.
    """

    def __init__(self, params: list[Tensor]) -> None:
        device = params[0].device
        self.source = torch.rand(COPY_BYTES[device.type] // 4, device=device)
        self.target = torch.empty_like(self.source)
        self.moved = 2 * self.source.nbytes

    def step(self) -> None:
        self.target.copy_(self.source)


class InPlace(Copy):
    """What memory can do for a step, which writes where it has read."""

    def step(self) -> None:
        self.target.mul_(1.0)


COPY, IN_PLACE = "copy", "in place"
EAGER_ADAMW, EAGER_NORMALIZED, EAGER_ADAMP, EAGER_RSGDM = (
    f"{name} eager equations"
    for name in ("SigSignAdamW", "SigSignAdamW normalized", "SigSignAdamP", "RSGDM")
)
COMPILED = "SigSignAdamW torch.compile of the equations, per tensor"
ADAMW_FOR_LOOP, ADAMW_FUSED = "torch AdamW for-loop", "torch AdamW fused"
SGD_FOR_LOOP, SGD_FUSED = "torch SGD nesterov for-loop", "torch SGD nesterov fused"
GRAPHED, NEW_GRADIENTS = ", graph replay", ", new grads"

SIG_ADAMW = native("SigSignAdamW", fk.SigSignAdamW, plain=EAGER_ADAMW, baseline=ADAMW_FUSED)
ADAMW = native("AdamW", fk.AdamW, plain=ADAMW_FOR_LOOP, baseline=ADAMW_FUSED)
SGD = native(
    "SGD nesterov",
    fk.SGD,
    {"lr": 0.01, "momentum": 0.9, "nesterov": True},
    plain=SGD_FOR_LOOP,
    baseline=SGD_FUSED,
)
ADAMP = native("AdamP", fk.AdamP, reads="gpg", reads_on_card="gpgs", baseline="adamp.AdamP")
RSGDM = native("RSGDM", fk.RSGDM, plain=EAGER_RSGDM, baseline=SGD_FUSED)
# AdamP decides before it updates: on a processor ours compares parameters with gradients first, as the
# published one does; on a GPU it reads everything for its sums.
SIG_ADAMP = native(
    "SigSignAdamP",
    fk.SigSignAdamP,
    reads="gpg",
    reads_on_card="gpgs",
    plain=EAGER_ADAMP,
    baseline="adamp.AdamP",
)
TORCH_FUSED = adamw(ADAMW_FUSED, fused=True)
TORCH_FOREACH = adamw("torch AdamW foreach", foreach=True)
TORCH_FOR_LOOP = adamw(ADAMW_FOR_LOOP, slow=True, foreach=False, fused=False)

# In the order of a round: those whose ratio is a goal run next to each other.
OPTIMIZERS = [
    equations(EAGER_RSGDM, eager.rsgdm),
    RSGDM,
    SGD,
    sgd(SGD_FUSED, fused=True),
    sgd(SGD_FOR_LOOP, slow=True, foreach=False, fused=False),
    Contender(COPY, Copy, reads=""),
    Contender(IN_PLACE, InPlace, reads=""),
    TORCH_FOR_LOOP,
    TORCH_FOREACH,
    TORCH_FUSED,
    ADAMW,
    SIG_ADAMW,
    SIG_ADAMP,
    ADAMP,
    equations(EAGER_ADAMP, eager.friction_adamp, reads="gpg"),
    native(
        "SigSignAdamW normalized",
        fk.SigSignAdamW,
        {"friction_input": "normalized"},
        plain=EAGER_NORMALIZED,
        baseline=ADAMW_FUSED,
    ),
    native("TanhSignAdamW", fk.TanhSignAdamW, plain=EAGER_ADAMW, baseline=ADAMW_FUSED),
    Contender(COMPILED, Compiled, plain=EAGER_ADAMW, compiles=True),
    equations(EAGER_ADAMW, eager.friction_adamw),
]


def capturable(contender: Contender, cls: type) -> list[Contender]:
    """The step whose settings a graph reads from the device: run eagerly, and replayed."""
    build = optimizer(cls, backend="native", capturable=True)
    eager_one = replace(contender, name=f"{contender.name} capturable", build=build)
    return [eager_one, replace(eager_one, name=contender.name + GRAPHED, graphed=True)]


CAPTURED = [
    *capturable(RSGDM, fk.RSGDM),
    *capturable(SIG_ADAMW, fk.SigSignAdamW),
    *capturable(SIG_ADAMP, fk.SigSignAdamP),
    adamw(ADAMW_FUSED + GRAPHED, graphed=True, fused=True),
]
TAKING = native(
    "SigSignAdamW taking gradients",
    fk.SigSignAdamW,
    {"take_gradients": True},
    unwritten="prev_grad",
)
CHANGING = [
    replace(c, name=c.name + NEW_GRADIENTS, new_gradients=True, baseline=base)
    for c, base in (
        (SIG_ADAMW, ADAMW_FUSED + NEW_GRADIENTS),
        (TAKING, ADAMW_FUSED + NEW_GRADIENTS),
        (ADAMW, ADAMW_FUSED + NEW_GRADIENTS),
        (RSGDM, ADAMW_FUSED + NEW_GRADIENTS),
        (TORCH_FUSED, None),
    )
]
