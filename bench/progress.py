"""What a run shows while it measures: a bar and the time left where rich is installed, lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Lines:
    """One line a scenario, with the time left; also what a log is given."""

    def __init__(self, total: float) -> None:
        self.total, self.done, self.begin = total, 0.0, time.monotonic()

    def scenario(self, name: str, seconds: float) -> None:
        self.done_before, self.seconds = self.done, seconds
        print(f"{name} ({self.left()})", flush=True)

    def advance(self, share: float) -> None:
        self.done = self.done_before + share * self.seconds

    def say(self, text: str) -> None:
        print(text, flush=True)

    def left(self) -> str:
        if not self.done:
            return f"about {self.total / 60:.0f} min left"
        seconds = (time.monotonic() - self.begin) / self.done * (self.total - self.done)
        return f"about {seconds / 60:.0f} min left"


class Bar(Lines):
    def __init__(self, total: float, bar) -> None:
        super().__init__(total)
        self.bar = bar
        self.task = bar.add_task("", total=total)

    def scenario(self, name: str, seconds: float) -> None:
        self.done_before, self.seconds = self.done, seconds
        self.bar.update(self.task, description=name)

    def advance(self, share: float) -> None:
        super().advance(share)
        self.bar.update(self.task, completed=self.done)

    def say(self, text: str) -> None:
        self.bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress(total_seconds: float) -> Iterator[Lines]:
    """total_seconds: that all scenarios are expected to take; how they fare corrects the time left."""
    try:
        from rich import progress as rich_progress
    except ImportError:
        rich_progress = None
    if rich_progress is None or not sys.stderr.isatty():
        yield Lines(total_seconds)
        return
    from rich.console import Console

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        rich_progress.TimeElapsedColumn(),
        rich_progress.TextColumn("left"),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=Console(stderr=True)) as bar:
        yield Bar(total_seconds, bar)
