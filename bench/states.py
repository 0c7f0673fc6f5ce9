"""What the suite `scale` compares, as data: ways to keep parameters and states, and to clip."""

from dataclasses import replace

import torch
from torch import Tensor

import friction_kernels as fk
from bench.contenders import (
    ADAMW_FOR_LOOP,
    ADAMW_FUSED,
    COPY,
    EAGER_ADAMW,
    IN_PLACE,
    TORCH_FUSED,
    Build,
    Contender,
    Copy,
    InPlace,
    native,
    optimizer,
)
from bench.peers import BF16, OF_STATES

MAX_NORM = 1.0
FP32 = torch.float32


class ClippedFirst:
    """Another optimizer's step behind torch's clipping, which reads gradients for the norm, then reads and
    writes them."""

    def __init__(self, opt: torch.optim.Optimizer) -> None:
        self.inner, self.state, self.param_groups = opt, opt.state, opt.param_groups

    def step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], MAX_NORM)
        self.inner.step()


def clipped_first(contender: Contender) -> Contender:
    return replace(
        contender,
        name=f"clip_grad_norm_, {contender.name}",
        build=lambda params: ClippedFirst(contender.build(params)),
        reads="gggg",
        alone=contender.name,
    )


def scaled(build: Build) -> Build:
    """As a GradScaler leaves the optimizer when it calls step()."""

    def build_scaled(params: list[Tensor]) -> object:
        opt = build(params)
        opt.grad_scale = torch.full((), 2.0**16, device=params[0].device)
        opt.found_inf = torch.zeros((), device=params[0].device)
        return opt

    return build_scaled


def ours(kept: str, dtype: torch.dtype = FP32, **options) -> Contender:
    return native(
        f"SigSignAdamW {kept}".rstrip(),
        fk.SigSignAdamW,
        options,
        dtype=dtype,
        plain=EAGER_ADAMW,
        baseline=ADAMW_FUSED,
    )


def clipped(contender: Contender, **options) -> Contender:
    """The same with clipping inside the step, for which gradients are read once more."""
    build = optimizer(fk.SigSignAdamW, backend="native", max_grad_norm=MAX_NORM, **options)
    name = f"{contender.name}, max_grad_norm"
    return replace(contender, name=name, build=build, reads="gg", alone=contender.name)


EIGHT = {"state_dtype": "8bit"}
MOMENTS_BF16 = {"exp_avg": "bf16", "exp_avg_sq": "bf16", "prev_grad": "8bit"}
SQUARES_FP32 = {"exp_avg": "8bit", "exp_avg_sq": "fp32", "prev_grad": "8bit"}
PLAIN = ours("")
ALL_8BIT = ours("8bit", **EIGHT)
ADAMW_8BIT = native(
    "AdamW 8bit", fk.AdamW, EIGHT, plain=ADAMW_FOR_LOOP, baseline="bitsandbytes AdamW8bit"
)
GRAD_8BIT = ours("prev_grad 8bit", state_dtype={"prev_grad": "8bit"})
CLIPPED = clipped(PLAIN)
CLIPPED_UNSCALED = replace(CLIPPED, name=f"{CLIPPED.name}, unscale", build=scaled(CLIPPED.build))
CLIPPED_BEFORE = clipped_first(PLAIN)
SPLIT = ours("bf16 split 8bit", BF16, master="split", **EIGHT)

# In the order of a round: those whose ratio is a goal run near each other.
WAYS = [
    Contender(COPY, Copy, reads=""),
    Contender(IN_PLACE, InPlace, reads=""),
    GRAD_8BIT,
    TORCH_FUSED,
    ALL_8BIT,
    ADAMW_8BIT,
    PLAIN,
    CLIPPED,
    CLIPPED_UNSCALED,
    CLIPPED_BEFORE,
    clipped_first(TORCH_FUSED),
    clipped(ALL_8BIT, **EIGHT),
    ours("state bf16", state_dtype="bf16"),
    ours("moments bf16, prev_grad 8bit", state_dtype=MOMENTS_BF16),
    ours("exp_avg_sq fp32, rest 8bit", state_dtype=SQUARES_FP32),
    replace(TORCH_FUSED, name=f"{ADAMW_FUSED}, bf16", dtype=BF16),
    ours("bf16", BF16),
    ours("bf16 state fp32", BF16, state_dtype="fp32"),
    SPLIT,
    ours("bf16 split8 8bit", BF16, master="split8", **EIGHT),
    ours("bf16 master fp32 8bit", BF16, master="fp32", **EIGHT),
    ours("bf16 stochastic 8bit", BF16, rounding="stochastic", **EIGHT),
    *OF_STATES,
]
