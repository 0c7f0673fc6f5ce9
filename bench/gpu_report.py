"""Everything that only a GPU can settle, in one command: under 8 minutes for the optimizers, and for G-Loss.

``python bench/gpu_report.py`` builds for the card, runs the tests marked ``gpu``, the suite `optimizers`,
compute-sanitizer, the suite `scale`, and G-Loss's tests and suite. Results, their report and the fate of each
part go to ``bench/results/<device>/``; a run that is not whole (fewer parts, ``--quick``, ``--device cpu``)
writes to ``build/gpu_report``. The exit status says whether every part went well. Two commands may share the
work: ``--only build tests benchmarks sanitizers`` and ``--only build scale gloss``. Results and logs are
copied to $OUT where it is set. Nothing is installed, and the card's settings stay as they are.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

# Nothing that loads what is built here: that is imported late, and by other processes.
from bench.gpu_machine import find_device, last_line, run  # noqa: E402
from bench.records import results_folder, save  # noqa: E402

SECONDS = 450  # of G-Loss's part, and of the optimizers'; 8 minutes with starting and writing
OF_OPTIMIZERS = ("build", "tests", "benchmarks", "sanitizers")
PARTS = (*OF_OPTIMIZERS, "scale", "gloss")
# Seconds a part may take, at most.
LIMITS = {"build": 120, "tests": 120, "benchmarks": 60, "sanitizers": 50}
BEGIN_WITHIN = 40  # seconds, in which a model's benchmark begins what it measures
BENCHMARKS = [
    *((model, "float32") for model in ("vit_b_16", "resnet50", "tiny", "gpt2", "llama_1b")),
    ("llama_7b_8_of_32_layers", "float32"),
    ("vit_b_16", "bfloat16"),
    ("llama_1b", "bfloat16"),
]
DRY_BENCHMARKS = [("resnet50", "float32")]
QUICK_ROUNDS = 6
SANITIZERS = ("memcheck", "racecheck", "initcheck")


@dataclass(frozen=True)
class Apart:
    """A suite with minutes of its own: seconds of its tests, of all of it, and in which it begins work."""

    limit: float
    begin_within: float
    tests: tuple[str, ...] = ()
    tests_limit: float = 0
    dry: tuple[str, ...] = ()  # filters of a dry run


APART = {
    "scale": Apart(limit=90, begin_within=50),
    "gloss": Apart(
        limit=300,
        begin_within=200,
        tests=("tests/test_triton_scores.py", "tests/test_triton_batch.py"),
        tests_limit=150,
        dry=("--nodes", "64"),
    ),
}


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


def suite_command(suite: str, device: str, quick: bool, folder: Path, *more: object) -> list:
    command = [sys.executable, "-m", "bench", "run", suite, "--device", device, "--out", folder]
    return [*command, *more, *(["--quick"] if quick or device == "cpu" else [])]


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


def counted(report: dict[str, Any]) -> str:
    verdicts = Counter(goal["verdict"] for goal in report["goals"])
    goals = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    parts = [f"{report['kind']}, {len(report['scenarios'])} scenarios", f"goals: {goals or 'none'}"]
    return "; ".join([*parts, *faults(report)])


class Report:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dry = options.device == "cpu"
        self.begin = self.budget_begins = time.monotonic()
        self.machine = find_device(options.device)
        parts = set(options.only or PARTS)
        self.full = not (self.dry or options.quick) and set(OF_OPTIMIZERS) <= parts
        self.scratch = options.folder or ROOT / "build" / "gpu_report"
        self.results = results_folder(options.device)
        self.logs = self.scratch / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        for log in self.logs.glob("*.log"):
            log.unlink()
        self.outcomes: list[Outcome] = []
        self.goals: list[dict[str, str]] = []
        self.files: list[Path] = []  # results

    @property
    def partial(self) -> str:
        return "dry run on a CPU" if self.dry else "partial run"

    def folder(self, full: bool) -> Path:
        """Of results: those of a full run are kept with the project."""
        folder = self.results if full else self.scratch / "results"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def note(self, part: str, since: float, ok: bool, summary: str) -> None:
        self.outcomes.append(Outcome(part, ok, time.monotonic() - since, summary))
        print(f"{'ok    ' if ok else 'FAILED'} {part}: {summary}", flush=True)

    def do(self, part: str, command: list, limit: float, log: str, env=None) -> tuple[bool, str]:
        """Run a command as a part; note it where it failed."""
        start = time.monotonic()
        seconds = min(limit, SECONDS - (start - self.budget_begins))
        if seconds <= 0:
            self.note(part, start, False, "left out: the time for all parts is used up")
            return False, ""
        try:
            status, output = run(command, self.logs / log, seconds, env)
        except OSError as error:
            self.note(part, start, False, str(error))
            return False, ""
        if status != 0:
            why = f"stopped after {seconds:.0f} s" if status is None else f"exit status {status}"
            self.note(part, start, False, f"{why}; {last_line(output)}; see {self.logs / log}")
        return status == 0, output

    def build(self) -> None:
        start, capability = time.monotonic(), self.machine["capability"]
        for command in build_commands(capability, self.logs.parent / "cmake"):
            if not self.do("build", command, LIMITS["build"], "build.log")[0]:
                return
        if self.dry:
            return self.note("build", start, True, "dry run: configured, not built")
        build_check = (
            "from friction_kernels import backends; exit(backends.cuda_unavailable_reason())"
        )
        if self.do("build", [sys.executable, "-c", build_check], 60, "build.log")[0]:
            self.note("build", start, True, f"for sm_{capability}")

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
        if ok:
            ran = self.dry or " passed" in last_line(output)
            self.note(part, start, ran, last_line(output).strip("= "))

    def benchmarks(self) -> None:
        """Each model in a process of its own, which may fail or hang; their results are one suite's."""
        from bench.goals import judge

        quick, reports = self.options.quick, []
        chosen = DRY_BENCHMARKS if self.dry else BENCHMARKS[:3] if quick else BENCHMARKS
        for model, dtype in chosen:
            more = ["--models", model, "--dtypes", dtype, "--seconds", BEGIN_WITHIN]
            more += ["--repeats", QUICK_ROUNDS] if quick else []
            name, limit = f"{model} {dtype}", LIMITS["benchmarks"]
            start, ok, report = self.measure("optimizers", name, limit, self.dry, more)
            if ok and report is not None:
                reports.append(report)
                wrong = faults(report)
                self.note(name, start, not wrong, "; ".join(wrong) or "measured")
        if reports:
            found = {
                **reports[0],
                "arguments": {"gpu_report": " ".join(self.options.only or PARTS)},
            }
            found["scenarios"] = [scenario for each in reports for scenario in each["scenarios"]]
            found["seconds"] = sum(each["seconds"] for each in reports)
            found["goals"] = judge(found)
            self.keep(found, self.full and len(reports) == len(chosen))

    def measure(
        self, suite: str, name: str, limit: float, quick: bool, more: list
    ) -> tuple[float, bool, dict[str, Any] | None]:
        """When it began, whether the command ended well, and what it measured, as far as it came."""
        start, folder = time.monotonic(), self.scratch / suite / name.replace(" ", "_")
        shutil.rmtree(folder, ignore_errors=True)
        command = suite_command(suite, self.options.device, quick, folder, *more)
        ok, _ = self.do(name, command, limit, f"{suite}.log")
        results = folder / f"{suite}.json"
        if results.exists():
            return start, ok, json.loads(results.read_text())
        if ok:
            self.note(name, start, False, f"it wrote no results; see {self.logs / suite}.log")
        return start, ok, None

    def keep(self, report: dict[str, Any], full: bool) -> None:
        suite = report["suite"]
        report["kind"] = "full run" if full else self.partial
        path = self.folder(full) / f"{suite}.json"
        save(report, path)
        self.files.append(path)
        if not self.dry:
            self.goals += [{**goal, "goal": f"{suite}: {goal['goal']}"} for goal in report["goals"]]

    def sanitizers(self) -> None:
        program = [sys.executable, "-m", "bench.gpu_sanitize", "--device", self.options.device]
        tool = shutil.which("compute-sanitizer")
        for name in SANITIZERS[:1] if self.dry else SANITIZERS:
            start, part, command = time.monotonic(), f"compute-sanitizer {name}", program
            if not self.dry:
                if tool is None:
                    why = "compute-sanitizer is missing: it is not on PATH"
                    self.note(part, start, False, why)
                    continue
                command = [tool, "--tool", name, "--error-exitcode", "1", *program]
            env = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
            ok, output = self.do(part, command, LIMITS["sanitizers"], f"{name}.log", env)
            if ok:
                found = re.findall(r"^=+ ((?:ERROR|RACECHECK) SUMMARY.*)$", output, re.MULTILINE)
                summary = found[-1] if found else last_line(output)
                self.note(part, start, bool(found) or self.dry, summary)

    def scale(self) -> None:
        self.measure_apart("scale")

    def gloss(self) -> None:
        self.measure_apart("gloss")

    def measure_apart(self, suite: str) -> None:
        """A suite in a process of its own, which may fail or hang: what it measured is kept."""
        self.budget_begins = time.monotonic()
        apart = APART[suite]
        if apart.tests and not self.dry:
            self.run_tests(f"{suite} tests", [*apart.tests], apart.tests_limit)
        more = ["--seconds", apart.begin_within, *(apart.dry if self.dry else ())]
        start, ok, found = self.measure(suite, suite, apart.limit, self.options.quick, more)
        if found is not None:
            if ok:
                self.note(suite, start, not faults(found), counted(found))
            self.keep(found, not self.dry and found["kind"] == "full run")

    def page(self) -> None:
        """The report about the results, wherever they were put."""
        for folder in dict.fromkeys(path.parent for path in self.files):
            start = time.monotonic()
            command = [sys.executable, "-m", "bench", "report", folder]
            ok, output = self.do("page", command, 120, "page.log")
            if ok:
                self.note("page", start, True, last_line(output))
                self.files.append(folder / "report.md")

    def write(self) -> None:
        """What became of each part; results themselves are kept as they come."""
        report = {
            "kind": "full run" if self.full else self.partial,
            "machine": self.machine,
            "seconds": time.monotonic() - self.begin,
            "parts": [asdict(outcome) for outcome in self.outcomes],
            "goals": self.goals,
        }
        files = [self.folder(self.full) / f"gpu_report.{suffix}" for suffix in ("json", "md")]
        files[0].write_text(json.dumps(report, indent=1) + "\n")
        files[1].write_text(as_markdown(report))
        if out := os.environ.get("OUT"):
            for file in [*files, *self.files]:
                shutil.copy(file, out)
            logs = sorted(self.logs.glob("*.log"))
            texts = [f"== {log.name}\n{log.read_text(errors='replace')}" for log in logs]
            Path(out, "logs.txt").write_text("\n".join(texts))  # one file: few come back
        print(f"\n{as_markdown(report)}")


def as_markdown(report: dict[str, Any]) -> str:
    lines = [f"# GPU report: {report['machine']['device']} ({report['kind']})", ""]
    if report["kind"] != "full run":
        lines += ["**No full run on a card: these numbers prove nothing about speed.**", ""]
    lines += [f"- {key}: {value}" for key, value in report["machine"].items()]
    lines += [f"- took {report['seconds']:.0f} s", "", "## Parts", ""]
    for part in report["parts"]:
        verdict = "ok" if part["ok"] else "FAILED"
        lines.append(f"- {verdict}: {part['part']}, {part['seconds']:.0f} s: {part['summary']}")
    if report["goals"]:
        lines += ["", "## Goals", ""]
        lines += [f"- {g['verdict']}: {g['goal']}: {g['measured']}" for g in report["goals"]]
    return "\n".join(lines) + "\n"


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
    report.page()
    report.write()
    return 0 if all(outcome.ok for outcome in report.outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
