"""Everything that only a GPU can settle, in two stages that fit a card lent for minutes.

``python bench/gpu_report.py --stage 1`` proves the kernels right and measures what is claimed first, in 150
seconds and the build of a library where none is built for the card; ``--stage 2`` runs all tests, the
sanitizers and the other benchmarks, in 300. Without ``--stage``, both. Results, the log and the fate of each
part (``report.json``, ``report.md``) are written as each part ends, to $OUT where it is set, else to
``build/gpu_report``: a run that is killed keeps what had ended. A part that fails, hangs or loses the card
costs no other part its time. Nothing is installed, and the card's settings stay as they are. Pages and
pictures are made from the results afterwards: ``python -m bench report FOLDER``.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

# Nothing that loads what is built here: that is imported late, and by other processes.
from bench.gpu_machine import find_device, last_line, run  # noqa: E402
from bench.records import load, save  # noqa: E402

BUDGET = {1: 150, 2: 300}  # seconds of all parts but a build
BUILD_LIMIT = 150
TEST_PROCESSES, TEST_LIMIT = 12, 40  # seconds of one test
STARTING = 14  # seconds before a benchmark measures, and of its last step
CHECK_LIBRARY = "from friction_kernels import backends; exit(backends.cuda_unavailable_reason())"
# One launch of each kernel against the CPU's bits, a table above 32 KB, a graph through a schedule.
FIRST_TESTS = (
    "give_the_cpus_bits or decides_as_the_equations or norm_of_gradients or scaled_clipped_and_skipped "
    "or (one_launch and 700) or follows_a_schedule or friction_stats or products_and_sums"
)
# Of a model of a billion parameters, a card holds no more.
FIRST = ("copy", "in place", "AdamW", "SigSignAdamW", "SigSignAdamP", "RSGDM", "torch AdamW fused")
LARGE = (*FIRST, "SGD nesterov", "torch SGD nesterov fused")
STEPS = (*LARGE, "torch AdamW foreach", "SigSignAdamW eager equations")
EIGHT_BITS = "SigSignAdamW 8bit"
GRAPHS = ("GLoss", "GLoss, validate=False", "dense float64, as the authors do it")
FIRST_PASSES = "every_pass_in_fp32 or no_multiple_of_a_tile"
PASSES = (
    "tests/test_triton_batch.py",
    "tests/test_triton_scores.py",
    "tests/test_triton_row_softmax.py",
)


@dataclass
class Outcome:
    part: str
    ok: bool
    seconds: float
    summary: str


@dataclass(frozen=True)
class Part:
    stage: int
    name: str
    limit: float  # seconds, its start counted
    do: "Callable[[Report, Part], None]"


def tests(*chosen: str) -> Callable[["Report", Part], None]:
    return lambda report, part: report.test(part, list(chosen))


def benchmark(suites: str, *chosen: object) -> Callable[["Report", Part], None]:
    return lambda report, part: report.measure(part, suites.split(), list(chosen))


def steps(
    *contenders: str, models: str, suites: str = "optimizers", dtypes: str = "float32 bfloat16"
) -> Callable[["Report", Part], None]:
    narrowed = ("--models", *models.split(), "--dtypes", *dtypes.split())
    return benchmark(suites, *narrowed, "--contenders", *contenders)


def graphs(*nodes: int, dtype: str) -> Callable[["Report", Part], None]:
    narrowed = ("--nodes", *nodes, "--dtypes", dtype)
    return benchmark("gloss", *narrowed, "--contenders", *GRAPHS)


def sanitizer(tool: str) -> Callable[["Report", Part], None]:
    return lambda report, part: report.sanitize(part, tool)


# What would be missed most comes first.
PARTS = (
    Part(1, "library", 9, lambda report, part: report.build(part)),
    Part(1, "first kernels", 48, tests("-m", "gpu", "-k", FIRST_TESTS, "tests/test_gpu.py")),
    Part(1, "first passes", 25, tests("-k", FIRST_PASSES, *PASSES)),
    Part(
        1, "vit_b_16", 28, steps(*FIRST, EIGHT_BITS, models="vit_b_16", suites="optimizers scale")
    ),
    Part(1, "gloss", 40, graphs(128, 65_536, dtype="bf16")),
    Part(2, "tests", 70, tests("-m", "gpu", "tests/test_gpu.py", "tests/test_grad_scaler.py")),
    Part(2, "memcheck", 37, sanitizer("memcheck")),
    Part(2, "llama_1b", 28, steps(*LARGE, models="llama_1b")),
    Part(2, "small models", 24, steps(*STEPS, models="resnet50 tiny", dtypes="float32")),
    Part(2, "graphs", 38, graphs(32_768, 1_000_000, dtype="bf16")),
    Part(2, "scale", 25, benchmark("scale")),
    Part(2, "losses", 26, benchmark("losses")),
    Part(2, "lists", 17, benchmark("lists", "--models", "vit_b_16")),
    Part(2, "racecheck", 20, sanitizer("racecheck")),
    Part(2, "initcheck", 15, sanitizer("initcheck")),
)
TRITON_CACHE = ROOT / "build" / "triton_cache"  # by gpu_prepare.py
DRY = {"optimizers": ["--models", "resnet50", "--dtypes", "float32"], "gloss": ["--nodes", 64]}
DRY_LIMIT = 300  # seconds, on a machine that may be busy


def build_commands(
    capability: str | None, folder: Path, python: str = sys.executable
) -> list[list]:
    """CMake as setup.py drives it, for one card; without one, only a look whether it configures."""
    import pybind11

    target = ROOT / "friction_kernels" if capability else folder / "out"
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DPython_EXECUTABLE={shutil.which(python)}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    configure += [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}"]
    configure += [f"-DFRICTION_CUDA={1 if capability else 0}"]
    if not capability:
        return [configure]
    configure += [f"-DFRICTION_CUDA_ARCHITECTURES={capability}-real"]
    return [configure, ["cmake", "--build", folder]]


def adopt_triton_cache() -> None:
    """Use the kernels that were compiled before; the index of Triton's cache holds absolute paths."""
    if not TRITON_CACHE.is_dir():
        return
    for index in TRITON_CACHE.glob("*/__grp__*.json"):
        names = json.loads(index.read_text())["child_paths"]
        here = {name: str(index.parent / name) for name in names}
        index.write_text(json.dumps({"child_paths": here}))
    os.environ["TRITON_CACHE_DIR"] = str(TRITON_CACHE)


