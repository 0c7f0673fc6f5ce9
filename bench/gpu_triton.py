"""Compiles ahead the Triton kernels that a report launches: ``python -m bench.gpu_triton FOLDER``.

Runs the real wrappers on the processor, with a driver that pretends to be the card and launches nothing. The
binaries serve a card where the same version of Triton is installed; only they are kept, as a compiler's
intermediate files take ten times the space and autotuning has measured nothing here.
"""

import argparse
import os
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import torch

DIM, CLASSES = 768, (8, 52)  # as the benchmark has them
PRECISIONS = ("bf16", "fp32", "tf32")
PROCESSORS = (4, 132)  # one split of a pass, and several
SHARED_BYTES = 227 << 10


class StandIn:
    """Enough of Triton's driver for everything up to a launch."""

    launcher_cls = staticmethod(lambda source, metadata: lambda *args, **options: None)
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": SHARED_BYTES},
        load_binary=lambda name, kernel, shared, device: (object(), object(), 0, 0, 1024),
    )

    def __init__(self, capability: int) -> None:
        from triton.backends.compiler import GPUTarget

        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(capability: int, dims: list[int], precisions: list[str]) -> None:
    import triton
    from friction_triton import batch, configurations, row_softmax, scores

    from bench import loss_contenders
    from friction_kernels.scores import route
    from friction_kernels.scores.backend import Term

    def once(call, quantiles=None) -> list[float]:
        call()
        return [1.0, 1.0, 1.0]

    triton.runtime.driver.set_active(StandIn(capability))
    configurations._milliseconds = once
    scores.architecture = row_softmax.architecture = lambda device: capability // 10 * 10
    scores.STRIPE_BYTES = 0  # more than one stripe
    for precision, dim, processors in product(precisions, dims, PROCESSORS):
        configurations._processors = lambda device, count=processors: count
        nodes = range(2048)
        numbers, columns = torch.zeros(len(nodes)), torch.zeros(len(nodes), max(CLASSES))
        graph = scores.TritonScores(
            torch.zeros(len(nodes), dim), None, torch.ones(1), precision, mask_diagonal=True
        )
        configurations.SYMMETRIC_FROM = len(nodes)
        graph.logsumexp(numbers)
        graph.logsumexp(numbers, nodes)
        graph.apply(nodes, nodes, numbers, numbers, columns[:, :1])
        for width, binary in product(CLASSES, (False, True)):
            graph.apply(nodes, nodes, numbers, numbers, columns[:, :width], binary=binary)
        term = Term(*[numbers] * 3)
        graph.gradient((Term(*[numbers] * 3, columns, columns), term, term))
        for classes in CLASSES:
            batch.batch_gloss(
                torch.zeros(128, dim),
                torch.zeros(128, dtype=torch.int64),
                torch.zeros(128, dtype=torch.bool),
                classes,
                None,
                torch.ones(1),
                precision=precision,
            )
    route.triton_unavailable_reason, route.TILES_DIM = (
        lambda *_: None,
        0,
    )  # as the benchmark's sizes
    for name, sizes in loss_contenders.SIZES["cuda"].items():
        few = sizes._replace(rows=64, columns=96)
        given = loss_contenders.Given.of(few, "cpu", torch.bfloat16)
        loss_contenders.ours(name, given, "triton")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--dims", type=int, nargs="+", default=[DIM])
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    options = parser.parse_args()
    os.environ |= {
        "TRITON_CACHE_DIR": str(options.folder.resolve()),
        "TRITON_STORE_BINARY_ONLY": "1",
    }
    compile_all(options.capability, options.dims, options.precisions)
    for path in options.folder.rglob("*.autotune.json"):
        path.unlink()
    found = list(options.folder.rglob("*.cubin"))
    megabytes = sum(p.stat().st_size for p in options.folder.rglob("*") if p.is_file()) / 2**20
    print(f"{len(found)} Triton kernels, {megabytes:.1f} MiB")


if __name__ == "__main__":
    main()
