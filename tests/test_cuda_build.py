"""The CUDA machine code in the built library, read with cuobjdump, which triton's wheel carries."""

import os
import re
import shutil
import subprocess
from collections import deque
from importlib.util import find_spec
from pathlib import Path

import pytest

from friction_kernels import _native, backends

pytestmark = pytest.mark.deep

DEFAULT_ARCHITECTURES = ("80-real", "90-real", "100-real", "100-virtual")
KERNELS = 55  # to an architecture
# A multiprocessor has 65,536 registers: two blocks of 256 threads of the hot kernels find room, and one
# of 1,024 of the kernel that decides.
MOST_REGISTERS = {
    "update_kernel": 128,
    "gram_kernelILi1E": 80,
    "gram_kernelILi2E": 80,
    "gram_kernelILi4E": 128,
    "gram_kernelILi8E": 255,
    "combine_kernel": 128,
    "statistic_kernel": 128,
    "projection_reduce_kernel": 128,
    "projection_decide_kernel": 96,
}
# 128-bit loads and stores that a thread's vectors take: lists times vectors of 16 bytes. Where types are
# looked up: those of float32 and of 16 bits, of parameter, gradient and float32 states.
VECTOR_ACCESSES = {
    ("update_kernel", "FrictionAdam", "Float32Config"): (5 * 2, 4 * 2),
    ("update_kernel", "FrictionAdam", "BFloat16Config"): (3 + 2 * 2, 2 + 2 * 2),
    ("update_kernel", "FrictionAdam", "Float64Config"): (4, 4),
    ("update_kernel", "FrictionAdam", "MixedConfig"): (5 * 3, 4 * 3),
    ("update_kernel", "FrictionAdam", "QuantizedConfig"): (2 * 3, 3),
    ("update_kernel", "Adam", "Float32Config"): (4 * 2, 3 * 2),
    ("update_kernel", "Adam", "BFloat16Config"): (2 + 2 * 2, 1 + 2 * 2),
    ("update_kernel", "Adam", "Float64Config"): (3, 3),
    ("update_kernel", "Adam", "MixedConfig"): (4 * 3, 3 * 3),
    ("update_kernel", "Adam", "QuantizedConfig"): (2 * 3, 3),
    ("update_kernel", "Sgd", "Float32Config"): (3 * 2, 2 * 2),
    ("update_kernel", "Sgd", "BFloat16Config"): (2 + 2, 1 + 2),
    ("update_kernel", "Sgd", "Float64Config"): (2, 2),
    ("update_kernel", "Sgd", "MixedConfig"): (3 * 3, 2 * 3),
    ("update_kernel", "Sgd", "QuantizedConfig"): (2 * 3, 3),
    # A list is float32 or, next to the other, 16-bit.
    **{(f"gram_kernelILi{lists}E",): (lists * (2 + 1), 0) for lists in (1, 2, 4, 8)},
    ("combine_kernel",): (2 + 1, 2 + 1),
    ("projection_reduce_kernel", "AdamP", "Float32Config"): (4 * 2, 0),
    ("projection_reduce_kernel", "AdamP", "BFloat16Config"): (2 + 2 * 2, 0),
    ("projection_reduce_kernel", "AdamP", "QuantizedConfig"): (2 * 3, 0),
    ("projection_reduce_kernel", "FrictionAdamP", "Float32Config"): (5 * 2, 0),
    ("projection_reduce_kernel", "FrictionAdamP", "BFloat16Config"): (3 + 2 * 2, 0),
    ("projection_reduce_kernel", "FrictionAdamP", "QuantizedConfig"): (2 * 3, 0),
}
# 64-bit ones: eight codes of each quantized list.
CODE_ACCESSES = {
    ("update_kernel", "FrictionAdam", "QuantizedConfig"): (3, 3),
    ("update_kernel", "FrictionAdam", "MixedConfig"): (3, 3),
    ("update_kernel", "Adam", "QuantizedConfig"): (2, 2),
    ("update_kernel", "Adam", "MixedConfig"): (2, 2),
    ("update_kernel", "Sgd", "QuantizedConfig"): (1, 1),
    ("update_kernel", "Sgd", "MixedConfig"): (1, 1),
    ("projection_reduce_kernel", "AdamP", "QuantizedConfig"): (2, 0),
    ("projection_reduce_kernel", "FrictionAdamP", "QuantizedConfig"): (3, 0),
}

