"""Warnings that name the line of the user's program, however many frames of libraries lie in between."""

from __future__ import annotations

import sys
import warnings
from types import FrameType

LIBRARIES = ("friction_kernels", "torch")


def warn(message: str) -> None:
    """warnings.warn at the nearest caller that is none of these libraries.

    (warnings has skip_file_prefixes for that, since Python 3.12.)
    """
    frame, level = sys._getframe(1), 2
    # On a GPU autograd runs backward in a thread of its own: there is no such caller.
    while frame.f_back is not None and _package_of(frame) in LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _package_of(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]
