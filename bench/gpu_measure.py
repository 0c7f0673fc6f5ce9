"""Measures one model's steps on one device and writes them as JSON; ``bench.gpu_report`` runs it.

Contenders step in rounds, A B C A B C, and are compared within a round. All share one set of
parameters, gradients and moments, so that a card holds any model once, whatever the contenders:
no time depends on the values, which stay finite, and no list fits a cache.
"""

import argparse
import gc
import importlib.util
import json
import time
from collections import Counter
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from bench.gpu_contenders import COPY, CompiledEquations, Contender, Copy, contenders_for
from bench.gpu_shapes import GPU_MODELS, miniature
from bench.machine import describe
from friction_kernels import count_launches

SLOW_EVERY = 4
WARMUP_STEPS = 3
SAMPLE_SECONDS = 4e-3  # steps in a row are as many as fill this, within limits
MOST_STEPS = 20
HOST_SAMPLES = 15
LEAD_CYCLES = 2_000_000  # about 1 ms that the card spins before a sample
ALIKE = {"momentum_buffer": "exp_avg"}  # states that may share memory with others of the type


class Pool:
    """The moments that all contenders share: the first optimizer's that has them."""

    def __init__(self) -> None:
        self.lists: dict[tuple[str, torch.dtype], list[Tensor]] = {}

    def give(self, opt: object, params: list[Tensor]) -> None:
        states = getattr(opt, "state", {})
        keys = [key for key in states[params[0]] if key != "step"] if states else []
        for key in keys:
            own = [states[param].get(key) for param in params]
            pairs = zip(own, params, strict=True)
            # No subclasses: torchao's are codes that say they were float32.
            if all(type(tensor) is Tensor and tensor.shape == p.shape for tensor, p in pairs):
                shared = self.lists.setdefault((ALIKE.get(key, key), own[0].dtype), own)
                for param, tensor in zip(params, shared, strict=True):
                    states[param][key] = tensor


class Entry:
    """A contender ready to step."""

    def __init__(
        self, contender: Contender, values: list[Tensor], grads: list[Tensor], pool: Pool
    ) -> None:
        self.contender, self.grads = contender, grads
        self.params = [value.detach().requires_grad_() for value in values]
        for param, grad in zip(self.params, grads, strict=True):
            param.grad = grad
        self.opt = contender.build(self.params)
        self.step = self.opt.step
        self.step()
        pool.give(self.opt, self.params)
        if isinstance(self.opt, CompiledEquations):
            self.opt.flatten()
        for _ in range(1 if contender.slow else WARMUP_STEPS):
            self.step()
        if contender.graphed:
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.opt.step()
            self.step = self.graph.replay
            self.step()
        self.repeats = 1

    def moved(self, parameters: int, dtype: torch.dtype) -> int:
        if isinstance(self.opt, Copy):
            return self.opt.moved
        return self.contender.moved(dtype) * parameters

    def prepare(self) -> None:
        if self.contender.new_gradients:
            # Cloned while the last ones still live, so that their addresses change too.
            for param, grad in zip(self.params, self.grads, strict=True):
                param.grad = grad.clone()


class Clock:
    """Time of steps on the device, and of the host's share of them."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def steps(self, entry: Entry) -> float:
        """Seconds a step, of some in a row.

        The card spins first, so that the host is ahead of it as it is behind a backward pass, and
        its launch of a short step does not count. Who needs more than that millisecond on the host
        is measured by what the host needs, less the millisecond.
        """
        repeats = 1 if entry.contender.new_gradients else entry.repeats
        entry.prepare()
        self.synchronize()
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(repeats):
                entry.step()
            return (time.perf_counter() - start) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(LEAD_CYCLES)
        begin.record()
        for _ in range(repeats):
            entry.step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def host(self, entry: Entry) -> float:
        """Seconds until step() returns, with nothing queued before it."""
        entry.prepare()
        self.synchronize()
        start = time.perf_counter()
        entry.step()
        return time.perf_counter() - start


def kernels_of(entry: Entry) -> dict[str, int]:
    """What the profiler saw on the device during one step; copies and memsets too."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    entry.prepare()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        entry.step()
        torch.cuda.synchronize()
    on_device = (e.name for e in profiler.events() if e.device_type == DeviceType.CUDA)
    # torch annotates optimizers' steps on the device's side, too.
    return dict(Counter(name.split("<")[0][:60] for name in on_device if "step#" not in name))


def spread(seconds: list[float]) -> list[float]:
    if len(seconds) < 2:
        return [seconds[0], seconds[0]]
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return [low, high]


