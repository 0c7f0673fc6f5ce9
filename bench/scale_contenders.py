"""What `bench.bench_scale` compares, as data: ways to keep parameters and states, and to clip."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import friction_kernels as fk
from bench.gpu_contenders import (
    ADAMW_FUSED,
    COPY,
    TORCH_FUSED,
    Contender,
    Copy,
    native,
    of_peer,
    optimizer,
)

MAX_NORM = 1.0
NO_LISTS = ("", "")  # what must be moved follows from what is kept
BF16 = torch.bfloat16
PEERS = ("flashoptim", "bitsandbytes", "torchao")


@dataclass(frozen=True)
class Variant:
    """A contender; the type of its parameters; how often its step moves a gradient."""

    contender: Contender
    dtype: torch.dtype = torch.float32
    gradients: int = 1
    alone: str | None = None  # the contender whose step it adds something to
    compiles: bool = False  # with torch.compile, for every shape

    @property
    def name(self) -> str:
        return self.contender.name


class ClippedFirst:
    """Another optimizer's step behind torch's clipping, which reads gradients for the norm, then
    reads and writes them."""

    def __init__(self, opt: torch.optim.Optimizer) -> None:
        self.inner, self.state, self.param_groups = opt, opt.state, opt.param_groups
        self.params = opt.param_groups[0]["params"]

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.params, MAX_NORM)
        self.inner.step()


def clipped_first(contender: Contender) -> Variant:
    def build(params: list[Tensor]) -> ClippedFirst:
        return ClippedFirst(contender.build(params))

    first = replace(contender, name=f"clip_grad_norm_, {contender.name}", build=build)
    return Variant(first, gradients=4, alone=contender.name)


def scaled(build: Callable) -> Callable[[list[Tensor]], fk.SigSignAdamW]:
    """As a GradScaler leaves the optimizer when it calls step()."""

    def build_scaled(params: list[Tensor]) -> fk.SigSignAdamW:
        opt = build(params)
        opt.grad_scale = torch.full((), 2.0**16, device=params[0].device)
        opt.found_inf = torch.zeros((), device=params[0].device)
        return opt

    return build_scaled


def ours(kept: str, dtype: torch.dtype = torch.float32, **options) -> Variant:
    name = f"SigSignAdamW {kept}".strip()
    return Variant(native(name, fk.SigSignAdamW, NO_LISTS, **options), dtype)


def clipped(variant: Variant, kept: dict | None = None) -> Variant:
    """The same with clipping inside the step, for which gradients are read once more."""
    build = optimizer(fk.SigSignAdamW, backend="native", max_grad_norm=MAX_NORM, **(kept or {}))
    contender = replace(variant.contender, name=f"{variant.name}, max_grad_norm", build=build)
    return replace(variant, contender=contender, gradients=2, alone=variant.name)


def unscaled(variant: Variant) -> Variant:
    build = scaled(variant.contender.build)
    contender = replace(variant.contender, name=f"{variant.name}, unscale", build=build)
    return replace(variant, contender=contender)


def peer(name: str, module: str, cls: str, dtype=torch.float32, compiles=False, **options):
    contender = of_peer(name, module, cls, NO_LISTS, slow=True, lr=1e-3, **options)
    return Variant(contender, dtype, compiles=compiles)


EIGHT = {"state_dtype": "8bit"}
PLAIN = ours("")
ALL_8BIT = ours("8bit", **EIGHT)
GRAD_8BIT = ours("prev_grad 8bit", state_dtype={"prev_grad": "8bit"})
CLIPPED = clipped(PLAIN)
CLIPPED_UNSCALED = unscaled(CLIPPED)
CLIPPED_BEFORE = clipped_first(PLAIN.contender)
SPLIT = ours("bf16 split 8bit", BF16, master="split", **EIGHT)

# In the order of a round: those whose ratio is a goal run near each other.
VARIANTS = [
    Variant(Contender(COPY, Copy, NO_LISTS)),
    GRAD_8BIT,
    Variant(TORCH_FUSED),
    ALL_8BIT,
    PLAIN,
    CLIPPED,
    CLIPPED_UNSCALED,
    CLIPPED_BEFORE,
    clipped_first(TORCH_FUSED),
    clipped(ALL_8BIT, EIGHT),
    ours("state bf16", state_dtype="bf16"),
    ours(
        "moments bf16, prev_grad 8bit",
        state_dtype={"exp_avg": "bf16", "exp_avg_sq": "bf16", "prev_grad": "8bit"},
    ),
    ours(
        "exp_avg_sq fp32, rest 8bit",
        state_dtype={"exp_avg": "8bit", "exp_avg_sq": "fp32", "prev_grad": "8bit"},
    ),
    Variant(replace(TORCH_FUSED, name=f"{ADAMW_FUSED}, bf16"), BF16),
    ours("bf16", BF16),
    ours("bf16, state fp32", BF16, state_dtype="fp32"),
    SPLIT,
    ours("bf16 split8 8bit", BF16, master="split8", **EIGHT),
    ours("bf16 master fp32 8bit", BF16, master="fp32", **EIGHT),
    ours("bf16 stochastic 8bit", BF16, rounding="stochastic", **EIGHT),
    peer("flashoptim.FlashAdamW", "flashoptim", "FlashAdamW"),
    peer("flashoptim.FlashAdamW, bf16", "flashoptim", "FlashAdamW", BF16),  # 24 bits in all
    peer("bitsandbytes AdamW8bit", "bitsandbytes.optim", "AdamW8bit"),
    peer("torchao AdamW8bit", "torchao.optim", "AdamW8bit", compiles=True),
]


def variants_for(device: str) -> list[Variant]:
    """The copy shows what a card's memory can do; on a processor it is too small for that."""
    return [v for v in VARIANTS if device == "cuda" or v.name != COPY]
