"""Which implementation serves a tensor, and why the others cannot."""

from __future__ import annotations

import sys
from functools import cache, lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import Parameter

from friction_kernels.shards import is_dtensor, local

Backend = Literal["auto", "native", "reference"]
BACKENDS = get_args(Backend)

NATIVE_DTYPES = frozenset(
    {
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex32,
        torch.complex64,
        torch.complex128,
    }
)


def import_failure(package: Path, error: ImportError) -> str:
    """Why the extension of the package in this folder cannot be imported, and the remedy."""
    built = {file.name for file in package.glob("_native.*") if file.suffix != ".pyi"}
    is_source = (package.parent / "csrc" / "bindings.cpp").is_file()
    if any(f"_native{suffix}" in built for suffix in EXTENSION_SUFFIXES):
        reason = str(error)
    elif built:
        reason = f"{', '.join(sorted(built))} was built for another Python"
    elif is_source:
        reason = f"{package.parent} is the source tree, and nothing is built in it"
    else:
        reason = "it was not built"
    remedy = "install with `pip install .`"
    if is_source:
        remedy = (
            "start Python elsewhere, where it finds the installed package, or install with "
            "`pip install --editable .`"
        )
    return f"friction_kernels._native cannot be imported ({reason}); {remedy}"


try:
    # `from friction_kernels import _native` would report a missing module as a circular import.
    import friction_kernels._native as _native

    native = _native
except ImportError as error:
    native = None  # type: ignore[assignment]
    _import_error = import_failure(Path(__file__).parent, error)


@lru_cache(maxsize=1)
def tensor_reader() -> _native.TensorReader:
    """Return the reader through which native plans access tensors, or raise ImportError with the reason."""
    if native is None:
        raise ImportError(_import_error)
    try:
        return native.TensorReader(torch.Tensor, Parameter)
    except RuntimeError as error:
        raise ImportError(
            f"torch {torch.__version__}: {error}; install torch 2.11 or newer"
        ) from error


@lru_cache(maxsize=1)
def native_unavailable_reason() -> str | None:
    """Return why the native backend is inactive, or None if it is active."""
    try:
        tensor_reader()
    except ImportError as error:
        return str(error)
    return None


@cache
def cuda_unavailable_reason(device: int = 0) -> str | None:
    """Return why the native backend cannot serve a CUDA device, or None if it can."""
    if native_unavailable_reason() is not None:
        return native_unavailable_reason()
    if torch.version.hip is not None:
        return "this torch is built for ROCm, and the kernels are CUDA's"
    return native.cuda_unavailable_reason(device) or None


def device_of(number: int) -> torch.device:
    """A device as native code numbers it: a CUDA device, or the CPU (-1)."""
    return torch.device("cpu") if number < 0 else torch.device("cuda", number)


def device_bytes(count: int, device: int) -> Tensor:
    """Allocate memory for a plan on a device with torch's allocator."""
    return torch.empty(count, dtype=torch.uint8, device=device_of(device))


def is_plain(kind: type) -> bool:
    """Whether a subclass of nn.Parameter overrides neither torch's data access nor its operators."""
    return issubclass(kind, Parameter) and all(
        getattr(kind, name) is getattr(Parameter, name)
        for name in ("__torch_function__", "__torch_dispatch__", "data", "grad")
    )


def native_fallback_reason(param: Tensor) -> str | None:
    """Return why the native backend cannot serve this parameter, or None if it can."""
    if native_unavailable_reason() is not None:
        return native_unavailable_reason()
    grad = param.grad
    for tensor, name in (
        (local(param), "it"),
        (grad if grad is None else local(grad), "its gradient"),
    ):
        if tensor is None or type(tensor) in (Tensor, Parameter):
            continue
        if not is_plain(type(tensor)):
            return f"{name} is a {type(tensor).__qualname__}, whose memory only torch knows"
        tensor_reader().allow(type(tensor))
    if param.device.type == "cuda":
        if reason := cuda_unavailable_reason(param.device.index):
            return f"it is on {param.device}, and {reason}"
    elif param.device.type != "cpu":
        return f"it is on {param.device}, and kernels are for the CPU and CUDA only"
    if param.dtype not in NATIVE_DTYPES:
        return f"its type {param.dtype} has no kernel"
    if is_dtensor(param):
        tensor_reader().unwrap(type(param))
        return None
    if param.is_conj() or param.is_neg():
        return "it is a conjugated or negated view"
    return None


def _describe_cuda() -> str:
    if reason := cuda_unavailable_reason():
        return f"inactive: {reason}"
    try:
        native.probe_cuda(0)
    except RuntimeError as error:
        return f"inactive: a kernel was tried, and {error}"
    return f"active ({torch.cuda.device_count()} devices; a kernel ran on cuda:0)"


def _describe_triton() -> str:
    if find_spec("triton") is None:
        return "plain torch: triton is not installed (`pip install 'friction-kernels[triton]'`)"
    if not torch.cuda.is_available():
        return "inactive: torch sees no CUDA device"
    return f"active (triton {version('triton')})"


def describe() -> dict[str, str]:
    """Describe the active backends of this machine, as printed by `python -m friction_kernels`."""
    from friction_kernels.version import __version__

    reason = native_unavailable_reason()
    lines = {
        "friction_kernels": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "backend reference": "active (equations in plain torch, any device)",
        "backend native, CPU": "active" if reason is None else f"inactive: {reason}",
        "backend native, CUDA": _describe_cuda(),
    }
    lines["G-Loss, CUDA"] = _describe_triton()
    if native is not None:
        lines["compiler"] = native.compiler
        lines["instruction set"] = (
            f"{native.instruction_set()} (can run: {', '.join(native.instruction_sets())})"
        )
        lines["threads"] = f"{torch.get_num_threads()}, {native.thread_source()}"
        lines["CUDA architectures"] = ", ".join(native.cuda_architectures) or "none"
    return lines
