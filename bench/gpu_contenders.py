"""What the GPU report compares, as data: how each is built and the bytes its step must move.

Apart from ``bench.baselines``, which imports ``adamp``: here every peer may be missing, and is named.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import friction_kernels as fk
from friction_kernels import equations

# Lists that an ideal step reads and writes: p parameter, g gradient, q last gradient, in the
# parameter's type; m v moments, in float32 at least for ours and in the parameter's type for others.
ADAMW = ("pgmv", "pmv")  # 28 bytes in float32
FRICTION = ("pgmvq", "pmvq")  # 36
MOMENTUM = ("pgm", "pm")  # 20
# AdamP decides before it updates. Ours reads everything for its sums (20) and then does a whole step
# (36): 56. The published one compares parameters with gradients first: 8 + 28.
FRICTION_ADAMP = ("pgmvq" + "pgmvq", "pmvq")
PUBLISHED_ADAMP = ("pg" + "pgmv", "pmv")


def bytes_per_parameter(lists: tuple[str, str], size: int, wide: int) -> int:
    """`size`: bytes of the parameter's type; `wide`: of the moments'."""
    return sum(wide if name in "mv" else size for name in "".join(lists))


@dataclass(frozen=True)
class Contender:
    name: str
    build: Callable[[list[Tensor]], object]  # to something with step()
    lists: tuple[str, str]
    ours: bool = False  # moments in float32 at least
    eager: str | None = None  # the contender that runs the same equations eagerly
    slow: bool = False  # measured in fewer rounds
    graphed: bool = False  # the step is captured in a CUDA graph, and replayed
    new_gradients: bool = False  # gradients are other tensors at every step
    needs: str | None = None  # a module that may be missing

    def moved(self, dtype: torch.dtype) -> int:
        size = dtype.itemsize
        return bytes_per_parameter(self.lists, size, max(size, 4) if self.ours else size)


def optimizer(cls: type, **options) -> Callable[[list[Tensor]], object]:
    return lambda params: cls(params, **options)


def native(name: str, cls: type, lists: tuple[str, str], eager: str | None = None, **options):
    build = optimizer(cls, backend="native", **options)
    return Contender(name, build, lists, ours=True, eager=eager)


def eager(name: str, cls: type, lists: tuple[str, str]) -> Contender:
    """The papers' equations in plain torch, one tensor after the other."""
    build = optimizer(cls, backend="reference")
    return Contender(name, build, lists, ours=True, slow=True)


def torch_adamw(kind: str, slow: bool = False, graphed: bool = False, **options) -> Contender:
    build = optimizer(torch.optim.AdamW, lr=1e-3, capturable=graphed, **options)
    return Contender(f"torch AdamW {kind}", build, ADAMW, slow=slow, graphed=graphed)


def of_peer(name: str, module: str, cls: str, lists: tuple[str, str], slow=False, **options):
    def build(params: list[Tensor]) -> object:
        return getattr(importlib.import_module(module), cls)(params, **options)

    return Contender(name, build, lists, slow=slow, needs=module.partition(".")[0])


class CompiledEquations:
    """SigSignAdamW's equations under torch.compile: one graph for a flat tensor of any size.

    A graph over all tensors would fuse no more, since each element needs only its own, but takes
    minutes to compile for a model. The step's number is a tensor, or each step would compile anew.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.state = {
            p: {key: torch.zeros_like(p, dtype=dtype) for key, dtype in self._states(p).items()}
            for p in params
        }
        self.number = torch.zeros((), device=params[0].device)
        self.update = torch.compile(equations.friction_adam, dynamic=True)
        defaults = fk.SigSignAdamW([torch.zeros(1)]).defaults
        names = ("lr", "betas", "beta3", "eps", "weight_decay", "maximize", "friction_input")
        self.options = {name: defaults[name] for name in names}
        self.flatten()

    @staticmethod
    def _states(param: Tensor) -> dict[str, torch.dtype]:
        return {"exp_avg": torch.float32, "exp_avg_sq": torch.float32, "prev_grad": param.dtype}

    def flatten(self) -> None:
        """Look at parameters, gradients and states as vectors; anew when states were replaced."""
        self.flat = [
            [t.detach().view(-1) for t in (p, p.grad, *self.state[p].values())] for p in self.params
        ]

    def step(self) -> None:
        self.number += 1
        for tensors in self.flat:
            self.update(*tensors, self.number, decoupled=True, friction="sigmoid", **self.options)


class Copy:
    """What the card's memory can do: a large copy from device to device."""

    BYTES = 2**31

    def __init__(self, params: list[Tensor]) -> None:
        device = params[0].device
        count = (self.BYTES if device.type == "cuda" else 2**20) // 4
        self.source = torch.rand(count, device=device)
        self.target = torch.empty_like(self.source)

    def step(self) -> None:
        self.target.copy_(self.source)

    @property
    def moved(self) -> int:
        return 2 * self.source.nbytes


