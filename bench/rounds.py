"""Timing in rounds: every contender steps once a round, A B C A B C.

A busy machine slows whatever runs at that moment, so contenders are compared by the ratio of their times
within a round, and the median of those ratios is reported. What steps in rounds has `name`, `slow`,
`new_gradients`, `repeats` (steps in a row), prepare() and step().
"""

import gc
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

import torch

SLOW_EVERY = 4  # rounds, of which a slow contender runs in one
FEWEST_ROUNDS, FEWEST_LONG_ROUNDS = 3, 2
LONG_ROUND = 15  # seconds
SAMPLE_SECONDS, MOST_STEPS = 0.02, 20  # of steps in a row
HOST_SAMPLES = 15
LONG_STEP = 1.0  # seconds; on a card, whose minutes are few, measured once
PAUSE = 0.04  # seconds; threads of the one before may spin, OpenBLAS's under scikit-learn for 2^26 cycles
LEAD_CYCLES = 2_000_000  # about 1 ms that the card spins before a sample


@dataclass
class Times:
    """Seconds a step of each contender by round, and until step() returned."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return median(self.seconds[name].values())

    def quartiles(self, name: str) -> list[float]:
        values = list(self.seconds[name].values())
        low, _, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
        return [low, high]

    def pairs(self, name: str, other: str) -> list[tuple[float, float]]:
        """Of the rounds that both ran in."""
        mine, theirs = self.seconds.get(name, {}), self.seconds.get(other, {})
        return [(mine[i], theirs[i]) for i in sorted(mine.keys() & theirs.keys())]

    def ratio(self, name: str, against: str) -> float | None:
        """The median of their times' ratio."""
        pairs = self.pairs(name, against)
        return median(mine / theirs for mine, theirs in pairs) if pairs else None

    def row(self, name: str, against: Iterable[str | None]) -> dict[str, Any]:
        """What a results file says of a contender's times."""
        ratios = {other: self.ratio(name, other) for other in against if other and other != name}
        found = {
            "seconds": self.median(name),
            "quartiles": self.quartiles(name),
            "rounds": len(self.seconds[name]),
            "ratios": {other: ratio for other, ratio in ratios.items() if ratio is not None},
        }
        return found | ({"host_seconds": self.host[name]} if name in self.host else {})


def wait_awake(seconds: float) -> None:
    """A sleeping processor would wake up slow."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Clock:
    """Time of steps on the device, and of the host's share of them.

    lead: on a card, let it spin first, so that the host is ahead of it as it is behind a backward pass, and
    its launch of a short step does not count. Who needs more than that millisecond on the host is measured
    by what the host needs, less the millisecond. Without, time passes from call to result.
    """

    def __init__(self, device: str, lead: bool = True) -> None:
        self.cuda, self.lead = device == "cuda", lead

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def steps(self, entry: Any) -> float:
        """Seconds a step, of some in a row."""
        repeats = 1 if entry.new_gradients else entry.repeats
        if not self.cuda:
            wait_awake(PAUSE)
        entry.prepare()
        if repeats > 1:  # none pays for the caches that the one before it left
            entry.step()
        self.synchronize()
        if self.cuda and self.lead:
            return self._by_events(entry, repeats)
        start = time.perf_counter()
        for _ in range(repeats):
            entry.step()
        self.synchronize()
        return (time.perf_counter() - start) / repeats

    def _by_events(self, entry: Any, repeats: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(LEAD_CYCLES)
        begin.record()
        for _ in range(repeats):
            entry.step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def host(self, entry: Any) -> float:
        """Seconds until step() returns, with nothing queued before it."""
        entry.prepare()
        self.synchronize()
        start = time.perf_counter()
        entry.step()
        return time.perf_counter() - start


def set_repeats(entries: Iterable[Any], clock: Clock) -> None:
    """Steps in a row are as many as fill a sample, within limits."""
    for entry in entries:
        if not entry.slow:
            shortest = min(clock.steps(entry) for _ in range(3))
            entry.repeats = max(1, min(MOST_STEPS, int(SAMPLE_SECONDS / shortest)))


def measure(entries: list[Any], clock: Clock, rounds: int, seconds: float) -> Times:
    """Times of as many rounds, or of the whole rounds that begin within these seconds, and of a few at least.

    On a processor the host's time is the step's.
    """
    times = Times({entry.name: {} for entry in entries})

    def is_long(entry: Any) -> bool:
        return clock.cuda and times.seconds[entry.name][0] > LONG_STEP

    begin = time.monotonic()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            passed = time.monotonic() - begin
            fewest = FEWEST_LONG_ROUNDS if i and passed / i > LONG_ROUND else FEWEST_ROUNDS
            if i >= fewest and passed > seconds:
                break
            for entry in entries:
                again = i == 0 or not is_long(entry)
                if again and (i % SLOW_EVERY == 0 or not entry.slow):
                    times.seconds[entry.name][i] = clock.steps(entry)
        if clock.cuda:
            for entry in (entry for entry in entries if not is_long(entry)):
                samples = 3 if entry.slow else HOST_SAMPLES
                times.host[entry.name] = median(clock.host(entry) for _ in range(samples))
    finally:
        gc.enable()
    return times
