"""The CUDA launches on the host: tests/native/host_launch.cpp, compiled and called through ctypes."""

import ctypes
import fcntl
import hashlib
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "native" / "host_launch.cpp"
STATES = ROOT / "friction_kernels" / "optim" / "states.def"
COMPILERS = {
    "g++": ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-fPIC"],
    "nvcc": [
        *("nvcc", "-x", "cu", "-std=c++17", "-O1", "-arch=sm_90", "--expt-relaxed-constexpr"),
        *("-Xcompiler", "-fPIC,-ffp-contract=off"),
    ],
}
MAX_LISTS = 6
DTYPE_CODES = {
    torch.float16: 0,
    torch.bfloat16: 1,
    torch.float32: 2,
    torch.float64: 3,
    torch.uint8: 6,  # quantized
}
DTYPE_CONFIGS = {"float32": 0, "bfloat16": 1, "mixed": 2, "float64": 3, "quantized": 4}


class HostTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p * MAX_LISTS),
        ("sizes", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("step", ctypes.c_void_p),
        ("numel", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("dims", ctypes.c_int64),
        ("dtype", ctypes.c_uint8 * MAX_LISTS),
        ("group_step", ctypes.c_int32),
    ]


def built(compiler: str) -> Path:
    """The library of these sources, which takes a minute: built once for all processes and runs."""
    folder = ROOT / "build" / "host_launch"
    folder.mkdir(parents=True, exist_ok=True)
    files = [*sorted((ROOT / "csrc").rglob("*.h")), *sorted(SOURCE.parent.glob("*"))]
    content = hashlib.sha1(b"".join(path.read_bytes() for path in [*files, STATES])).hexdigest()
    library = folder / f"{compiler.strip('+')}-{content[:12]}.so"
    with open(folder / f"{compiler.strip('+')}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            making = library.with_suffix(".part")
            command = [*COMPILERS[compiler], "-shared", str(SOURCE), "-o", str(making)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            making.rename(library)
    return library


def compile_with(compiler: str) -> ctypes.CDLL:
    native = ctypes.CDLL(str(built(compiler)))
    for name in ("chunk_size", "capacity_of_friction_adam", "capacity_of_sgd"):
        getattr(native, name).restype = ctypes.c_int64
    native.launch_bytes_of_friction_adam.restype = ctypes.c_int64
    native.team_sum.restype = native.squared_norm.restype = ctypes.c_double
    return native


def is_here(compiler: str) -> bool:
    return shutil.which(compiler) is not None


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def describe(tensors: list[list[Tensor]], *, steps=None, group_steps=None, matrices: bool = False):
    """A HostTensor for the lists of each tensor; also what must stay alive while it is used."""
    given, alive = (HostTensor * len(tensors))(), []
    for index, (host, lists) in enumerate(zip(given, tensors, strict=True)):
        for i, tensor in enumerate(lists):
            host.data[i] = tensor.data_ptr()
            host.dtype[i] = DTYPE_CODES[tensor.dtype]
        first = lists[0]
        host.numel = first.numel()
        host.rows = first.shape[0] if matrices and first.dim() > 1 and first.numel() else 0
        host.group_step = 0 if group_steps is None else group_steps[index]
        if steps is not None:
            host.step = steps[index].data_ptr()
        if not all(tensor.is_contiguous() for tensor in lists):
            sizes = np.array(first.shape, dtype=np.int64)
            dense = torch.empty(
                first.shape, device="meta"
            ).stride()  # of codes, which are quantized
            strides = np.array(
                [dense if tensor.dtype == torch.uint8 else tensor.stride() for tensor in lists],
                dtype=np.int64,
            )
            host.sizes, host.strides, host.dims = (
                sizes.ctypes.data,
                strides.ctypes.data,
                first.dim(),
            )
            alive += [sizes, strides]
    return given, alive


def settings_array(opt) -> np.ndarray:
    """Each group's settings in the order of the rule."""
    names = opt._plan.native.settings
    scaled = {"grad_factor": 1.0, "max_norm": math.inf, "seed": 0}
    rows = [
        [float((opt.rule.settings(group) | scaled)[name]) for name in names]
        for group in opt.param_groups
    ]
    return np.array(rows, dtype=np.float64)
