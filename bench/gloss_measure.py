"""Times and peaks of memory of GLoss and what it is compared with.

Contenders step in rounds, A B C A B C, and are compared within a round: what else the machine does slows
neighbours alike. Peaks are those of a process for each; ``python -m bench.gloss_measure`` is that process.
"""

import argparse
import gc
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from bench.gloss_baselines import CONTENDERS, Contender, Problem, Step, make_problem

ROOT = Path(__file__).resolve().parents[1]
MOST_ROUNDS, FEWEST_ROUNDS = 50, 3
SAMPLE_SECONDS = 0.02  # steps in a row are as many as fill this, within limits
MOST_STEPS = 20
WARMUP_STEPS = 2
SLOW = 10  # seconds of a step that is not worth repeating to warm up
MEMORY_SECONDS = 300  # that a process may take


@dataclass
class Limits:
    """What a contender may take at a size, else it is left out and named; and the time of a size."""

    step_seconds: float = 20
    size_seconds: float = 60
    bytes: float = 0.0
    compiling: bool = True


@dataclass
class Times:
    """Seconds a step of each contender by round, and why the others have none."""

    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return median(self.seconds[name].values())

    def quartiles(self, name: str) -> list[float]:
        values = list(self.seconds[name].values())
        if len(values) < 2:
            return [values[0], values[0]]
        low, _, high = quantiles(values, n=4, method="inclusive")
        return [low, high]

    def ratio(self, name: str, against: str) -> float:
        """The median, over the rounds that both ran in, of their times' ratio."""
        mine, theirs = self.seconds[name], self.seconds[against]
        return median(mine[i] / theirs[i] for i in mine.keys() & theirs.keys())


def available_bytes(device: str) -> float:
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    return 8e9


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"[:200]


def why_not(
    contender: Contender, nodes: int, last: tuple[int, float] | None, limits: Limits
) -> str | None:
    """Why it is not tried at this size; `last`: the size before, and the seconds of a step there."""
    if contender.needs and importlib.util.find_spec(contender.needs) is None:
        return f"{contender.needs} is not installed"
    if contender.compiles and not limits.compiling:
        return "compiles, for which a quick run has no time"
    if contender.most_nodes is not None and nodes > contender.most_nodes:
        return f"not tried beyond N = {contender.most_nodes:,}"
    if contender.bytes_per_pair * nodes**2 > limits.bytes:
        return f"would need about {contender.bytes_per_pair * nodes**2 / 2**30:.0f} GiB"
    if last is not None and nodes > contender.sure_up_to:
        expected = last[1] * (nodes / last[0]) ** contender.power
        if expected > limits.step_seconds:
            return f"a step would take about {expected:.0f} s"
    return None


def timed(step: Step, steps: int, device: str) -> float:
    """Seconds a step, of some in a row."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def measure(
    contenders: list[Contender],
    problem: Problem,
    device: str,
    limits: Limits,
    last: dict[str, tuple[int, float]],
    most_rounds: int = MOST_ROUNDS,
) -> Times:
    """Times at one size. `last`, by name, is read for what can be tried, and brought up to date."""
    times, nodes = Times(), len(problem.labels)
    steps: dict[str, Step] = {}
    repeats: dict[str, int] = {}
    for contender in contenders:
        name = contender.name
        reason = why_not(contender, nodes, last.get(name), limits)
        if reason is None:
            try:
                steps[name] = Step(contender, problem)
                once = timed(steps[name], 1, device)
                # The first step loads libraries and compiles, whatever it says of the others.
                if once < SLOW or contender.compiles:
                    once = timed(steps[name], WARMUP_STEPS, device)
                repeats[name] = max(1, min(MOST_STEPS, int(SAMPLE_SECONDS / once)))
                last[name] = nodes, once
            except Exception as error:  # a peer may not serve this machine or this size
                steps.pop(name, None)
                reason = first_line(error)
        if reason is not None:
            times.missing[name] = reason
    gc.collect()
    gc.disable()
    try:
        deadline = time.monotonic() + limits.size_seconds
        for i in range(most_rounds):
            if i >= min(FEWEST_ROUNDS, most_rounds) and time.monotonic() > deadline:
                break
            for name, step in steps.items():
                times.seconds.setdefault(name, {})[i] = timed(step, repeats[name], device)
    finally:
        gc.enable()
    for name in steps:
        last[name] = nodes, times.median(name)
    return times


def status_bytes(key: str) -> int:
    """VmRSS or VmHWM (its peak) of this process; ru_maxrss would begin at that of the parent."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def peak_here(contender: Contender, nodes: int, dim: int, classes: int) -> dict[str, int]:
    """Bytes that the step took beyond what was there, and all that the process had at its peak."""
    Step(contender, make_problem(64, dim, classes))()  # loads libraries
    problem = make_problem(nodes, dim, classes)
    gc.collect()
    before, peak_before = status_bytes("VmRSS"), status_bytes("VmHWM")
    Step(contender, problem)()
    peak = status_bytes("VmHWM")
    # A peak that was there before the step says nothing of it.
    return {"extra_bytes": peak - before if peak > peak_before else 0, "process_bytes": peak}


def peak_in_process(
    contender: Contender, nodes: int, dim: int, classes: int, threads: int
) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.gloss_measure", "--contender", contender.name]
    command += ["--nodes", nodes, "--dim", dim, "--classes", classes, "--threads", threads]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            list(map(str, command)),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=MEMORY_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"missing": f"stopped after {MEMORY_SECONDS} s"}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return {"missing": lines[-1][:200] if lines else f"exit status {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def peak_on_card(step: Step) -> dict[str, int]:
    """Bytes beyond what was allocated before (inputs among it) and beyond the gradient."""
    step.embeddings.grad = None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    grad = step.embeddings.numel() * step.embeddings.element_size()
    return {"extra_bytes": max(0, peak - before - grad), "process_bytes": peak}


def slope(points: list[tuple[float, float]]) -> float | None:
    """The exponent p of y = c N^p fitted by least squares to the logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points if y > 0]
    if len({x for x, _ in logs}) < 2:
        return None
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    above = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return above / sum((x - mean_x) ** 2 for x, _ in logs)


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints one contender's peak of memory as JSON.")
    parser.add_argument("--contender", choices=[c.name for c in CONTENDERS], required=True)
    for option in ("--nodes", "--dim", "--classes", "--threads"):
        parser.add_argument(option, type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    contender = next(c for c in CONTENDERS if c.name == options.contender)
    print(json.dumps(peak_here(contender, options.nodes, options.dim, options.classes)))


if __name__ == "__main__":
    main()
