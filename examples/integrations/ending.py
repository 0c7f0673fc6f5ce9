"""Ctrl-C ends these examples without a traceback, also while they load. What they saved by then stays."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import ctrl_c  # noqa: F401
