"""The optimizers that are compared, as data: how each is built, and what its step reads beside its state."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import friction_kernels as fk
from bench.machine import COPY_BYTES
from friction_kernels import equations

Build = Callable[[list[Tensor]], object]  # to something with step()


@dataclass(frozen=True)
class Contender:
    """A way to step.

    An ideal step reads and writes parameters and states once. `reads` are the lists that it reads beside
    that: g gradients, p parameters, s states; `reads_on_card` where that differs on a GPU.
    """

    name: str
    build: Build
    reads: str = "g"
    reads_on_card: str | None = None
    optimizer: str = ""  # what --optimizers picks: a class of ours
    state: str = "plain"  # what --states picks: how states and parameters are kept
    dtype: torch.dtype | None = None  # of parameters, where not the scenario's
    ours: bool = False
    plain: str | None = (
        None  # the contender that computes the same in plain torch, operator by operator
    )
    equals: str | None = None  # the contender whose steps it takes, in exact arithmetic
    baseline: str | None = None  # the contender whose time it is compared with first
    alone: str | None = None  # the contender whose step it adds something to
    slow: bool = False  # measured in fewer rounds
    at_once: int = 0  # lists as long as the parameters that a step makes
    compiles: bool = False  # for half a minute and more
    graphed: bool = False  # captured in a CUDA graph, and replayed
    new_gradients: bool = False  # gradients are other tensors at every step
    needs: str | None = None  # a module that may be missing

    def lists(self, device: str) -> str:
        on_card = device == "cuda" and self.reads_on_card is not None
        return self.reads_on_card if on_card else self.reads


def optimizer(cls: type, **options) -> Build:
    return lambda params: cls(params, **options)


def native(name: str, cls: type, **fields) -> Contender:
    options = fields.pop("options", {})
    build = optimizer(cls, backend="native", **options)
    return Contender(name, build, optimizer=cls.__name__, ours=True, **fields)


def eager(name: str, cls: type, **fields) -> Contender:
    """The papers' equations in plain torch, one tensor after the other."""
    return Contender(name, optimizer(cls, backend="reference"), slow=True, **fields)


def adamw(name: str, graphed: bool = False, slow: bool = False, **options) -> Contender:
    build = optimizer(torch.optim.AdamW, lr=1e-3, capturable=graphed, **options)
    at_once = int(options.get("foreach", False))
    return Contender(name, build, graphed=graphed, slow=slow, at_once=at_once, plain=ADAMW_FOR_LOOP)


def sgd(name: str, slow: bool = False, **options) -> Contender:
    build = optimizer(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True, **options)
    return Contender(name, build, slow=slow, plain=SGD_FOR_LOOP)


class CompiledEquations:
    """SigSignAdamW's equations under torch.compile: one graph for a flat tensor of any size.

    A graph over all tensors would fuse no more, since each element needs only its own, but takes
    minutes to compile for a model. The step's number is a tensor, or each step would compile anew.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self.params, self.param_groups = params, [{"params": params}]
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
    """What memory can do: a large copy.

    It writes lines that it has not read, which costs some processors an extra read; a step writes where it
    reads, and so may reach more than a copy.
    """

    def __init__(self, params: list[Tensor]) -> None:
        device = params[0].device
        self.source = torch.rand(COPY_BYTES[device.type] // 4, device=device)
        self.target = torch.empty_like(self.source)

    def step(self) -> None:
        self.target.copy_(self.source)

    @property
    def moved(self) -> int:
        return 2 * self.source.nbytes


COPY = "copy"
EAGER_ADAMW, EAGER_NORMALIZED, EAGER_ADAMP, EAGER_RSGDM = (
    f"{name} eager equations"
    for name in ("SigSignAdamW", "SigSignAdamW normalized", "SigSignAdamP", "RSGDM")
)
COMPILED = "SigSignAdamW torch.compile of the equations, per tensor"
ADAMW_FOR_LOOP, ADAMW_FUSED = "torch AdamW for-loop", "torch AdamW fused"
SGD_FOR_LOOP, SGD_FUSED = "torch SGD nesterov for-loop", "torch SGD nesterov fused"
GRAPHED, NEW_GRADIENTS = ", graph replay", ", new grads"
NORMALIZED = {"friction_input": "normalized"}

SIG_ADAMW = native("SigSignAdamW", fk.SigSignAdamW, plain=EAGER_ADAMW, baseline=ADAMW_FUSED)
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

# In the order of a round: those whose ratio is a goal run next to each other.
OPTIMIZERS = [
    eager(EAGER_RSGDM, fk.RSGDM),
    RSGDM,
    sgd(SGD_FUSED, fused=True),
    sgd(SGD_FOR_LOOP, slow=True, foreach=False, fused=False),
    Contender(COPY, Copy, reads=""),
    adamw(ADAMW_FOR_LOOP, slow=True, foreach=False, fused=False),
    adamw("torch AdamW foreach", foreach=True),
    TORCH_FUSED,
    SIG_ADAMW,
    SIG_ADAMP,
    eager(EAGER_ADAMP, fk.SigSignAdamP, reads="gpg"),
    native(
        "SigSignAdamW normalized",
        fk.SigSignAdamW,
        options=NORMALIZED,
        plain=EAGER_NORMALIZED,
        baseline=ADAMW_FUSED,
    ),
    native("TanhSignAdamW", fk.TanhSignAdamW, plain=EAGER_ADAMW, baseline=ADAMW_FUSED),
    Contender(COMPILED, CompiledEquations, plain=EAGER_ADAMW, equals="SigSignAdamW", compiles=True),
    eager(EAGER_ADAMW, fk.SigSignAdamW),
]
# Of which only the operations are counted.
COUNTED = [
    Contender(EAGER_NORMALIZED, optimizer(fk.SigSignAdamW, backend="reference", **NORMALIZED))
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
CHANGING = [
    replace(c, name=c.name + NEW_GRADIENTS, new_gradients=True, baseline=base)
    for c, base in (
        (SIG_ADAMW, ADAMW_FUSED + NEW_GRADIENTS),
        (RSGDM, ADAMW_FUSED + NEW_GRADIENTS),
        (TORCH_FUSED, None),
    )
]