if not _native.cuda_architectures:
    if shutil.which("nvcc") and os.environ.get("FRICTION_CUDA") != "0":
        pytest.fail(
            "nvcc is on this machine, and the library was built without CUDA", pytrace=False
        )
    pytest.skip(
        "the library has no CUDA kernels, because nvcc is not on this machine or FRICTION_CUDA is 0: their "
        "machine code is not checked",
        allow_module_level=True,
    )


def cuobjdump(*arguments: str) -> str:
    spec = find_spec("triton")
    bundled = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump" if spec else Path()
    tool = shutil.which("cuobjdump") or (str(bundled) if bundled.is_file() else None)
    if tool is None:
        pytest.fail("cuobjdump is needed: `pip install triton`, whose wheel carries it")
    run = [tool, *arguments, _native.__file__]
    return subprocess.run(run, check=True, capture_output=True, text=True).stdout


def kernel_of(symbol: str) -> tuple[str, ...]:
    """The kernel's name, its rule and its storage, of which not every kernel has all."""
    choices = (
        (
            "update_kernel",
            "statistic_kernel",
            "projection_reduce_kernel",
            "projection_decide_kernel",
            *(f"gram_kernelILi{lists}E" for lists in (1, 2, 4, 8)),
            "combine_kernel",
            "store_kernel",
        ),
    )
    choices += (
        ("4Adam", "5AdamP", "12FrictionAdam", "13FrictionAdamP", "3Sgd"),
    )  # a name's length goes before it
    choices += (("BFloat16Config", "Float32Config"),)
    choices += (("Float64Config", "MixedConfig", "QuantizedConfig"),)
    found = (name for names in choices for name in names if name in symbol)
    return tuple(name.lstrip("0123456789") for name in found)


@pytest.fixture(scope="module")
def resources() -> list[tuple[str, str, dict[str, int]]]:
    """(architecture, symbol, usage) of every kernel."""
    found, architecture = [], ""
    lines = cuobjdump("--dump-resource-usage").splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        if match := re.match(r" Function (\w+):", line):
            usage = {key: int(value) for key, value in re.findall(r"([A-Z]+):(\d+)", following)}
            found.append((architecture, match[1], usage))
    return found


def test_every_kernel_is_there_for_every_architecture(resources):
    if _native.cuda_architectures == DEFAULT_ARCHITECTURES:
        architectures = {"sm_80", "sm_90", "sm_100"}
    else:
        real = [name for name in _native.cuda_architectures if not name.endswith("-virtual")]
        architectures = {f"sm_{name.removesuffix('-real')}" for name in real}
    for architecture in architectures:
        symbols = [symbol for of, symbol, _ in resources if of == architecture]
        assert len(symbols) == len(set(symbols)) == KERNELS, architecture
    assert {of for of, _, _ in resources} == architectures


def test_the_library_is_small():
    assert Path(_native.__file__).stat().st_size < 20e6  # so are wheels, and what users download


def test_no_kernel_spills_or_keeps_a_stack(resources):
    for architecture, symbol, usage in resources:
        assert usage["STACK"] == 0 and usage["LOCAL"] == 0, (architecture, symbol, usage)


def test_registers_leave_room_for_the_blocks_that_hide_latency(resources):
    for architecture, symbol, usage in resources:
        most = MOST_REGISTERS.get(kernel_of(symbol)[0], 64)
        assert usage["REG"] <= most, (architecture, symbol, usage)


