"""Functions that torch.compile leaves alone: how long the solver runs depends on the values."""

from __future__ import annotations

import functools
import sys

import torch


def uncompiled(function):
    """torch.compiler.disable, without its import of the compiler, which takes seconds, until it is there."""
    disabled = []

    @functools.wraps(function)
    def call(*args, **kwargs):
        if "torch._dynamo" not in sys.modules:  # nothing can be compiling
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call
