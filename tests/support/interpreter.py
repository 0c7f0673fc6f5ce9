"""Where Triton's kernels run in tests: on a GPU, or interpreted on the CPU."""

import os
import sys
from importlib.metadata import version

import pytest
import torch


def device_of_triton() -> str:
    """The device, before Triton is first imported; skips the module where there is none."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        already = "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"
        assert not already, "Triton was imported for a GPU: set TRITON_INTERPRET=1 in conftest.py"
        os.environ["TRITON_INTERPRET"] = "1"
    pytest.importorskip("triton")
    if device == "cpu":
        require_interpreter()
    return device


def require_interpreter() -> None:
    """Triton 3.6's interpreter asks numpy for scalars in a way that numpy 2.4 refuses; a GPU needs none."""
    triton, numpy = (tuple(map(int, version(p).split(".")[:2])) for p in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        pytest.skip(
            f"the interpreter of triton {version('triton')} does not run with numpy {version('numpy')}: "
            "install numpy below 2.4 or a newer triton",
            allow_module_level=True,
        )
