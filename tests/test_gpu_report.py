"""The GPU report and the GPU's tests, as far as a processor can prove them: the script's logic, its
numbers, and that the checks of gpu_cases.py hold where they should and fail where they should."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from gpu_cases import (
    ELEMENTWISE,
    check_extreme_numbers,
    check_friction_stats,
    check_infinite_parameters_stay,
    check_nothing_to_do,
    check_one_launch,
    check_projection,
    check_same_bits_as_cpu,
    check_same_bits_twice,
    check_state_dict,
    check_step,
    device_steps,
)
from gpu_graphs import check_eager_steps_between, check_schedule
from gpu_scale_cases import FORMS, check_form, check_lists, check_squared_norm
from hypothesis import Phase, assume, given, settings
from optimizer_cases import PROJECTED, each_of, every_measured, every_optimizer

from bench import __main__, gpu_machine, gpu_report, runner, scenarios
from bench.gpu_machine import last_line
from bench.gpu_report import PARTS, Part, as_markdown
from friction_kernels import OPTIMIZERS

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]


# The GPU's checks, on the processor.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["adam", "friction_adam", "sgd", "adamp", "friction_adamp"])
def test_forms_give_the_same_bits(rule, form):
    check_form("cpu", rule, form, "gaps")


def test_norms_are_exact():
    check_squared_norm("cpu")


def test_lists_are_what_is_expected():
    check_lists("cpu")


@pytest.mark.parametrize("capturable", [False, True])
@settings(max_examples=25)
@given(example=device_steps())
def test_steps_are_checked(capturable, example):
    assume(check_step(example, "cpu", capturable))


def test_a_wrong_step_is_seen(monkeypatch):
    rule = type(OPTIMIZERS["SigSignAdamW"].rule)
    right = rule.settings
    monkeypatch.setattr(rule, "settings", lambda self, g: {**right(self, g), "beta1": 0.8})
    with pytest.raises(AssertionError):
        check_same_as_equations()


@settings(max_examples=20, database=None, phases=[Phase.generate])  # found, and not shrunk
@given(example=device_steps().filter(lambda e: e[0] == "SigSignAdamW"))
def check_same_as_equations(example):
    check_step(example, "cpu", False)


@every_optimizer
def test_checks_of_bits_and_launches_hold(name):
    check_same_bits_twice(name, "cpu")
    check_one_launch(name, "cpu", 20, groups=9)
    check_nothing_to_do(name, "cpu")
    check_infinite_parameters_stay(name, "cpu")


@each_of(ELEMENTWISE)
def test_checks_against_the_cpu_hold(name):
    check_same_bits_as_cpu(name, "cpu", torch.bfloat16, "gaps")
    check_extreme_numbers(name, "cpu")
    check_state_dict(name, ("cpu", "cpu"), capturable=True)


@pytest.mark.parametrize("decision", ["rows", "whole", "none"])
@each_of(PROJECTED)
def test_adamps_decisions_are_the_ones_meant(name, decision):
    check_projection(name, "cpu", decision, torch.float64)
    check_projection(name, "cpu", decision, torch.float32)


@every_measured
def test_check_of_statistics_holds(name):
    check_friction_stats(name, "cpu")


@every_optimizer
def test_schedules_are_followed(name):
    check_schedule(name, "cpu", graphed=False)
    check_eager_steps_between(name, "cpu", graphed=False, shapes=[(5,)] * 7, layout="gaps")


# The script.


def report_in(folder, device="cpu", stage=None):
    return gpu_report.Report(argparse.Namespace(device=device, stage=stage, folder=folder))


def python(program):
    return [sys.executable, "-c", program]


def part_of(program, name="a part", limit=20):
    def do(report, part):
        start = time.monotonic()
        ok, output = report.do(part, python(program), part.limit)
        if ok:
            report.note(part, start, True, last_line(output))

    return Part(1, name, limit, do)


def outcomes_in(folder):
    report = json.loads((folder / "report.json").read_text())
    assert as_markdown(report) == (folder / "report.md").read_text()
    return {part["part"]: (part["ok"], part["summary"]) for part in report["parts"]}


def test_a_part_that_fails_hangs_or_is_missing_is_noted_and_the_rest_goes_on(tmp_path):
    report = report_in(tmp_path)
    begin = time.monotonic()
    assert report.run(part_of("print('why'); raise SystemExit(3)", "fails"))
    assert report.run(part_of("import time; time.sleep(60)", "hangs", limit=1))
    assert report.run(part_of("import os; os.kill(os.getpid(), 9)", "dies"))
    assert report.run(Part(1, "missing", 9, lambda r, part: r.do(part, ["/no/such/program"], 9)))
    assert report.run(Part(1, "wrong", 9, lambda r, part: {}["key"]))
    assert report.run(part_of("print('done')", "works"))
    assert time.monotonic() - begin < 30
    found = outcomes_in(tmp_path)
    assert found["fails"] == (False, "exit status 3; why; see log.txt")
    assert found["hangs"][1].startswith("stopped after 1 s")
    assert found["dies"][1].startswith("exit status -9")
    assert "/no/such/program" in found["missing"][1] and "KeyError" in found["wrong"][1]
    assert found["works"] == (True, "done")
    assert "why" in (tmp_path / "log.txt").read_text()


KILLED = """
import sys
sys.path[:0] = {paths!r}
import test_gpu_report as tests
from bench import gpu_report
gpu_report.PARTS = (
    tests.part_of("print('done')", "ended"),
    tests.part_of("import time; print('begun', flush=True); time.sleep(60)", "killed", limit=60),
)
gpu_report.main(["--device", "cpu"])
"""


def test_a_report_that_is_killed_keeps_what_had_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    paths = [str(gpu_report.ROOT / "tests"), *sys.path]
    process = subprocess.Popen(python(KILLED.format(paths=paths)))
    try:
        wait_for(lambda: "begun" in read(tmp_path / "log.txt"))
    finally:
        process.kill()
        process.wait()
    assert outcomes_in(tmp_path) == {"ended": (True, "done")}


def read(path):
    return path.read_text() if path.exists() else ""


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)


def test_stages_keep_to_their_time():
    for stage, budget in gpu_report.BUDGET.items():
        assert sum(part.limit for part in PARTS if part.stage == stage) <= budget
    assert sum(gpu_report.BUDGET.values()) + gpu_report.BUILD_LIMIT <= 600
    assert min(part.limit for part in PARTS[1:]) > gpu_report.STARTING


def commands_of(part, tmp_path, monkeypatch):
    """What a part would run on a card."""
    report, commands = report_in(tmp_path), []
    report.dry, report.device = False, "cuda"
    monkeypatch.setattr(gpu_report, "run", lambda command, *_: commands.append(command) or (1, ""))
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: f"/bin/{name}")
    part.do(report, part)
    return [[*map(str, command)] for command in commands]


@pytest.mark.parametrize("part", PARTS[1:], ids=lambda part: part.name)
def test_a_part_asks_for_something_that_exists(part, tmp_path, monkeypatch):
    (command,) = commands_of(part, tmp_path, monkeypatch)
    if "bench" in command:
        options = __main__.run_parser().parse_args(command[4:])
        assert options.seconds == part.limit - gpu_report.STARTING
        names = set()
        for suite in options.suites:
            chosen = runner.pick(suite, options)
            assert chosen
            compared = [s for s in chosen if not isinstance(s, scenarios.OwnScenario)]
            assert all(any(c.ours for c in scenario.contenders) for scenario in compared)
            everyone = scenarios.scenarios_of(suite, "cuda")
            names |= {c.name for scenario in everyone for c in scenario.contenders}
        assert set(options.contenders or ()) <= names
        if options.nodes:
            assert [scenario.nodes for scenario in chosen] == sorted(options.nodes)
            precision = (options.dtypes or ["fp32"])[0]
            assert {scenario.precision for scenario in chosen} == {precision}
    elif "pytest" in command:
        files = [word for word in command if word.endswith(".py")]
        assert files and all((gpu_report.ROOT / file).exists() for file in files)
    else:
        assert command[0] == "/bin/compute-sanitizer" and "bench.gpu_sanitize" in command


def test_the_first_tests_hold_one_of_every_kind():
    """Of each group of words: a name that test_gpu.py has."""
    names = re.findall(
        r"^def (test_\w+)", (gpu_report.ROOT / "tests/test_gpu.py").read_text(), re.M
    )
    for words in gpu_report.FIRST_TESTS.replace("(", "").replace(")", "").split(" or "):
        assert any(words.split(" and ")[0] in name for name in names), words


def test_a_library_that_was_built_before_is_used(tmp_path, monkeypatch):
    report = report_in(tmp_path)
    report.dry = False
    monkeypatch.setattr(gpu_report, "CHECK_LIBRARY", "exit(None)")
    assert report.run(PARTS[0])
    assert outcomes_in(tmp_path)["library"] == (
        True,
        "the library that was built before serves the card",
    )


def test_without_a_library_nothing_else_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "build_commands", lambda *_: [python("exit('no compiler')")])
    monkeypatch.setattr(gpu_report, "PARTS", (PARTS[0], part_of("print('ran')")))
    assert gpu_report.main(["--device", "cpu", "--folder", str(tmp_path)]) == 1
    assert outcomes_in(tmp_path) == {"library": (False, "exit status 1; no compiler; see log.txt")}


def test_builds_for_the_card_found_and_only_configures_without(tmp_path):
    configure, build = gpu_report.build_commands("90", tmp_path)
    assert "-DFRICTION_CUDA=1" in configure and "-DFRICTION_CUDA_ARCHITECTURES=90-real" in configure
    assert build[:2] == ["cmake", "--build"]
    (dry,) = gpu_report.build_commands(None, tmp_path)
    assert "-DFRICTION_CUDA=0" in dry
    assert not any(str(part).endswith("friction_kernels") for part in dry if "OUTPUT" in str(part))


def test_a_missing_sanitizer_is_said_plainly(tmp_path, monkeypatch):
    report = report_in(tmp_path)
    report.dry = False
    monkeypatch.setattr(gpu_report.shutil, "which", lambda name: None)
    parts = [part for part in PARTS if part.name.endswith("check")]
    assert len(parts) == 3 and all(map(report.run, parts))
    assert [outcome.ok for outcome in report.outcomes] == [False] * 3
    assert all("compute-sanitizer is missing" in o.summary for o in report.outcomes)


LOST = """
import torch

