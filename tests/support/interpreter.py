"""Whether Triton's interpreter runs on this machine."""

from importlib.metadata import version

import pytest


def require_interpreter() -> None:
    """Triton 3.6's interpreter asks numpy for scalars in a way that numpy 2.4 refuses; a GPU needs none."""
    triton, numpy = (tuple(map(int, version(p).split(".")[:2])) for p in ("triton", "numpy"))
    if triton < (3, 7) and numpy >= (2, 4):
        pytest.skip(
            f"the interpreter of triton {version('triton')} does not run with numpy {version('numpy')}: "
            "install numpy below 2.4 or a newer triton",
            allow_module_level=True,
        )
