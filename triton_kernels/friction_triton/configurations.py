"""Tile sizes for each architecture and precision, and the division of a pass among programs."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton

# input_precision of tl.dot for queries and keys; it has no effect on bfloat16 operands.
DOT_PRECISION = {"fp32": "ieee", "tf32": "tf32", "bf16": "ieee"}
# For products with float32 values: three TF32 products keep 21 of float32's 24 bits.
VALUE_PRECISION = {"fp32": "ieee", "tf32": "tf32x3", "bf16": "tf32x3"}
# Columns that each step of a product reads; queries and keys are padded to a multiple of it.
BLOCK_D = {"fp32": 16, "tf32": 32, "bf16": 64}
SYMMETRIC_FROM = 8192  # nodes
if triton.knobs.runtime.interpret:  # the time of an interpreted step does not depend on its size
    BLOCK_D = dict.fromkeys(BLOCK_D, 64)


@dataclass(frozen=True)
class Tile:
    """A kernel's compile-time sizes, and the numbers of pipeline stages that autotuning compares.

    Autotuning compares nothing else: stages change when a number is loaded, not the order of summation.
    So a result has the same bits whichever configuration wins.
    """

    sizes: tuple[tuple[str, int], ...]
    num_warps: int
    stages: tuple[int, ...]

    def __getitem__(self, name: str) -> int:
        return dict(self.sizes)[name]


def tile(kernel: str, precision: str, architecture: int) -> Tile:
    """The tile of a pass; `architecture` is 80, 90 or 100.

    The largest tiles that neither spill registers nor exceed shared memory (test_triton_compiled.py): wider
    tiles load less from the cache per product. For the gradient in bfloat16 on Hopper, the fastest of
    ten that were measured on an H200, at N = 65,536 and d = 768; they spill some.
    """
    ampere, fp32 = architecture < 90, precision == "fp32"
    hopper = architecture == 90 and precision == "bf16"
    stages = (2, 3) if fp32 or ampere else (3, 4)
    num_warps = 8
    if kernel == "logsumexp":
        sizes = {"BLOCK_M": 128, "BLOCK_N": 128 if fp32 or ampere else 256}
    elif kernel == "symmetric_logsumexp":  # BLOCK_M divides BLOCK_N
        rows = 64 if fp32 or architecture >= 100 else 128
        sizes = {"BLOCK_M": rows, "BLOCK_N": 128, "TILES": 8}
    elif kernel == "apply_vector":
        sizes = {"BLOCK_M": 128, "BLOCK_N": 128 if fp32 or architecture != 90 else 256}
    elif kernel == "apply_narrow":  # up to 16 columns of values
        side = 64 if fp32 else 128
        sizes = {"BLOCK_M": side, "BLOCK_N": side, "BLOCK_K": 16, "IN_HALVES": not fp32}
    elif kernel == "apply_wide":  # 64 columns at a time
        rows, columns = (64, 64) if ampere else (128, 64 if fp32 else 128)
        sizes = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": 64, "IN_HALVES": not fp32}
    elif kernel == "coefficients":
        rows, columns, num_warps = (64, 128, 4) if hopper else (128, 64, 8)
        sizes = {"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": 16}
    elif kernel == "rows_alone":  # of a row softmax loss without a teacher
        sizes = {"BLOCK_M": 64, "BLOCK_N": 64 if fp32 else 128}
    elif kernel == "rows_and_teacher":
        rows, columns, num_warps = (32, 32, 4) if fp32 else (64, 32 if ampere else 64, 8)
        sizes = {"BLOCK_M": rows, "BLOCK_N": columns}
    elif kernel == "rows_stored":  # each warp has a row
        sizes, stages = {"BLOCK_M": 8, "BLOCK_N": 512}, (1,)
    else:
        assert kernel == "product"
        blackwell_tf32 = architecture >= 100 and precision == "tf32"
        sizes = {"BLOCK_M": 128, "BLOCK_N": 64 if blackwell_tf32 else 256 if hopper else 128}
    sizes["BLOCK_D"] = BLOCK_D[precision]
    return Tile(tuple(sizes.items()), num_warps, stages)


def computes_tiles_once(num_nodes: int, precision: str, architecture: int) -> bool:
    """Whether log-sum-exps of all rows of symmetric scores take each tile once.

    Below SYMMETRIC_FROM nodes, adding the partial sums costs what the products save. Blackwell's tensor cores
    need 128 rows for their full rate, and such tiles spill there.
    """
    return num_nodes >= SYMMETRIC_FROM and (precision == "fp32" or architecture < 100)


@functools.cache
def tuned(kernel, of: Tile):
    """`kernel` with the tile's sizes, autotuned over its stages once per d; cached on disk.

    Autotuning runs a kernel repeatedly, so a result that the kernel accumulates into is restored each time.
    """
    stages = of.stages[:1] if triton.knobs.runtime.interpret else of.stages
    configs = [
        triton.Config(dict(of.sizes), num_warps=of.num_warps, num_stages=count) for count in stages
    ]
    tuner = triton.autotune(
        configs,
        key=["dim"],
        restore_value=["result"] if "ACCUMULATE" in kernel.arg_names else None,
        do_bench=_milliseconds,
        cache_results=True,
    )(kernel)
    tuner.__name__ = kernel.__name__
    return tuner


def _milliseconds(call, quantiles=None) -> list[float]:
    """Median, minimum and maximum of three runs; no more, as a pass over a million nodes takes a second."""
    call()
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return [sorted(times)[1], min(times), max(times)]


@functools.cache
def architecture(device: torch.device) -> int:
    """The architecture whose tiles a device uses: 90 for Hopper, 100 for Blackwell, else 80 (smallest)."""
    if device.type != "cuda":
        return 90  # interpreted
    major, _ = torch.cuda.get_device_capability(device)
    return {9: 90, 10: 100}.get(major, 80)


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def splits(programs: int, blocks: int, device: torch.device, at_most: int = 16) -> int:
    """The number of splits, of the `blocks` steps of each of `programs`, that fills the processors.

    The smallest that leaves processors idle for less than a tenth of the pass, or else the one with the least
    idle time. Each split writes its own sum, and the sums are added in order.
    """
    processors = _processors(device)

    def busy(count: int) -> float:
        rounds = programs * count / processors
        return rounds / -(-programs * count // processors)

    candidates = range(1, min(blocks, at_most) + 1)
    return next((count for count in candidates if busy(count) >= 0.9), max(candidates, key=busy))
