"""Measures one scenario of optimizers' steps."""

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import prod
from statistics import median
from typing import Any

import torch

from bench import counting
from bench.contenders import COPY, COUNTED, OPTIMIZERS, Contender, Copy
from bench.entries import Entry, Pool, difference, tensors_of
from bench.memory import memory_of, peak, why_too_large
from bench.peers import why_not_importable
from bench.records import TIME_IS_UP, first_line
from bench.rounds import Clock, Times, measure, set_repeats
from bench.scenarios import StepScenario
from bench.shapes import MODELS, miniature

SAMPLE_SECONDS = 0.02
PEER_SECONDS = {"cpu": 120, "cuda": 15}  # until its first step is done; some compile or tune
PLAIN_TEMPORARIES = (
    10  # tensors in float32 that a step in plain torch has at once, as large as the largest
)
COUNTED_ON = (64, 64)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    late = TimeoutError(f"its first step took more than {seconds:.0f} s")
    rang = False

    def stop(*_) -> None:
        nonlocal rang
        rang = True
        raise late

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception as error:
        if rang:  # what was interrupted may say something else of it
            raise late from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Field:
    """Everybody who can step here, and why the others cannot."""

    def __init__(self, scenario: StepScenario, device: str, deadline: float) -> None:
        self.scenario, self.device, self.deadline = scenario, device, deadline
        shapes = MODELS[scenario.model].shapes()
        types = dict.fromkeys(c.dtype or scenario.dtype for c in scenario.contenders)
        self.tensors = {dtype: tensors_of(shapes, device, dtype) for dtype in types}
        self.small = {dtype: tensors_of(miniature(), device, dtype) for dtype in types}
        self.pool, self.entries = Pool(), []
        self.missing: dict[str, str] = {}
        self.peaks: dict[str, int] = {}
        self.differences: dict[str, float] = {}

    def dtype(self, contender: Contender) -> torch.dtype:
        return contender.dtype or self.scenario.dtype

    def enter(self, contender: Contender) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.missing[contender.name] = TIME_IS_UP
        elif reason := why_not_importable(contender.needs):
            self.missing[contender.name] = reason
        else:
            limit = min(PEER_SECONDS[self.device], left)
            try:
                with time_limit(limit) if contender.needs else nullcontext():
                    self._enter(contender)
            except Exception as error:  # a peer may not serve this machine, this type or this size
                self.missing[contender.name] = first_line(error)
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _enter(self, contender: Contender) -> None:
        dtype = self.dtype(contender)
        if not contender.compiles:  # loads libraries, and says early what cannot be
            small = Entry(contender, self.small[dtype], Pool())
            if reason := self.why_too_large(contender, small):
                self.missing[contender.name] = reason
                return
        if equal := self.named(contender.equals):
            apart = difference(contender, equal, self.device, dtype)
            self.differences[contender.name] = apart
        with peak(self.device) as peaked:
            entry = Entry(contender, self.tensors[dtype], self.pool)
        self.entries.append(entry)
        if peaked.bytes is not None and (self.device == "cuda" or not contender.compiles):
            self.peaks[contender.name] = peaked.bytes

    def why_too_large(self, contender: Contender, small: Entry) -> str | None:
        """By what it keeps of small tensors, except what it will share, and by what a step makes."""
        if isinstance(small.opt, Copy):
            return None
        shapes = MODELS[self.scenario.model].shapes()
        largest, parameters = max(map(prod, shapes)), sum(map(prod, shapes))
        kept = memory_of(small.opt).per_parameter
        states = small.opt.state[small.params[0]]
        shared = {key for key, tensor in states.items() if self.pool.has(key, tensor)}
        own = sum(size for key, size in kept.items() if key != "parameter" and key not in shared)
        own += contender.at_once * self.dtype(contender).itemsize
        made = 4 * PLAIN_TEMPORARIES * largest if contender.slow else 0
        return why_too_large(own * parameters + made, self.device)

    def named(self, name: str | None) -> Contender | None:
        everyone = (*self.scenario.contenders, *OPTIMIZERS, *COUNTED)
        return next((c for c in everyone if c.name == name), None)

    def operations(self, contender: Contender) -> float | None:
        """Arithmetic operations a parameter: those of the same step in plain torch."""
        try:
            plain = self.named(contender.plain) or contender
            return counting.arithmetic_per_parameter(plain.build, COUNTED_ON)
        except counting.UncountableError:
            return None

    def row(self, entry: Entry, times: Times) -> dict[str, Any]:
        contender, name = entry.contender, entry.name
        fields = ("ours", "optimizer", "state", "plain", "baseline")
        row = {key: getattr(contender, key) for key in fields if getattr(contender, key)}
        row |= times.row(name) | {"steps_in_a_row": entry.repeats}
        row["ratio"] = row["ratios"].get(contender.baseline)
        parameters = MODELS[self.scenario.model].parameters
        if not isinstance(entry.opt, Copy):
            report = memory_of(entry.opt)
            row["memory"] = {**report.per_parameter, "in all": report.bytes_per_parameter}
            if (each := self.operations(contender)) is not None:
                row["flops"] = each * parameters
            if name in self.peaks:  # with its own parameters and gradients
                row["peak_bytes"] = self.peaks[name] + 2 * report.sizes["parameter"]
        if name in self.differences:
            row["equals"], row["difference"] = contender.equals, self.differences[name]
        if contender.alone in times.seconds:
            pairs = times.pairs(name, contender.alone)
            added = median(mine - alone for mine, alone in pairs)
            row |= {"alone": contender.alone, "added_seconds": added}
        return row | self.bandwidth(entry, times) | self.counts(entry)

    def bandwidth(self, entry: Entry, times: Times) -> dict[str, float]:
        if not self.scenario.bound_by_memory:
            return {}
        moved = entry.moved(self.device)
        found = {"bytes": moved, "gb_s": moved / times.median(entry.name) / 1e9}
        copy = next((e.opt for e in self.entries if isinstance(e.opt, Copy)), None)
        if copy is not None and (
            ratio := times.ratio(entry.name, COPY) or float(entry.opt is copy)
        ):
            found["share_of_copy"] = moved / copy.moved / ratio
        return found

    def counts(self, entry: Entry) -> dict[str, Any]:
        entry.prepare()
        if entry.contender.ours:  # of a graph's replay nothing is counted
            found = {"launches": counting.launches_of(entry.step)}
        elif entry.contender.compiles:  # the profiler does not see what was compiled
            found = {}
        else:
            found = {"operators": counting.operators_of(entry.step)}
        if self.device == "cuda" and not entry.slow:
            try:
                found["kernels"] = counting.kernels_of(entry.step)
            except Exception as error:  # a machine may lack CUPTI
                found["profiler"] = first_line(error)
        return found


