"""Time and memory of a step with compressed states, parameters in bf16, and clipping inside.

    python -m bench.bench_scale                 on this processor; add --device cuda for a card
    python -m bench.bench_scale --quick         a miniature and few rounds, to see that all works

A full run writes scale.json and scale.md to bench/results/<machine>/, any other to build/bench_scale.
Peers that are not installed, or cannot serve this machine, are named.
"""

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.gpu_contenders import COPY, Copy
from bench.gpu_measure import Clock, Entry, Pool, enter, measure, row, tensors_of
from bench.gpu_shapes import GPU_MODELS, miniature
from bench.machine import machine_of, slug
from bench.scale_contenders import PEERS, Variant, variants_for
from bench.scale_goals import MODEL, judge
from bench.scale_memory import memory_of, peak
from bench.scale_text import as_markdown

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {name: model.shapes for name, model in GPU_MODELS.items()} | {"miniature": miniature}
ROUNDS = {"cpu": 16, "cuda": 24}
QUICK_ROUNDS = 2
PEER_SECONDS = {"cpu": 180, "cuda": 15}  # until its first step is done; some compile or tune
TIME_IS_UP = "the time was used up"
Tensors = dict[torch.dtype, tuple[list[Tensor], list[Tensor]]]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_) -> None:
        raise TimeoutError(f"its first step took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


class Scale:
    """Everybody who can step here, and what was found of each."""

    def __init__(self, device: str, model: str, quick: bool, seconds: float) -> None:
        self.device, self.quick = device, quick
        self.deadline = time.monotonic() + seconds
        self.tensors, self.small = self.make(SHAPES[model]()), self.make(miniature())
        self.pool = Pool()
        self.entries: dict[Variant, Entry] = {}
        self.peaks: dict[str, int] = {}
        self.missing: dict[str, str] = {}

    def make(self, shapes) -> Tensors:
        types = (torch.float32, torch.bfloat16)
        return {dtype: tensors_of(shapes, self.device, dtype) for dtype in types}

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.tensors[torch.float32][0])

    def enter(self, variant: Variant) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.missing[variant.name] = TIME_IS_UP
            return
        limit = min(PEER_SECONDS[self.device], left)
        with time_limit(limit) if variant.contender.needs else nullcontext():
            if not variant.compiles:  # loads libraries, and says early what cannot be
                _, missing = enter([variant.contender], *self.small[variant.dtype])
                if missing:
                    self.missing |= missing
                    return
            with peak(self.device) as found:
                tensors = self.tensors[variant.dtype]
                entries, missing = enter([variant.contender], *tensors, self.pool)
        self.missing |= missing
        for entry in entries:
            self.entries[variant] = entry
            if found.bytes is not None and (self.device == "cuda" or not variant.compiles):
                self.peaks[variant.name] = found.bytes

    def measure(self) -> dict[str, Any]:
        clock, entries = Clock(self.device), list(self.entries.values())
        rounds = QUICK_ROUNDS if self.quick else ROUNDS[self.device]
        times, host = measure(entries, clock, rounds, self.deadline - time.monotonic())
        copy = next((e.opt.moved for e in entries if isinstance(e.opt, Copy)), None)
        rows = {}
        for variant, entry in self.entries.items():
            rows[variant.name] = found = {}
            moved = copy
            if not isinstance(entry.opt, Copy):
                found |= self.memory_row(variant, entry)
                kept, grads = found["memory"]["in all"], variant.gradients * variant.dtype.itemsize
                moved = (2 * kept + grads) * self.parameters
            found |= row(entry, clock, times, host, moved, copy)
        for variant in self.entries:
            if variant.alone in times:
                bandwidth = copy / rows[COPY]["seconds"] if copy else None
                rows[variant.name] |= self.added(variant, times, bandwidth)
        return rows

    def memory_row(self, variant: Variant, entry: Entry) -> dict[str, Any]:
        report = memory_of(entry.opt)
        found = {"memory": {**report.per_parameter, "in all": report.bytes_per_parameter}}
        if variant.name in self.peaks:
            given = 2 * variant.dtype.itemsize  # parameters and gradients
            found["peak_bytes"] = given + self.peaks[variant.name] / report.parameters
        return found

    def added(self, variant: Variant, times, bandwidth: float | None) -> dict[str, Any]:
        """What it takes longer than the step alone, within a round; and the traffic of that time."""
        mine, alone = times[variant.name], times[variant.alone]
        seconds = median(mine[i] - alone[i] for i in mine.keys() & alone.keys())
        found = {"alone": variant.alone, "added_seconds": seconds}
        if bandwidth is not None:
            found["added_bytes"] = seconds * bandwidth / self.parameters
        return found


def scale_report(
    device: str, quick: bool, out_dir: Path, model: str = MODEL, seconds: float = math.inf
) -> dict[str, Any]:
    """Measure, write scale.json and scale.md into `out_dir`, print, and return the report.

    seconds: after which nothing more is begun.
    """
    begin = time.monotonic()
    model = "miniature" if quick else model
    scale = Scale(device, model, quick, seconds)
    for variant in variants_for(device):
        scale.enter(variant)
    rows = scale.measure()
    full = model == MODEL and TIME_IS_UP not in scale.missing.values()
    report: dict[str, Any] = {
        "kind": "full run" if full else "partial run",
        "device": device,
        "machine": machine_of(device) | {peer: version_of(peer) for peer in PEERS},
        "model": model,
        "tensors": len(SHAPES[model]()),
        "parameters": scale.parameters,
        "rows": rows,
        "missing": scale.missing,
        "seconds": time.monotonic() - begin,
    }
    report["goals"] = judge(report)
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "scale.json").write_text(json.dumps(report, indent=1) + "\n")
    (out_dir / "scale.md").write_text(as_markdown(report))
    print(as_markdown(report))
    print(f"Results: {out_dir / 'scale.json'}, scale.md")
    return report


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--quick", action="store_true", help="a miniature and few rounds")
    add("--model", choices=SHAPES, default=MODEL)
    add("--threads", type=int, help="by default torch's number")
    add("--seconds", type=float, default=math.inf, help="after which nothing more is begun")
    add("--out", type=Path, help="folder of the results")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use")
    if options.threads:
        torch.set_num_threads(options.threads)
    full = not options.quick and options.model == MODEL
    folder = ROOT / "bench/results" / slug(options.device) if full else ROOT / "build/bench_scale"
    scale_report(
        options.device, options.quick, options.out or folder, options.model, options.seconds
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