def faults(report: dict[str, Any]) -> list[str]:
    """What of ours was not measured, and why. A peer may be missing, and a goal missed."""
    from bench.scenarios import scenarios_of

    everyone = scenarios_of(report["suite"], report["machine"]["kind"])
    ours = {c.name for scenario in everyone for c in scenario.contenders if c.ours}
    found = [f"{s['name']}: {s['skipped']}" for s in report["scenarios"] if "skipped" in s]
    for scenario in report["scenarios"]:
        missing = scenario.get("missing", {}).items()
        found += [f"{scenario['name']}, {name}: {why}" for name, why in missing if name in ours]
    return found


class Report:
    def __init__(self, options: argparse.Namespace) -> None:
        self.dry, self.device = options.device == "cpu", options.device
        self.folder = Path(options.folder or os.environ.get("OUT") or ROOT / "build" / "gpu_report")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "log.txt"
        self.scratch = ROOT / "build" / "gpu_report" / "scratch"
        self.begin = time.monotonic()
        self.outcomes: list[Outcome] = []
        self.machine = find_device(options.device)
        self.write()

    def run(self, part: Part) -> bool:
        """Whether the parts after it have anything to stand on."""
        start = time.monotonic()
        try:
            part.do(self, part)
        except Exception as error:  # the rest goes on
            self.note(part, start, False, f"{type(error).__name__}: {error}")
        return part.name != "library" or self.outcomes[-1].ok

    def note(self, part: Part, since: float, ok: bool, summary: str) -> None:
        self.outcomes.append(Outcome(part.name, ok, time.monotonic() - since, summary))
        print(f"{'ok    ' if ok else 'FAILED'} {part.name}: {summary}", flush=True)
        self.write()

    def do(self, part: Part, command: list, limit: float, env=None) -> tuple[bool, str]:
        """Run a command of a part; note the part where it failed."""
        start = time.monotonic()
        try:
            status, output = run(command, self.log, limit, env)
        except OSError as error:
            self.note(part, start, False, str(error))
            return False, ""
        if status != 0:
            why = f"stopped after {limit:.0f} s" if status is None else f"exit status {status}"
            self.note(part, start, False, f"{why}; {last_line(output)}; see {self.log.name}")
        return status == 0, output

    def build(self, part: Part) -> None:
        start, capability = time.monotonic(), self.machine["capability"]
        check = [sys.executable, "-c", CHECK_LIBRARY]
        if not self.dry and run(check, self.log, part.limit)[0] == 0:
            return self.note(part, start, True, "the library that was built before serves the card")
        for command in build_commands(capability, self.scratch / "cmake"):
            if not self.do(part, command, BUILD_LIMIT)[0]:
                return
        if self.dry:
            return self.note(part, start, True, "dry run: configured, not built")
        if self.do(part, check, part.limit)[0]:
            self.note(part, start, True, f"built for sm_{capability}")

    def test(self, part: Part, chosen: list) -> None:
        """pytest in several processes; one that loses the card is replaced, and its test named."""
        start = time.monotonic()
        if self.dry:
            return self.note(part, start, True, "dry run: tests need a card")
        command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "--tb=short", "--durations=8"]
        command += ["-p", "no:cacheprovider", "-p", "lost_card", *chosen]
        if importlib.util.find_spec("xdist"):  # nearly all of a test's time is the CPU's
            command += ["-n", TEST_PROCESSES, "--max-worker-restart", 100]
        if importlib.util.find_spec("pytest_timeout"):
            command += ["--timeout", TEST_LIMIT]
        env = {"OMP_NUM_THREADS": "1"}  # else each process takes every core
        ok, output = self.do(part, command, part.limit, env)
        if ok:
            last = last_line(output).strip("= ")
            self.note(part, start, " passed" in last, last)

    def measure(self, part: Part, suites: list[str], chosen: list) -> None:
        """Benchmarks in a process of their own; what they had measured when it ended is kept."""
        start, folder = time.monotonic(), self.scratch / part.name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, "-m", "bench", "run", *suites, "--device", self.device]
        limit = DRY_LIMIT if self.dry else part.limit
        command += ["--out", folder, "--seconds", max(limit - STARTING, 1)]
        command += ["--quick", *DRY.get(suites[0], [])] if self.dry else chosen
        ok, _ = self.do(part, command, limit)
        written = [path for suite in suites if (path := folder / f"{suite}.json").exists()]
        results = [load(path) for path in written]
        for found in results:
            self.keep(found)
        if not ok:
            return
        wrong = [fault for found in results for fault in faults(found)]
        if len(results) < len(suites):
            wrong.append(f"it wrote no results; see {self.log.name}")
        names = [scenario["name"] for found in results for scenario in found["scenarios"]]
        self.note(part, start, not wrong, "; ".join(wrong) or f"measured {', '.join(names)}")

    def keep(self, found: dict[str, Any]) -> None:
        """Scenarios beside those that earlier parts measured."""
        from bench.goals import judge

        path = self.folder / f"{found['suite']}.json"
        before = load(path)["scenarios"] if path.exists() else []
        scenarios = {s["name"]: s for s in (*before, *found["scenarios"])}
        found = {**found, "kind": self.kind, "scenarios": list(scenarios.values())}
        save({**found, "goals": judge(found)}, path)

    @property
    def kind(self) -> str:
        return "dry run on a CPU" if self.dry else "run on a card"

    def sanitize(self, part: Part, name: str) -> None:
        start, tool = time.monotonic(), shutil.which("compute-sanitizer")
        command = [sys.executable, "-m", "bench.gpu_sanitize", "--device", self.device]
        if not self.dry:
            if tool is None:
                return self.note(part, start, False, "compute-sanitizer is missing: not on PATH")
            command = [tool, "--tool", name, "--error-exitcode", "1", *command]
        env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        ok, output = self.do(part, command, DRY_LIMIT if self.dry else part.limit, env)
        if ok:
            found = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY.*)$", output, re.MULTILINE)
            self.note(part, start, bool(found) or self.dry, [*found, last_line(output)][0])

    def write(self) -> None:
        """What became of each part, so far."""
        report = {
            "kind": self.kind,
            "machine": self.machine,
            "seconds": time.monotonic() - self.begin,
            "parts": [asdict(outcome) for outcome in self.outcomes],
        }
        save(report, self.folder / "report.json")
        (self.folder / "report.md").write_text(as_markdown(report))