def test_whole_chunks_go_by_128_bit_loads_and_stores():
    seen = set()
    for section in re.split(r"\n\s*code for ", cuobjdump("-sass"))[1:]:
        architecture = section.split(maxsplit=1)[0]
        for function in section.split("Function : ")[1:]:
            symbol = function.split(maxsplit=1)[0]
            if kernel_of(symbol) not in VECTOR_ACCESSES:
                continue
            loads, stores = VECTOR_ACCESSES[kernel_of(symbol)]
            assert len(re.findall(r"LDG\.E\.(?:\w+\.)*128", function)) >= loads, (
                architecture,
                symbol,
            )
            assert len(re.findall(r"STG\.E\.(?:\w+\.)*128", function)) >= stores, (
                architecture,
                symbol,
            )
            assert "LDL" not in function and "STL" not in function, (architecture, symbol)
            loads, stores = CODE_ACCESSES.get(kernel_of(symbol), (0, 0))
            assert len(re.findall(r"LDG\.E\.(?:\w+\.)*64", function)) >= loads, symbol
            assert len(re.findall(r"STG\.E\.(?:\w+\.)*64", function)) >= stores, symbol
            if (
                "QuantizedConfig" in symbol
            ):  # a block's largest magnitude is found by one instruction
                found = len(re.findall(r"(?:CREDUX|REDUX)\.MAX", function))
                assert found >= stores, (architecture, symbol, found)
            seen.add((architecture, kernel_of(symbol)))
    architectures = {architecture for architecture, _ in seen}
    assert seen == {(a, kernel) for a in architectures for kernel in VECTOR_ACCESSES}


def test_library_says_why_no_gpu_can_be_used():
    """Imported and asked for a launch without a card: the kernel, the device and CUDA's error."""
    reason = backends.cuda_unavailable_reason(0)
    if reason is None:
        pytest.skip("a GPU is here and can be used")
    error = r"store_table of 0 bytes on cuda:0 failed: .* \(cudaError\w+\)"
    with pytest.raises(RuntimeError, match=error):
        _native.probe_cuda(0)
    assert "driver" in reason or "cuda:0" in reason or "CUDA" in reason
    assert backends.describe()["backend native, CUDA"] == f"inactive: {reason}"


ELEMENTS = 8  # of a chunk, to a thread
MOST_BEFORE_A_LOAD = 8  # instructions to an element


def test_a_chunk_is_found_in_few_instructions():
    """On the shortest way from the loop over chunks to its first vector load: within a tensor."""
    seen = 0
    for section in re.split(r"\n\s*code for ", cuobjdump("-sass"))[1:]:
        for function in section.split("Function : ")[1:]:
            symbol = function.split(maxsplit=1)[0]
            kernel = kernel_of(symbol)
            if kernel[0] == "update_kernel" and kernel[-1] in ("Float32Config", "BFloat16Config"):
                assert shortest_way_to_a_load(function) <= ELEMENTS * MOST_BEFORE_A_LOAD, symbol
                seen += 1
    assert seen


def shortest_way_to_a_load(function: str) -> int:
    """Instructions, every branch taken as it suits. The loop's head is the first that a branch after the
    last vector store leads back to."""
    found = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", function)
    index = {int(address, 16): i for i, (address, _) in enumerate(found)}
    code = [text for _, text in found]
    branches = [(i, re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)) for i, text in enumerate(code)]
    targets = {i: index[int(match[1], 16)] for i, match in branches if match}
    loads = {i for i, text in enumerate(code) if re.search(r"LDG\.E\.(?:\w+\.)*128", text)}
    last = max(i for i, text in enumerate(code) if re.search(r"STG\.E\.(?:\w+\.)*128", text))
    head = min(to for i, to in targets.items() if i > last and to < min(loads))
    steps, queue = {head: 0}, deque([head])
    while queue:
        at = queue.popleft()
        if at in loads:
            return steps[at]
        always = at in targets and not re.search(r"^@|BRA\S* !?U?P\d", code[at])
        following = [] if always or re.match("EXIT|RET", code[at]) else [at + 1]
        for after in (*following, *([targets[at]] if at in targets else [])):
            if after < len(code) and after not in steps:
                steps[after] = steps[at] + 1
                queue.append(after)
    raise AssertionError("no way leads to a vector load")