def test_before():
    pass

def test_loses_it(monkeypatch):
    def fails():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    torch.cuda.is_initialized, torch.cuda.synchronize = lambda: True, fails
    assert False, "the first to notice"

def test_after():
    assert not torch.cuda.is_initialized()  # a process of its own
"""


def test_a_test_that_loses_the_card_ends_its_process_and_no_other_test(tmp_path):
    (tmp_path / "test_lost.py").write_text(LOST)
    report = report_in(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "1", "-p", "lost_card", "--rootdir"]
    ok, output = report.do(PARTS[1], [*command, tmp_path, tmp_path / "test_lost.py"], 120)
    assert not ok and "2 passed" in output and "1 failed" in output
    assert re.search(r"crashed while running .*test_loses_it", output)


def results_of(suite, names, **found):
    scenarios = [{"name": name, "rows": {}, "missing": {}} for name in names]
    report = {"schema": 1, "suite": suite, "kind": "partial run", "machine": {"kind": "cuda"}}
    return {**report, "scenarios": scenarios, "goals": [], "seconds": 1.0, **found}


def measured(monkeypatch, tmp_path, found, then="", limit=20):
    """The outcome of a benchmark that writes this and then does what `then` says."""
    report = report_in(tmp_path)
    report.dry = False

    def run(command, log, seconds, env=None):
        folder = command[command.index("--out") + 1]
        program = (
            f"import pathlib, time; p = pathlib.Path({str(folder)!r}); p.mkdir(parents=True); "
        )
        program += f"(p / 'gloss.json').write_text({json.dumps(found)!r}); {then}"
        return gpu_machine.run(python(program), log, limit)

    monkeypatch.setattr(gpu_report, "run", run)
    report.run(Part(2, "gloss", limit, gpu_report.benchmark("gloss")))
    return report.outcomes[-1]


def test_scenarios_of_several_parts_are_one_suite(tmp_path, monkeypatch):
    assert measured(monkeypatch, tmp_path, results_of("gloss", ["small", "large"])).ok
    assert measured(monkeypatch, tmp_path, results_of("gloss", ["large", "huge"])).ok
    found = json.loads((tmp_path / "gloss.json").read_text())
    assert [scenario["name"] for scenario in found["scenarios"]] == ["small", "large", "huge"]
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}


NAME = "N = 128, d = 768, C = 8, fp32"
MISSING = {"GLoss": "out of memory", "PyKeOps": "not installed"}


@pytest.mark.parametrize(
    ("scenario", "then", "said"),
    (
        ({"rows": {}}, "exit('no card')", "exit status 1; no card"),
        ({"rows": {}}, "time.sleep(60)", "stopped after 9 s"),
        ({"missing": MISSING}, "", f"{NAME}, GLoss: out of memory"),
        ({"skipped": "it is late"}, "", f"{NAME}: it is late"),
    ),
)
def test_what_gloss_did_not_measure_is_said(tmp_path, monkeypatch, scenario, then, said):
    found = results_of("gloss", [], scenarios=[{"name": NAME, **scenario}])
    outcome = measured(monkeypatch, tmp_path, found, then, limit=9)
    assert not outcome.ok and said in outcome.summary
    assert "PyKeOps" not in outcome.summary  # a peer may be missing
    assert (tmp_path / "gloss.json").exists()  # as far as it came


def test_a_benchmark_without_results_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "run", lambda *_: (0, ""))
    report = report_in(tmp_path)
    report.run(Part(2, "gloss", 20, gpu_report.benchmark("gloss")))
    assert not report.outcomes[-1].ok and "no results" in report.outcomes[-1].summary


def kept_results():
    return {file: file.stat().st_mtime for file in (gpu_report.ROOT / "bench/results").rglob("*")}


def test_a_dry_run_measures_and_writes_where_out_says(tmp_path, monkeypatch, capsys):
    before = kept_results()
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    few = [part for part in PARTS if part.name in ("small models", "graphs", "memcheck")]
    monkeypatch.setattr(gpu_report, "PARTS", few)
    assert gpu_report.main(["--device", "cpu", "--stage", "2"]) == 0
    assert kept_results() == before
    report = json.loads((tmp_path / "optimizers.json").read_text())
    assert report["kind"] == "dry run on a CPU" and report["suite"] == "optimizers"
    (scenario,) = report["scenarios"]
    assert scenario["rows"]["SigSignAdamW"]["launches"] == {"friction_adam": 1}
    assert sum(scenario["rows"]["SigSignAdamP"]["launches"].values()) == 3
    graphs = json.loads((tmp_path / "gloss.json").read_text())["scenarios"]
    assert [graph["nodes"] for graph in graphs] == [64]
    assert "prove nothing about speed" in (tmp_path / "report.md").read_text()
    assert all(ok for ok, _ in outcomes_in(tmp_path).values())
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"report.json", "report.md", "log.txt", "optimizers.json", "gloss.json"}
    assert "ok     graphs: measured N = 64" in capsys.readouterr().out


def test_parts_are_chosen_by_stage_and_name(tmp_path, monkeypatch, capsys):
    parts = [replace(part_of("print(1)"), name=part.name, stage=part.stage) for part in PARTS]
    monkeypatch.setattr(gpu_report, "PARTS", parts)
    folder = ["--device", "cpu", "--folder", str(tmp_path)]
    assert gpu_report.main([*folder, "--stage", "2", "--only", "graphs", "tests"]) == 0
    assert list(outcomes_in(tmp_path)) == ["tests", "graphs"]
    with pytest.raises(SystemExit):
        gpu_report.main([*folder, "--only", "glos"])
    assert "no part is called glos" in capsys.readouterr().err


def test_triton_kernels_that_were_compiled_before_are_found(tmp_path, monkeypatch):
    """Where the folder was moved, as it is to the card's machine; nothing is compiled again."""
    pytest.importorskip("triton")
    built, moved = tmp_path / "built", tmp_path / "moved"

    def compile_into(folder):
        command = [sys.executable, "-m", "bench.gpu_triton", folder, "--dims", "64"]
        command += ["--precisions", "bf16"]
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        return subprocess.run(
            command,
            cwd=gpu_report.ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert int(compile_into(built).split()[0]) > 10
    built.rename(moved)
    monkeypatch.setattr(gpu_report, "TRITON_CACHE", moved)
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    gpu_report.adopt_triton_cache()
    assert os.environ["TRITON_CACHE_DIR"] == str(moved)
    times = {path: path.stat().st_mtime_ns for path in moved.rglob("*.cubin")}
    compile_into(moved)
    assert {path: path.stat().st_mtime_ns for path in moved.rglob("*.cubin")} == times
