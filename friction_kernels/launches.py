"""Count launches, to verify that a step is one launch, and the loss of a batch three."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping

from friction_kernels.backends import native


def _counts() -> dict[str, int]:
    counts = native.launch_counts() if native is not None else {}
    if "friction_triton.launches" in sys.modules:  # nothing launches before this import
        counts.update(sys.modules["friction_triton.launches"].counts)
    return counts


class LaunchCounts(Mapping[str, int]):
    """The result of `count_launches`: a mapping from kernel names to launches since the count began."""

    def __init__(self) -> None:
        self._before = _counts()
        self._after: dict[str, int] | None = None

    def _since(self) -> dict[str, int]:
        now = _counts() if self._after is None else self._after
        counts = {name: count - self._before.get(name, 0) for name, count in now.items()}
        return {name: count for name, count in counts.items() if count}

    @property
    def total(self) -> int:
        """The sum over all kernels."""
        return sum(self._since().values())

    def __getitem__(self, kernel: str) -> int:
        return self._since()[kernel]

    def __iter__(self) -> Iterator[str]:
        return iter(self._since())

    def __len__(self) -> int:
        return len(self._since())

    def __repr__(self) -> str:
        return f"LaunchCounts({self._since()})"


class count_launches:  # noqa: N801 - reads as a function, like torch.no_grad
    """Count launches of this library's kernels (on a CPU: parallel regions) within a `with` block.

    >>> with count_launches() as launches:
    ...     opt.step()
    >>> launches.total, dict(launches)
    (1, {'friction_adam': 1})

    Counts launches of the whole process: any thread, optimizer or loss. "store_table" copies a changed
    table that is too large for launch arguments to a GPU, 32,736 bytes at a time: 15 launches for 10,000
    tensors of friction Adam. Plain torch operations are not counted.
    """

    def __enter__(self) -> LaunchCounts:
        self._counts = LaunchCounts()
        return self._counts

    def __exit__(self, *exc_info: object) -> None:
        self._counts._after = _counts()