def measure_steps(
    scenario: StepScenario,
    device: str,
    rounds: int | None,
    deadline: float,
    advance: Callable[[float], None],
) -> dict[str, Any]:
    """A scenario's part of the results. deadline: of time.monotonic(), after which nothing more begins."""
    model = MODELS[scenario.model]
    found = {
        "model": scenario.model,
        "dtype": str(scenario.dtype).removeprefix("torch."),
        "tensors": model.tensors,
        "parameters": model.parameters,
    }
    types = {c.dtype or scenario.dtype for c in scenario.contenders}
    # Parameters, gradients and friction Adam's states: two moments in float32, and the last gradient.
    needed = model.parameters * (8 + 3 * sum(dtype.itemsize for dtype in types))
    if reason := why_too_large(needed, device):
        return {**found, "skipped": reason}
    field = Field(scenario, device, deadline)
    for i, contender in enumerate(scenario.contenders):
        field.enter(contender)
        advance(0.3 * (i + 1) / len(scenario.contenders))
    clock = Clock(device)
    set_repeats(field.entries, clock, SAMPLE_SECONDS)
    seconds = max(1.0, min(scenario.seconds, deadline - time.monotonic()))
    times = measure(
        field.entries,
        clock,
        rounds or scenario.rounds,
        seconds,
        lambda share: advance(0.3 + 0.6 * share),
    )
    found["rows"] = {entry.name: field.row(entry, times) for entry in field.entries}
    found["missing"] = field.missing
    return found
