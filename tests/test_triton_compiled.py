"""What the compiler makes of every Triton kernel, for GPUs that need not be here.

The wrappers run on the CPU up to the launch; what they would launch is compiled ahead of time for each
architecture, and read: registers, shared memory, machine code. Dimensions and classes are run-time
arguments, so one compilation serves every d and up to 64 classes; Triton's cache finds that out, and each
combination is asked for all the same.

Compiling goes on in processes of its own, where nothing is interpreted: `python test_triton_compiled.py
ARCHITECTURE` prints a line of JSON a kernel. FRICTION_COMPILE=all compiles every number of stages that
autotuning may choose, and every batch kernel; else the one that needs most shared memory, and a batch
kernel an architecture. What Triton's cache has is not compiled again.
"""

import functools
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.deep

ARCHITECTURES = (80, 90, 100)
DIMS, CLASSES = (384, 768, 1024), (8, 52)
PRECISIONS = ("fp32", "tf32", "bf16")
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}  # bytes a block may have
SMALL_TILES = "mma.sync"  # tensor cores, on every architecture; of fewer than 64 rows
TENSOR_CORES = {80: SMALL_TILES, 90: "wgmma.mma_async", 100: "tcgen05.mma"}  # as PTX calls them
PASSES = {
    "logsumexp_kernel": 1,
    "symmetric_logsumexp_kernel": 1,
    "apply_kernel": 2,  # values in float32, and binary ones
    "apply_vector_kernel": 1,
    "coefficients_kernel": 1,
    "product_kernel": 2,  # as it is, and transposed
}
BATCH = ("batch_similarities_kernel", "batch_kernel", "batch_gradient_kernel")
# Their tiles were the fastest on a card, though they spill some registers.
MEASURED = ("coefficients_kernel", "product_kernel")
# Bytes a thread, where its registers have 1,020; at most 80 were seen, and 272 with Triton 3.6. The tiles
# themselves lie in scratch memory.
BATCH_SPILLS_AT_MOST = {"new": 128, "before 3.9": 288}
POINTERS = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
    "int64": "i64",
    "int32": "i32",
    "uint8": "u8",
    "bool": "i1",
}
ROWS = {"row_sums_kernel", "row_losses_kernel", "row_derivatives_kernel"}
EVERYTHING = os.environ.get("FRICTION_COMPILE") == "all"