def tensors_of(shapes, device: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Parameter values and gradients of a plausible size, random: zeros would be faster."""
    torch.manual_seed(0)

    def random(scale: float) -> list[Tensor]:
        return [torch.randn(s, device=device, dtype=dtype).mul_(scale) for s in shapes]

    return random(0.02), random(0.01)


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:200]


def enter(contenders, values, grads, pool=None) -> tuple[list[Entry], dict[str, str]]:
    """Everybody who can step here, and why the others cannot."""
    pool, entries, missing = pool or Pool(), [], {}
    for contender in contenders:
        if contender.needs and importlib.util.find_spec(contender.needs) is None:
            missing[contender.name] = f"{contender.needs} is not installed"
            continue
        try:
            entries.append(Entry(contender, values, grads, pool))
        except Exception as error:  # a peer may not serve this card, this type or this size
            missing[contender.name] = first_line(error)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return entries, missing


def measure(entries: list[Entry], clock: Clock, rounds: int, seconds: float):
    """Seconds by contender and round; stops early, after whole rounds, when time is up."""
    for entry in entries:
        if not entry.contender.slow:
            once = clock.steps(entry)
            entry.repeats = max(1, min(MOST_STEPS, int(SAMPLE_SECONDS / once)))
    times: dict[str, dict[int, float]] = {entry.contender.name: {} for entry in entries}
    deadline = time.monotonic() + seconds
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            if i > 0 and time.monotonic() > deadline:
                break
            for entry in entries:
                if i % SLOW_EVERY == 0 or not entry.contender.slow:
                    times[entry.contender.name][i] = clock.steps(entry)
        # On a processor the host's time is the step's.
        samples = HOST_SAMPLES if clock.cuda and rounds >= SLOW_EVERY else 1
        host = {
            entry.contender.name: median(
                clock.host(entry)
                for _ in range(min(3, samples) if entry.contender.slow else samples)
            )
            for entry in entries
        }
    finally:
        gc.enable()
    return times, host


def ratio(times: dict[str, dict[int, float]], name: str, against: str) -> float | None:
    """The median, over the rounds that both ran in, of their times' ratio."""
    mine, theirs = times.get(name), times.get(against)
    if not mine or not theirs:
        return None
    return median(mine[i] / theirs[i] for i in mine.keys() & theirs.keys())


def row(entry: Entry, clock: Clock, times, host, moved: float, copy: float | None) -> dict:
    """moved, copy: bytes that an ideal step must move, and that a copy of the same rounds moves."""
    contender, name = entry.contender, entry.contender.name
    seconds = list(times[name].values())
    found = {
        "seconds": median(seconds),
        "quartiles": spread(seconds),
        "rounds": len(seconds),
        "steps_in_a_row": entry.repeats,
        "host_seconds": host[name],
        "bytes": moved,
        "gb_s": moved / median(seconds) / 1e9,
    }
    if (against := ratio(times, name, COPY)) is not None:
        found["share_of_copy"] = moved / copy / against
    if contender.eager and (against := ratio(times, contender.eager, name)) is not None:
        found["times_faster_than_eager"] = against
    found["ratios"] = {
        other: value for other in times if (value := ratio(times, name, other)) is not None
    }
    entry.prepare()
    with count_launches() as launches:  # of ours alone, and not of a graph's replay
        entry.step()
    if launches:
        found["launches"] = dict(launches)
    if clock.cuda and not contender.slow:
        try:
            found["kernels_profiled"] = kernels_of(entry)
        except Exception as error:  # a machine may lack CUPTI
            found["profiler"] = first_line(error)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=GPU_MODELS, required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=20.0, help="no round begins after these")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    dtype, clock = getattr(torch, options.dtype), Clock(options.device)
    dry = options.device == "cpu"
    shapes = miniature() if dry else GPU_MODELS[options.model].shapes()
    values, grads = tensors_of(shapes, options.device, dtype)
    parameters = sum(value.numel() for value in values)
    entries, missing = enter(contenders_for(options.model, options.device), values, grads)
    times, host = measure(entries, clock, options.rounds, options.seconds)
    copies = [entry.opt.moved for entry in entries if isinstance(entry.opt, Copy)]
    rows = {}
    copy = copies[0] if copies else None
    for entry in entries:
        moved = entry.moved(parameters, dtype)
        rows[entry.contender.name] = row(entry, clock, times, host, moved, copy)
    report = {
        "machine": describe(),
        "dtype": options.dtype,
        "tensors": len(values),
        "parameters": parameters,
        "rows": rows,
        "missing": missing,
    }
    if not dry:
        report["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
    options.json.write_text(json.dumps(report) + "\n")
    print(f"{options.model} {options.dtype}: {len(rows)} measured, missing: {missing or 'none'}")


if __name__ == "__main__":
    main()
