"""Warnings that point at the user's line, however many library frames are in between."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

LIBRARIES = ("friction_kernels", "torch")


def warn(message: str) -> None:
    """Like warnings.warn, attributed to the nearest caller outside these libraries.

    (From Python 3.12 on, skip_file_prefixes of warnings.warn would do this.)
    """
    frame, level = sys._getframe(1), 2
    # On a GPU autograd runs backward in its own thread, which has no such caller.
    while frame.f_back is not None and _package_of(frame) in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _package_of(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]
