"""Measures one scenario of optimizers' steps.

All contenders share one set of parameters, gradients and moments, so that a machine holds any model once,
whatever the contenders: no time depends on the values, which stay finite, and no list fits a cache.
"""

import gc
import time
from math import prod
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.contenders import COPY, IN_PLACE, Contender, Copy
from bench.goals import compared_with
from bench.memory import calls_of, peak, sizes_of, why_too_large
from bench.peers import import_failure
from bench.records import TIME_IS_UP, first_line
from bench.rounds import Clock, Times, measure, set_repeats
from bench.scenarios import StepScenario
from bench.shapes import Shape, elements, miniature, shapes_of

WARMUP_STEPS = 3
# Tensors in float32, as large as the largest, that a step in plain torch has at once.
PLAIN_TEMPORARIES = 10
ALIKE = {"momentum_buffer": "exp_avg"}  # states that may share memory with others of the type
Tensors = tuple[list[Tensor], list[Tensor]]


def tensors_of(shapes: list[Shape], device: str, dtype: torch.dtype) -> Tensors:
    """Parameter values and gradients of a plausible size, random: zeros would be faster."""
    torch.manual_seed(0)

    def random(scale: float) -> list[Tensor]:
        return [torch.randn(s, device=device, dtype=dtype).mul_(scale) for s in shapes]

    return random(0.02), random(0.01)


class Pool:
    """The moments that all contenders share: the first optimizer's that has them."""

    def __init__(self) -> None:
        self.lists: dict[tuple[str, torch.dtype], list[Tensor]] = {}

    def has(self, key: str, state: object) -> bool:
        """No subclasses: torchao's are codes that say they were float32."""
        return type(state) is Tensor and (ALIKE.get(key, key), state.dtype) in self.lists

    def give(self, opt: Any, params: list[Tensor]) -> None:
        states = getattr(opt, "state", {})
        keys = [key for key in states[params[0]] if key != "step"] if states else []
        for key in keys:
            own = [states[param].get(key) for param in params]
            pairs = zip(own, params, strict=True)
            if all(type(tensor) is Tensor and tensor.shape == p.shape for tensor, p in pairs):
                shared = self.lists.setdefault((ALIKE.get(key, key), own[0].dtype), own)
                for param, tensor in zip(params, shared, strict=True):
                    states[param][key] = tensor
        if hasattr(opt, "flatten"):
            opt.flatten()


class Entry:
    """A contender ready to step."""

    def __init__(self, contender: Contender, tensors: Tensors, pool: Pool) -> None:
        values, self.grads = tensors
        self.contender, self.name, self.slow = contender, contender.name, contender.slow
        self.new_gradients, self.repeats = contender.new_gradients, 1
        self.params = [value.detach().requires_grad_() for value in values]
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        self.opt = contender.build(self.params)
        self.step = self.opt.step
        self.prepare()
        self.step()
        pool.give(self.opt, self.params)
        for _ in range(1 if contender.slow else WARMUP_STEPS):
            self.prepare()
            self.step()
        if contender.graphed:
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.opt.step()
            self.step = self.graph.replay
            self.step()

    def prepare(self) -> None:
        if self.new_gradients:
            # Cloned while the last ones still live, so that their addresses change too.
            for param, grad in zip(self.params, self.grads, strict=True):
                param.grad = grad.clone()
            # A state that a step replaces is freed here, where other steps' gradients are.
            if key := self.contender.unwritten:
                self.replaced = [self.opt.state[p][key] for p in self.params if self.opt.state]

    def moved(self, device: str) -> float:
        """Bytes of an ideal step: what is kept is read and written once, and some lists are read besides."""
        if isinstance(self.opt, Copy):
            return self.opt.moved
        sizes = {name: size for name, size in sizes_of(self.opt).items() if name != "step"}
        parameter = sizes["parameter"]
        lists = {"p": parameter, "g": parameter, "s": sum(sizes.values()) - parameter}
        read = sum(lists[x] for x in self.contender.lists(device))
        return 2 * sum(sizes.values()) + read - sizes.get(self.contender.unwritten, 0)


