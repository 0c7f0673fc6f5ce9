"""Everything that only a GPU settles, in one command: less than 8 minutes for the optimizers, and for G-Loss.

``python bench/gpu_report.py`` builds for the card found, runs the tests marked ``gpu``, measures the suite
`optimizers`, runs compute-sanitizer, measures `scale` (90 seconds), tests G-Loss's kernels and measures
`gloss`; it writes each suite's results, the report about them (``report.md``) and what became of every part
(``gpu_report.json`` and ``.md``) to ``bench/results/<device>/``. A part that fails is reported and the rest
goes on; the exit status says whether all went well. Nothing is installed, and the card's settings are left
alone.

Where a command may not take that long, two share the work: ``--only build tests benchmarks sanitizers``
and ``--only build scale gloss``. Anything less than a full run of the optimizers, or of a later part, on
a card (fewer parts, ``--quick``, ``--device cpu``) writes to ``build/gpu_report`` instead. Where $OUT is
set, results and logs are copied there as well; pictures are made of them by ``python -m bench report``.
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
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # run as a file
    sys.path.insert(0, str(ROOT))

# Nothing that loads what is built here: that is imported late, and by other processes.
from bench.gpu_machine import find_device, slug  # noqa: E402
from bench.gpu_process import last_line, run  # noqa: E402
from bench.gpu_suites import APART, counted, faults, suite_command  # noqa: E402

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
        self.goals: list[dict[str, str]] = []
        self.files: list[Path] = []  # results

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
        """Each model in a process of its own, which may fail or hang; their results are one suite's."""
        chosen = DRY_BENCHMARKS if self.dry else BENCHMARKS
        if self.options.quick and not self.dry:
            chosen = BENCHMARKS[:3]
        reports = []
        for model, dtype in chosen:
            start, name = time.monotonic(), f"{model} {dtype}"
            folder = self.scratch / "optimizers" / name.replace(" ", "_")
            shutil.rmtree(folder, ignore_errors=True)
            more = ["--models", model, "--dtypes", dtype, "--seconds", BEGIN_WITHIN]
            if self.options.quick:
                more += ["--repeats", QUICK_ROUNDS]
            command = suite_command("optimizers", self.options.device, self.dry, folder, *more)
            ok, _ = self.do(name, command, LIMITS["benchmarks"], "benchmarks.log")
            if ok:
                reports.append(json.loads((folder / "optimizers.json").read_text()))
                wrong = faults(reports[-1])
                self.note(name, start, not wrong, "; ".join(wrong) or "measured")
        if reports:
            self.keep(self.merged(reports), self.full and len(reports) == len(chosen))

    def merged(self, reports: list[dict[str, Any]]) -> dict[str, Any]:
        from bench.goals import judge

        found = {**reports[0], "arguments": {"gpu_report": " ".join(self.options.only or PARTS)}}
        found["scenarios"] = [scenario for report in reports for scenario in report["scenarios"]]
        found["seconds"] = sum(report["seconds"] for report in reports)
        return {**found, "goals": judge(found)}

    def keep(self, report: dict[str, Any], full: bool) -> None:
        from bench.records import save

        report["kind"] = "full run" if full else "dry run on a CPU" if self.dry else "partial run"
        path = self.folder(full) / f"{report['suite']}.json"
        save(report, path)
        self.files.append(path)
        if not self.dry:
            suite = report["suite"]
            self.goals += [{**goal, "goal": f"{suite}: {goal['goal']}"} for goal in report["goals"]]

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
        start, folder, log = time.monotonic(), self.scratch / suite, f"{suite}.log"
        shutil.rmtree(folder, ignore_errors=True)
        more = ["--seconds", apart.begin_within, *(apart.dry if self.dry else ())]
        command = suite_command(suite, self.options.device, self.options.quick, folder, *more)
        ok, _ = self.do(suite, command, apart.limit, log)
        results = folder / f"{suite}.json"
        if results.exists():  # where it failed, too: as far as it came
            found = json.loads(results.read_text())
            if ok:
                self.note(suite, start, not faults(found), counted(found))
            self.keep(found, not self.dry and found["kind"] == "full run")
        elif ok:
            self.note(suite, start, False, f"it wrote no results; see {self.logs / log}")

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
        seconds = time.monotonic() - self.begin
        kind = "full run" if self.full else "dry run on a CPU" if self.dry else "partial run"
        report = {
            "kind": kind,
            "machine": self.machine,
            "seconds": seconds,
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