COPY = "copy, device to device"
EAGER_ADAMW, EAGER_ADAMP, EAGER_RSGDM = (
    f"{name} eager equations" for name in ("SigSignAdamW", "SigSignAdamP", "RSGDM")
)
COMPILED = "SigSignAdamW torch.compile of the equations, per tensor"
ADAMW_FOR_LOOP, ADAMW_FUSED = "torch AdamW for-loop", "torch AdamW fused"
SGD_FUSED = "torch SGD nesterov fused"
ADAMP = "adamp.AdamP"
GRAPHED = ", graph replay"
NEW_GRADIENTS = ", new grads"

SIG_ADAMW = native("SigSignAdamW", fk.SigSignAdamW, FRICTION, EAGER_ADAMW)
TORCH_FUSED = torch_adamw("fused", fused=True)
RSGDM = native("RSGDM", fk.RSGDM, MOMENTUM, EAGER_RSGDM)
SIG_ADAMP = native("SigSignAdamP", fk.SigSignAdamP, FRICTION_ADAMP, EAGER_ADAMP)

# In the order of a round: those whose ratio is a goal run next to each other.
CONTENDERS = [
    eager(EAGER_RSGDM, fk.RSGDM, MOMENTUM),
    Contender(
        SGD_FUSED,
        optimizer(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, fused=True),
        MOMENTUM,
    ),
    RSGDM,
    Contender(COPY, Copy, ("", "")),
    SIG_ADAMW,
    SIG_ADAMP,
    TORCH_FUSED,
    torch_adamw("foreach", foreach=True),
    torch_adamw("for-loop", slow=True, foreach=False, fused=False),
    native("SigSignAdamW normalized", fk.SigSignAdamW, FRICTION, friction_input="normalized"),
    native("TanhSignAdamW", fk.TanhSignAdamW, FRICTION),
    of_peer("flashoptim.FlashAdamW", "flashoptim", "FlashAdamW", ADAMW, lr=1e-3),
    of_peer("optimi.AdamW (triton)", "optimi", "AdamW", ADAMW, lr=1e-3, triton=True),
    of_peer(ADAMP, "adamp", "AdamP", PUBLISHED_ADAMP, slow=True, lr=1e-3, weight_decay=1e-2),
    Contender(COMPILED, CompiledEquations, FRICTION, ours=True),
    eager(EAGER_ADAMW, fk.SigSignAdamW, FRICTION),
    eager(EAGER_ADAMP, fk.SigSignAdamP, FRICTION_ADAMP),
]


def capturable(contender: Contender, cls: type) -> list[Contender]:
    """The step whose settings a graph reads from the device: run eagerly, and replayed."""
    build = optimizer(cls, backend="native", capturable=True)
    eager_one = replace(contender, name=f"{contender.name} capturable", build=build, eager=None)
    return [eager_one, replace(eager_one, name=contender.name + GRAPHED, graphed=True)]


CAPTURED = [
    *capturable(RSGDM, fk.RSGDM),
    *capturable(SIG_ADAMW, fk.SigSignAdamW),
    *capturable(SIG_ADAMP, fk.SigSignAdamP),
    torch_adamw("fused" + GRAPHED, graphed=True, fused=True),
]
CHANGING = [
    replace(c, name=c.name + NEW_GRADIENTS, new_gradients=True, eager=None)
    for c in (SIG_ADAMW, RSGDM, TORCH_FUSED)
]


def contenders_for(model: str, device: str) -> list[Contender]:
    found = list(CONTENDERS)
    if device == "cuda" and model in ("vit_b_16", "tiny"):
        found += CAPTURED
    if model == "tiny":  # where what a step costs is bookkeeping
        found = [c for c in found if c.name not in (COPY, COMPILED)] + CHANGING
    return found