class Field:
    """Everybody who can step here, and why the others cannot."""

    def __init__(self, scenario: StepScenario, device: str, deadline: float) -> None:
        self.scenario, self.device, self.deadline = scenario, device, deadline
        self.shapes = shapes_of(scenario.model)
        types = dict.fromkeys(c.dtype or scenario.dtype for c in scenario.contenders)
        self.tensors = {dtype: tensors_of(self.shapes, device, dtype) for dtype in types}
        self.small = {dtype: tensors_of(miniature(), device, dtype) for dtype in types}
        self.pool, self.entries = Pool(), []
        self.missing: dict[str, str] = {}
        self.peaks: dict[str, int] = {}

    def enter(self, contender: Contender) -> None:
        late = time.monotonic() > self.deadline
        reason = TIME_IS_UP if late else import_failure(contender.needs)
        if reason is None:
            try:
                reason = self._enter(contender)
            except Exception as error:  # a peer may not serve this machine, this type or this size
                reason = first_line(error)
        if reason is not None:
            self.missing[contender.name] = reason
        gc.collect()
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _enter(self, contender: Contender) -> str | None:
        dtype = contender.dtype or self.scenario.dtype
        if not contender.compiles:  # loads libraries, and says early what cannot be
            small = Entry(contender, self.small[dtype], Pool())
            if reason := self.why_too_large(small, dtype):
                return reason
        with peak(self.device) as peaked:
            self.entries.append(Entry(contender, self.tensors[dtype], self.pool))
        if peaked.bytes is not None and (self.device == "cuda" or not contender.compiles):
            self.peaks[contender.name] = peaked.bytes
        return None

    def why_too_large(self, small: Entry, dtype: torch.dtype) -> str | None:
        """By what it keeps of small tensors, except what it will share, and by what a step makes."""
        if isinstance(small.opt, Copy):
            return None
        states = small.opt.state[small.params[0]]
        shared = {"parameter"} | {key for key, state in states.items() if self.pool.has(key, state)}
        kept = sum(size for key, size in sizes_of(small.opt).items() if key not in shared)
        own = kept / elements(miniature()) + small.contender.at_once * dtype.itemsize
        made = 4 * PLAIN_TEMPORARIES * max(map(prod, self.shapes)) if small.slow else 0
        return why_too_large(own * elements(self.shapes) + made, self.device)

    def row(self, entry: Entry, times: Times) -> dict[str, Any]:
        contender, name = entry.contender, entry.name
        row = {key: getattr(contender, key) for key in ("ours", "plain", "baseline")}
        row = {key: value for key, value in row.items() if value}
        against = {contender.plain, contender.baseline, *compared_with(name)}
        row |= times.row(name, against) | {"steps_in_a_row": entry.repeats}
        if not isinstance(entry.opt, Copy):
            sizes, parameters = sizes_of(entry.opt), elements(self.shapes)
            row["memory"] = {key: size / parameters for key, size in sizes.items()}
            row["memory"]["in all"] = sum(sizes.values()) / parameters
            if name in self.peaks:  # with its own parameters and gradients
                row["peak_bytes"] = self.peaks[name] + 2 * sizes["parameter"]
        if contender.alone in times.seconds:
            added = median(mine - alone for mine, alone in times.pairs(name, contender.alone))
            row |= {"alone": contender.alone, "added_seconds": added}
        entry.prepare()
        if not contender.compiles:  # torch does not dispatch what was compiled
            row |= calls_of(entry.step, contender.ours)
        return row | self.bandwidth(entry, times)

    def bandwidth(self, entry: Entry, times: Times) -> dict[str, float]:
        if not self.scenario.bound_by_memory:
            return {}
        moved = entry.moved(self.device)
        found = {"bytes": moved, "gb_s": moved / times.median(entry.name) / 1e9}
        measures = {other.name: other.opt for other in self.entries if isinstance(other.opt, Copy)}
        if COPY in measures and (ratio := times.ratio(entry.name, COPY)):
            found["share_of_copy"] = moved / measures[COPY].moved / ratio
        if IN_PLACE in measures:  # what memory can do is the faster of the two, at its best
            best = max(
                opt.moved / min(times.seconds[name].values()) for name, opt in measures.items()
            )
            found["share_of_limit"] = 1e9 * found["gb_s"] / best
        return found


def measure_steps(
    scenario: StepScenario, device: str, rounds: int | None, deadline: float
) -> dict[str, Any]:
    """A scenario's part of the results. deadline: of time.monotonic(), after which nothing more begins."""
    shapes = shapes_of(scenario.model)
    found = {
        "model": scenario.model,
        "dtype": str(scenario.dtype).removeprefix("torch."),
        "tensors": len(shapes),
        "parameters": elements(shapes),
    }
    types = {c.dtype or scenario.dtype for c in scenario.contenders}
    # Parameters, gradients and friction Adam's states: two moments in float32, and the last gradient.
    needed = elements(shapes) * (8 + 3 * sum(dtype.itemsize for dtype in types))
    if reason := why_too_large(needed, device):
        return {**found, "skipped": reason}
    field = Field(scenario, device, deadline)
    for contender in scenario.contenders:
        field.enter(contender)
    clock = Clock(device)
    set_repeats(field.entries, clock)
    seconds = max(1.0, min(scenario.seconds, deadline - time.monotonic()))
    times = measure(field.entries, clock, rounds or scenario.rounds, seconds)
    rows = {entry.name: field.row(entry, times) for entry in field.entries}
    return {**found, "rows": rows, "missing": field.missing}
