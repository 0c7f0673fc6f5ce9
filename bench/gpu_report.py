"""Everything that only a GPU settles, in one command: less than 8 minutes for the optimizers, and for G-Loss.

``python bench/gpu_report.py`` builds for the card found, runs the tests marked ``gpu``, measures every
model, runs compute-sanitizer, and writes ``bench/results/<device>/optimizers.json`` and ``.md``; then it
measures compressed states and clipping (90 seconds: ``scale.json`` and ``.md``), tests G-Loss's kernels
and runs its benchmark (``gloss.json``, ``.md`` and ``.png``). A part that fails is reported and the rest
goes on; the exit status says whether all went well. Nothing is installed, and the card's settings are
left alone.

Where a command may not take that long, two share the work: ``--only build tests benchmarks sanitizers``
and ``--only build scale gloss``. Anything less than a full run of the optimizers, or of a later part, on
a card (fewer parts, ``--quick``, ``--device cpu``) writes to ``build/gpu_report`` instead. Where $OUT is
set, results and logs are copied there as well.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

from bench import gpu_gloss, gpu_scale  # noqa: E402
from bench.gpu_machine import find_device, slug  # noqa: E402
from bench.gpu_process import last_line, run  # noqa: E402

SECONDS = 450  # of G-Loss's part, and of the optimizers'; 8 minutes with starting and writing
OF_OPTIMIZERS = ("build", "tests", "benchmarks", "sanitizers")
PARTS = (*OF_OPTIMIZERS, "scale", "gloss")
# Seconds a part may take, at most, and rounds of each model's benchmark.
LIMITS = {"build": 120, "tests": 120, "benchmarks": 60, "sanitizers": 50}
ROUNDS = {"resnet50": 24, "vit_b_16": 24, "llama_1b": 16, "llama_7b_layers": 16, "tiny": 24}
BENCHMARKS = [
    *((model, "float32") for model in ("vit_b_16", "resnet50", "tiny", "llama_1b")),
    ("llama_7b_layers", "float32"),
    ("vit_b_16", "bfloat16"),
    ("llama_1b", "bfloat16"),
]
DRY_BENCHMARKS = [("resnet50", "float32"), ("tiny", "float32")]
SANITIZERS = ("memcheck", "racecheck", "initcheck")


@dataclass
class Outcome:
    part: str
    ok: bool
    seconds: float
    summary: str


def build_commands(capability: str | None, folder: Path) -> list[list]:
    """CMake as setup.py drives it, for one card; without one, only a look whether it configures."""
    import pybind11

    target = ROOT / "friction_kernels" if capability else folder / "out"
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}"]
    configure += [f"-DFRICTION_CUDA={1 if capability else 0}"]
    if not capability:
        return [configure]
    configure += [f"-DFRICTION_CUDA_ARCHITECTURES={capability}-real"]
    return [configure, ["cmake", "--build", folder]]


class Report:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dry = options.device == "cpu"
        self.begin = time.monotonic()
        self.machine = find_device(options.device)
        self.budget_begins = self.begin
        self.full = not (self.dry or options.quick) and set(OF_OPTIMIZERS) <= set(
            options.only or PARTS
        )
        self.scratch = options.folder or ROOT / "build" / "gpu_report"
        self.results = ROOT / "bench" / "results" / slug(self.machine["device"])
        self.logs = self.scratch / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        for log in self.logs.glob("*.log"):
            log.unlink()
        self.outcomes: list[Outcome] = []
        self.models: dict[str, Any] = {}
        self.more_goals: list[dict[str, str]] = []  # of parts with results of their own
        self.files: list[Path] = []

    def folder(self, full: bool) -> Path:
        """Of results: those of a full run are kept with the project."""
        folder = self.results if full else self.scratch / "results"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def left(self, limit: float) -> float:
        return min(limit, SECONDS - (time.monotonic() - self.budget_begins))

    def note(self, part: str, since: float, ok: bool, summary: str) -> None:
        self.outcomes.append(Outcome(part, ok, time.monotonic() - since, summary))
        print(f"{'ok    ' if ok else 'FAILED'} {part}: {summary}", flush=True)

    def do(self, part: str, command: list, limit: float, log: str, env=None) -> tuple[bool, str]:
        """Run a command as a part; note it where it failed."""
        start, seconds = time.monotonic(), self.left(limit)
        if seconds <= 0:
            self.note(part, start, False, "left out: the time for all parts is used up")
            return False, ""
        try:
            status, output = run(command, self.logs / log, seconds, env)
        except OSError as error:
            self.note(part, start, False, str(error))
            return False, ""
        if status != 0:
            why = (
                f"exit status {status}" if status is not None else f"stopped after {seconds:.0f} s"
            )
            self.note(part, start, False, f"{why}; {last_line(output)}; see {self.logs / log}")
        return status == 0, output

    def build(self) -> None:
        start = time.monotonic()
        folder = self.logs.parent / "cmake"
        for command in build_commands(self.machine["capability"], folder):
            ok, _ = self.do("build", command, LIMITS["build"], "build.log")
            if not ok:
                return
        if self.dry:
            return self.note("build", start, True, "dry run: configured, not built")
        why_not = (
            "from friction_kernels.backends import cuda_reason as r; import sys; sys.exit(r() or 0)"
        )
        ok, _ = self.do("build", [sys.executable, "-c", why_not], 60, "build.log")
        if ok:
            self.note("build", start, True, f"for sm_{self.machine['capability']}")

    def tests(self) -> None:
        # By name: other test modules may import what is not installed here.
        marked = [f for f in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in f.read_text()]
        self.run_tests("tests", ["-m", "gpu", *sorted(marked)], LIMITS["tests"])

    def run_tests(self, part: str, chosen: list, limit: float) -> None:
        start = time.monotonic()
        command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short"]
        command += ["-p", "no:cacheprovider", *chosen]
        if importlib.util.find_spec("xdist"):  # nearly all of a test's time is the processor's
            command += ["-n", 4]
        if self.dry:
            command.append("--collect-only")
        ok, output = self.do(part, command, limit, f"{part.replace(' ', '_')}.log")
        nothing_ran = not self.dry and " passed" not in last_line(output)
        if ok:
            self.note(part, start, not nothing_ran, last_line(output).strip("= "))

    def benchmarks(self) -> None:
        chosen = DRY_BENCHMARKS if self.dry else BENCHMARKS
        if self.options.quick and not self.dry:
            chosen = BENCHMARKS[:3]
        for model, dtype in chosen:
            name = model if dtype == "float32" else f"{model} {dtype}"
            path = self.logs / f"{name.replace(' ', '_')}.json"
            path.unlink(missing_ok=True)
            rounds = 1 if self.dry else 6 if self.options.quick else ROUNDS[model]
            command = [sys.executable, "-m", "bench.gpu_measure", "--model", model]
            command += ["--dtype", dtype, "--device", self.options.device]
            command += ["--rounds", rounds, "--seconds", 15, "--json", path]
            start = time.monotonic()
            ok, output = self.do(name, command, LIMITS["benchmarks"], "benchmarks.log")
            if ok:
                self.models[name] = json.loads(path.read_text())
                self.note(name, start, True, last_line(output))

    def sanitizers(self) -> None:
        program = [sys.executable, "-m", "bench.gpu_sanitize", "--device", self.options.device]
        tool = shutil.which("compute-sanitizer")
        for name in SANITIZERS[:1] if self.dry else SANITIZERS:
            start, part = time.monotonic(), f"compute-sanitizer {name}"
            if self.dry:
                command = program
            elif tool is None:
                self.note(part, start, False, "compute-sanitizer is missing: it is not on PATH")
                continue
            else:
                command = [tool, "--tool", name, "--error-exitcode", "1", *program]
            env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            ok, output = self.do(part, command, LIMITS["sanitizers"], f"{name}.log", env)
            if ok:
                found = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY.*)$", output, re.MULTILINE)
                summary = found[-1] if found else last_line(output)
                self.note(part, start, bool(found) or self.dry, summary)

    def gloss(self) -> None:
        self.budget_begins = time.monotonic()
        if not self.dry:
            self.run_tests("gloss tests", [*gpu_gloss.TESTS], gpu_gloss.TESTS_LIMIT)
        self.measure_apart("gloss", gpu_gloss)

    def scale(self) -> None:
        self.budget_begins = time.monotonic()
        self.measure_apart("scale", gpu_scale)

    def measure_apart(self, part: str, of: ModuleType) -> None:
        """A benchmark in a process of its own, which may fail or hang, with results of its own."""
        start, folder, log = time.monotonic(), self.scratch / part, f"{part}.log"
        shutil.rmtree(folder, ignore_errors=True)
        command = of.benchmark(self.options.device, self.options.quick, folder)
        ok, _ = self.do(part, command, of.LIMIT, log)
        results = folder / f"{part}.json"
        if results.exists():  # where it failed, too: as far as it came
            found = json.loads(results.read_text())
            self.more_goals += of.goals(found)
            where = self.folder(not self.dry and found["kind"] == "full run")
            self.files += [Path(shutil.copy(file, where)) for file in sorted(folder.iterdir())]
            if ok:
                self.note(part, start, not of.faults(found), of.summary(found))
        elif ok:
            self.note(part, start, False, f"it wrote no results; see {self.logs / log}")

    def write(self) -> None:
        from bench.gpu_markdown import as_markdown, judge, summary

        seconds = time.monotonic() - self.begin
        kind = "full run" if self.full else "dry run on a CPU" if self.dry else "partial run"
        goals = [] if self.dry else judge(self.models) + self.more_goals
        report = {
            "kind": kind,
            "machine": self.machine,
            "seconds": seconds,
            "parts": [asdict(outcome) for outcome in self.outcomes],
            "goals": goals,
            "models": self.models,
        }
        files = [self.folder(self.full) / f"optimizers.{suffix}" for suffix in ("json", "md")]
        files[0].write_text(json.dumps(report, indent=1) + "\n")
        files[1].write_text(as_markdown(report))
        if out := os.environ.get("OUT"):
            for file in [*files, *self.files]:
                shutil.copy(file, out)
            logs = sorted(self.logs.glob("*.log"))
            texts = [f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs]
            Path(out, "logs.txt").write_text("\n".join(texts))  # one file: few come back
        print(f"\n{summary(report)}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="parts to run")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    parser.add_argument("--folder", type=Path, help="for what is no full run: build/gpu_report")
    options = parser.parse_args(arguments)
    report = Report(options)
    for part in options.only or PARTS:
        start = time.monotonic()
        try:
            getattr(report, part)()
        except Exception as error:  # the rest goes on
            report.note(part, start, False, f"{type(error).__name__}: {error}")
    report.write()
    return 0 if all(outcome.ok for outcome in report.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
