"""The optimizers that are compared, as data: how to build each and the bytes its step must move."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import adamp
import torch
from torch import Tensor

import friction_kernels as fk

Step = Callable[[], object]

# Bytes per float32 parameter, each tensor read or written once by an ideal step.
COPY_BYTES = 4 * 2
# AdamW reads p, g, m, v and writes p, m, v; friction also reads and writes the last gradient.
ADAMW_BYTES = 4 * (4 + 3)
FRICTION_BYTES = 4 * (5 + 4)
# Momentum reads p, g, buffer and writes p, buffer.
MOMENTUM_BYTES = 4 * (3 + 2)
# AdamP first compares parameters with gradients, then applies the step.
ADAMP_BYTES = 4 * 2 + ADAMW_BYTES
FRICTION_ADAMP_BYTES = 4 * 2 + FRICTION_BYTES


@dataclass(frozen=True)
class Contender:
    name: str
    build: Callable[[list[Tensor]], Step]
    bytes_per_parameter: int
    ours: bool = False
    eager: str | None = None  # the contender that runs the same equations eagerly
    slow: bool = False  # measured in fewer rounds
    new_gradients: bool = False  # gradients are other tensors at every step


def optimizer(cls: type[torch.optim.Optimizer], **options) -> Callable[[list[Tensor]], Step]:
    return lambda params: cls(params, **options).step


def native(name: str, cls: type, moved: int, eager: str | None = None, **options) -> Contender:
    build = optimizer(cls, backend="native", **options)
    return Contender(name, build, moved, ours=True, eager=eager)


def eager(name: str, cls: type, moved: int) -> Contender:
    """The papers' equations in plain torch, one tensor after the other."""
    return Contender(name, optimizer(cls, backend="reference"), moved, slow=True)


def adamw(kind: str, slow: bool = False, **options) -> Contender:
    build = optimizer(torch.optim.AdamW, lr=1e-3, **options)
    return Contender(f"torch AdamW {kind}", build, ADAMW_BYTES, slow=slow)


def build_copy(params: list[Tensor]) -> Step:
    source = torch.ones(sum(param.numel() for param in params))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def with_new_gradients(contender: Contender) -> Contender:
    return replace(contender, name=f"{contender.name}, new grads", eager=None, new_gradients=True)


EAGER_ADAMW = "SigSignAdamW eager equations"
EAGER_ADAMP = "SigSignAdamP eager equations"
EAGER_RSGDM = "RSGDM eager equations"
ADAMW_FUSED = "torch AdamW fused"
SGD_FUSED = "torch SGD nesterov fused"
ADAMP = "adamp.AdamP"
COPY = "torch copy_"

# In the order of a round: those whose ratio is a goal run next to each other.
CONTENDERS = [
    eager(EAGER_RSGDM, fk.RSGDM, MOMENTUM_BYTES),
    native("RSGDM", fk.RSGDM, MOMENTUM_BYTES, EAGER_RSGDM),
    Contender(
        SGD_FUSED,
        optimizer(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, fused=True),
        MOMENTUM_BYTES,
    ),
    # What the machine's memory can do. A copy writes lines that it has not read, which costs some
    # processors an extra read; a step writes where it reads, and so may reach more than a copy.
    Contender(COPY, build_copy, COPY_BYTES),
    adamw("for-loop", slow=True, foreach=False, fused=False),
    adamw("foreach", foreach=True),
    adamw("fused", fused=True),
    native("SigSignAdamW", fk.SigSignAdamW, FRICTION_BYTES, EAGER_ADAMW),
    native("SigSignAdamP", fk.SigSignAdamP, FRICTION_ADAMP_BYTES, EAGER_ADAMP),
    Contender(ADAMP, optimizer(adamp.AdamP, lr=1e-3, weight_decay=1e-2), ADAMP_BYTES, slow=True),
    eager(EAGER_ADAMP, fk.SigSignAdamP, FRICTION_ADAMP_BYTES),
    native("SigSignAdamW normalized", fk.SigSignAdamW, FRICTION_BYTES, friction_input="normalized"),
    native("TanhSignAdamW", fk.TanhSignAdamW, FRICTION_BYTES),
    eager(EAGER_ADAMW, fk.SigSignAdamW, FRICTION_BYTES),
]
