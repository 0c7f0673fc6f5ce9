"""Ctrl-C in the examples: no traceback, and what was finished is kept.

Scripts import this before what takes seconds to load.
"""

import sys
from types import TracebackType

STOPPED = 130  # a shell's exit status for Ctrl-C


class Interruption:
    """A block that Ctrl-C ends, so that what was finished within it can still be shown."""

    happened = False

    def __enter__(self) -> "Interruption":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.happened = kind is not None and issubclass(kind, KeyboardInterrupt)
        if self.happened:
            print("stopped: what was finished is kept", file=sys.stderr)
        return self.happened

    def end(self) -> None:
        """Exit as a program that was stopped, if it was."""
        if self.happened:
            sys.exit(STOPPED)


def _without_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _without_traceback