def as_markdown(report: dict[str, Any]) -> str:
    lines = [f"# GPU report: {report['machine']['device']} ({report['kind']})", ""]
    if report["kind"] != "run on a card":
        lines += ["**No run on a card: these numbers prove nothing about speed.**", ""]
    lines += [f"- {key}: {value}" for key, value in report["machine"].items()]
    lines += [f"- took {report['seconds']:.0f} s", "", "## Parts", ""]
    for part in report["parts"]:
        verdict = "ok" if part["ok"] else "FAILED"
        lines.append(f"- {verdict}: {part['part']}, {part['seconds']:.0f} s: {part['summary']}")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", type=int, choices=sorted(BUDGET), help="by default both")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", help="parts, by the first word of a name"
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    parser.add_argument(
        "--folder", type=Path, help="of results; by default $OUT or build/gpu_report"
    )
    options = parser.parse_args(arguments)
    chosen = [p for p in PARTS if options.stage in (None, p.stage)]
    if options.only:
        first_words = {part.name.split()[0] for part in PARTS}
        if unknown := set(options.only) - first_words:
            parser.error(
                f"no part is called {', '.join(sorted(unknown))}: {', '.join(sorted(first_words))}"
            )
        chosen = [part for part in chosen if part.name.split()[0] in options.only]
    if options.device == "cuda":
        adopt_triton_cache()
    report = Report(options)
    for part in chosen:
        if not report.run(part):
            break  # without a library nothing else can run
    return 0 if all(outcome.ok for outcome in report.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