@pytest.fixture(scope="module")
def compiled() -> dict[int, list[dict]]:
    """By architecture, what was compiled; all architectures at the same time."""
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    processes = {
        architecture: subprocess.Popen(
            [sys.executable, __file__, str(architecture)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for architecture in ARCHITECTURES
    }
    results = {}
    for architecture, process in processes.items():
        out, error = process.communicate(timeout=1500)
        assert process.returncode == 0, error[-3000:]
        results[architecture] = [json.loads(line) for line in out.splitlines()]
    return results


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_passes(compiled: dict[int, list[dict]], architecture: int, precision: str) -> None:
    """Every pass at every d and C: within shared memory, no spill that was not measured, on tensor cores."""
    once = importlib.import_module("friction_triton.configurations").computes_tiles_once
    found = [
        k for k in compiled[architecture] if k["precision"] == precision and k["name"] in PASSES
    ]
    for dim, num_classes in itertools.product(DIMS, CLASSES):
        for name, launches in PASSES.items():
            if name == "symmetric_logsumexp_kernel" and not once(1 << 20, precision, architecture):
                continue
            of_it = [k for k in found if (k["name"], k["d"], k["C"]) == (name, dim, num_classes)]
            assert len(of_it) >= launches, (name, dim, num_classes)
    for kernel in found:
        assert kernel["shared"] <= SHARED_LIMIT[architecture], kernel
        measured = architecture == 90 and precision == "bf16" and kernel["name"] in MEASURED
        assert kernel["spilled"] <= (288 if measured else 0), kernel
        assert (kernel["tensor_cores"] > 0) == (precision != "fp32"), kernel


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batch_kernel(compiled: dict[int, list[dict]], architecture: int, precision: str) -> None:
    """One program holds strips alone, so it spills next to nothing, whatever N and d are."""
    found = [
        k for k in compiled[architecture] if k["precision"] == precision and k["name"] in BATCH
    ]
    if not found:
        pytest.skip("FRICTION_COMPILE=all compiles it for every architecture and precision")
    assert {(k["name"], k["d"]) for k in found} == set(itertools.product(BATCH, DIMS))
    triton = pytest.importorskip("triton")
    old = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
    at_most = BATCH_SPILLS_AT_MOST["before 3.9" if old else "new"]
    for kernel in found:
        assert kernel["shared"] <= SHARED_LIMIT[architecture], kernel
        assert kernel["spilled"] <= (at_most if kernel["name"] == "batch_kernel" else 0), kernel
        assert (kernel["tensor_cores"] > 0) == (precision != "fp32"), kernel


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_row_softmax(compiled: dict[int, list[dict]], architecture: int) -> None:
    """Both routes: within shared memory, no spill; computed 16-bit scores and TF32 ones on tensor cores."""
    found = [k for k in compiled[architecture] if "form" in k]
    launched = {}
    for kernel in found:
        loss = kernel["precision"], kernel["form"], kernel["route"]
        launched.setdefault(loss, set()).add(kernel["name"])
    for (_, form, _), names in launched.items():
        assert names == ROWS | ({"row_mixture_kernel"} if form == "jsd" else set())
    assert {precision for precision, _, route in launched if route == "tiles"} == {
        *PRECISIONS,
        "fp16",
    }
    assert len({form for _, form, route in launched if route == "fused_chunks"}) == 5
    for kernel in found:
        assert kernel["shared"] <= SHARED_LIMIT[architecture], kernel
        assert kernel["spilled"] == 0, kernel
        multiplies = kernel["route"] == "tiles" and kernel["name"] != "row_losses_kernel"
        on_tensor_cores = multiplies and kernel["precision"] != "fp32"
        assert (kernel["tensor_cores"] > 0) == on_tensor_cores, kernel


def main(architecture: int) -> None:
    import torch
    from friction_triton import batch, row_softmax, scores

    captured = []

    def capture(kernel, grid, device, *args, **options):
        captured.append((kernel, args, options))

    scores.launch = batch.launch = row_softmax.launch = capture
    scores.architecture = row_softmax.architecture = lambda device: architecture
    for precision, dim, num_classes in itertools.product(PRECISIONS, DIMS, CLASSES):
        about = {"precision": precision, "d": dim, "C": num_classes}
        captured.clear()
        pretend_passes(torch, scores.TritonScores, precision, dim, num_classes)
        if batch_is_compiled(architecture, precision, num_classes):
            pretend_batch(torch, batch.batch_gloss, precision, dim, num_classes)
        for kernel, args, options in captured:
            for facts in compile_launch(kernel, args, options, architecture):
                print(json.dumps(about | facts), flush=True)
    for about, loss in row_softmax_losses(torch):
        captured.clear()
        loss()
        for kernel, args, options in captured:
            for facts in compile_launch(kernel, args, options, architecture):
                print(json.dumps(about | facts), flush=True)


def batch_is_compiled(architecture: int, precision: str, num_classes: int) -> bool:
    """It takes the compiler ten seconds: by default once an architecture."""
    usual = {80: ("bf16", 52), 90: ("fp32", 8), 100: ("tf32", 8)}
    return EVERYTHING or (precision, num_classes) == usual[architecture]


def pretend_passes(torch, scores_type, precision: str, dim: int, num_classes: int) -> None:
    """One of each pass over 2,048 nodes, a size whose last stripe is not its first."""
    from friction_triton import configurations, scores

    from friction_kernels.scores.backend import Term

    num_nodes = 2048
    scores.STRIPE_BYTES, configurations.SYMMETRIC_FROM = 0, num_nodes
    graph = scores_type(
        torch.zeros(num_nodes, dim), None, torch.ones(1), precision, mask_diagonal=True
    )
    numbers, columns = torch.zeros(num_nodes), torch.zeros(num_nodes, num_classes)
    nodes = range(num_nodes)
    graph.logsumexp(numbers)
    graph.logsumexp(numbers, nodes)
    for width in (1, num_classes):
        graph.apply(nodes, nodes, numbers, numbers, columns[:, :width])
    graph.apply(nodes, nodes, numbers, numbers, columns, binary=True)
    of_t, of_p, of_q = (
        Term(*[numbers] * 3, columns, columns),
        Term(*[numbers] * 3),
        Term(*[numbers] * 3),
    )
    graph.gradient((of_t, of_p, of_q))


def pretend_batch(torch, batch_gloss, precision: str, dim: int, num_classes: int) -> None:
    batch_gloss(
        torch.zeros(128, dim),
        torch.zeros(128, dtype=torch.int64),
        torch.zeros(128, dtype=torch.bool),
        num_classes,
        torch.zeros(num_classes),
        torch.ones(1),
        precision=precision,
    )


def row_softmax_losses(torch):
    """The forms that need most registers, by both routes, and one loss of each dtype."""
    from unittest import mock

    from friction_kernels import row_softmax_loss
    from friction_kernels.scores import route
    from friction_kernels.targets import Distilled, Index, SameLabel, Scores, TopK

    n, m, d = 256, 512, 128
    of_rows, of_columns = torch.zeros(n, dtype=torch.int64), torch.zeros(m, dtype=torch.int64)
    wide = {"mask": torch.ones(n, m, dtype=torch.bool), "bias": torch.zeros(m)}
    stored = TopK(torch.zeros(n, 2, dtype=torch.int64), torch.zeros(n, 2), "bucket")

    def teacher(dtype):
        return Scores(torch.zeros(n, d, dtype=dtype), torch.zeros(m, d, dtype=dtype))

    forms = {
        "labels": lambda _: (
            Index(of_rows),
            {"softcap": 9.0, "label_smoothing": 0.1, "bias": wide["bias"]},
        ),
        "contrastive": lambda _: (SameLabel(of_rows, of_columns), {"mask": "causal"}),
        "kl": lambda dtype: (teacher(dtype), {"kind": "kl"}),
        "jsd": lambda dtype: (Distilled(of_rows, teacher(dtype)), {"kind": "jsd", **wide}),
        "bucket": lambda _: (Distilled(of_rows, stored), {"kind": "kl", "softcap": 9.0}),
    }

    def run(form, dtype, dim, precision):
        target, options = forms[form](dtype)
        x = torch.zeros(n, d, dtype=dtype, requires_grad=True)
        w = torch.zeros(m, d, dtype=dtype)
        matmul = torch.backends.cuda.matmul
        matmul.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        with (
            mock.patch.object(route, "TILES_DIM", dim),
            mock.patch.object(route, "triton_unavailable_reason", lambda *_: None),
        ):
            row_softmax_loss(
                x, w, target, backend="triton", statistics=True, validate=False, **options
            )

    computed = ("labels", "contrastive", "kl", "jsd")
    asked = [("bf16", form, "tiles") for form in computed]
    asked += [("fp32", "labels", "tiles"), ("fp32", "jsd", "tiles"), ("tf32", "jsd", "tiles")]
    asked += [("fp16", "labels", "tiles")]
    asked += [("fp32", form, "fused_chunks") for form in (*computed, "bucket")]
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    for precision, form, name in asked:
        about = {"precision": precision, "form": form, "route": name}
        arguments = form, dtypes.get(precision, torch.float32), d if name == "tiles" else 0
        yield about, functools.partial(run, *arguments, precision)


def compile_launch(kernel, args, options, architecture: int):
    """Facts of each configuration; arguments are specialised as at a launch, to multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    configs = getattr(kernel, "configs", None)
    function = kernel.fn if configs else kernel
    configs = configs or [triton.Config({}, num_warps=options["num_warps"], num_stages=1)]
    for config in configs if EVERYTHING else configs[-1:]:
        given = dict(zip(function.arg_names, args, strict=False)) | options | config.kwargs
        values = {name: given[name] for name in function.arg_names}
        types = {name: type_of(name, value) for name, value in values.items()}
        parameters = dict(zip(values, function.params, strict=True))
        specialised = [n for n, p in parameters.items() if not p.do_not_specialize]
        aligned = [n for n, p in parameters.items() if not p.do_not_specialize_on_alignment]
        source = ASTSource(
            function,
            types,
            {(i,): v for i, (n, v) in enumerate(values.items()) if types[n] == "constexpr"},
            {
                (i,): [["tt.divisibility", 16]]
                for i, (n, v) in enumerate(values.items())
                if (types[n][0] == "*" and n in aligned)
                or (n in specialised and types[n] == "i32" and v % 16 == 0)
            },
        )
        target = GPUTarget("cuda", architecture, 32)
        flags = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        kernel = triton.compile(source, target=target, options=flags)
        facts = {
            "name": function.__name__,
            "shared": kernel.metadata.shared,
            "tensor_cores": sum(
                kernel.asm["ptx"].count(name) for name in {TENSOR_CORES[architecture], SMALL_TILES}
            ),
        }
        yield facts | flags | registers_of(kernel.asm["cubin"])


def type_of(name: str, value) -> str:
    import torch

    if name.isupper() or value is None:
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return f"*{POINTERS[str(value.dtype).removeprefix('torch.')]}"
    return "fp32" if isinstance(value, float) else "i32"


@functools.cache
def registers_of(machine_code: bytes) -> dict:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage).groups()
    return {"registers": int(registers), "spilled": int(stack) + int(local)}


if __name__ == "__main__":
    main(int(sys.argv[1]))
