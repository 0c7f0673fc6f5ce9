"""Who trains: ours and torch's optimizers, set so that all take the same step without friction.

Where friction does nothing, sigmoid friction halves AdamW's step, so its rate is doubled and its decay
halved; RSGDM(lr) is Nesterov momentum at lr * (1 - momentum). So the rates below, which are AdamW's and
SGD's, mean the same to everybody.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch.optim import SGD, AdamW, Optimizer

import friction_kernels as fk
from friction_kernels.equations import NEUTRAL_FRICTION

MOMENTUM = 0.9
ADAM_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SGD_RATES = (1e-2, 3e-2, 1e-1, 3e-1)
DECAY = 1e-2  # of the AdamW kind; the SGD kind has none, as by default


@dataclass(frozen=True)
class Entrant:
    """An optimizer and the factor by which its rate exceeds that of its kind."""

    make: Callable[..., Optimizer]
    adaptive: bool
    factor: float = 1.0

    @property
    def rates(self) -> tuple[float, ...]:
        return ADAM_RATES if self.adaptive else SGD_RATES

    def build(self, params, rate: float) -> Optimizer:
        return self.make(params, lr=self.factor * rate)


def with_friction(kind: type, **options) -> Entrant:
    factor = 1 / NEUTRAL_FRICTION[kind.rule.friction]
    return Entrant(partial(kind, weight_decay=DECAY / factor, **options), True, factor)


def adamw(**options) -> Entrant:
    return Entrant(partial(AdamW, weight_decay=DECAY, **options), True)


def nesterov(**options) -> Entrant:
    return Entrant(partial(SGD, momentum=MOMENTUM, nesterov=True, **options), False)


def rsgdm() -> Entrant:
    return Entrant(partial(fk.RSGDM, momentum=MOMENTUM), False, 1 / (1 - MOMENTUM))


ADAMW, SGD_NESTEROV, RSGDM = "AdamW", "SGD nesterov", "RSGDM"
TRAINED: dict[str, Entrant] = {
    ADAMW: adamw(fused=True),
    "SigSignAdamW product": with_friction(fk.SigSignAdamW, friction_input="product"),
    "SigSignAdamW normalized": with_friction(fk.SigSignAdamW, friction_input="normalized"),
    "TanhSignAdamW product": with_friction(fk.TanhSignAdamW, friction_input="product"),
    "TanhSignAdamW normalized": with_friction(fk.TanhSignAdamW, friction_input="normalized"),
    SGD_NESTEROV: nesterov(fused=True),
    RSGDM: rsgdm(),
}
ADAMW_FUSED, SGD_FUSED = "torch AdamW fused", "torch SGD nesterov fused"
TIMED: dict[str, Entrant] = {
    "torch AdamW foreach": adamw(foreach=True),
    ADAMW_FUSED: adamw(fused=True),
    "SigSignAdamW": with_friction(fk.SigSignAdamW, friction_input="product"),
    "SigSignAdamW normalized": with_friction(fk.SigSignAdamW, friction_input="normalized"),
    "TanhSignAdamW": with_friction(fk.TanhSignAdamW, friction_input="product"),
    RSGDM: rsgdm(),
    SGD_FUSED: nesterov(fused=True),
    "torch SGD nesterov foreach": nesterov(foreach=True),
}
