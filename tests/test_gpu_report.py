"""The GPU report and the GPU's tests, as far as a processor can prove them: the script's logic, its
numbers, and that the checks of gpu_cases.py hold where they should and fail where they should."""

import argparse
import json
import re
import sys
import time
from dataclasses import replace

import pytest
import torch
from gpu_cases import (
    ELEMENTWISE,
    FRICTION,
    PROJECTED,
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
from gpu_scale_cases import FORMS, check_form, check_squared_norm
from hypothesis import Phase, assume, given, settings
from optimizer_cases import every_optimizer

from bench import __main__, gpu_report
from bench.gpu_report import APART, as_markdown, counted, faults
from bench.scenarios import scenarios_of
from friction_kernels import OPTIMIZERS

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]


# The GPU's checks, on the processor.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rule", ["friction_adam", "rsgdm", "friction_adamp"])
def test_forms_give_the_same_bits(rule, form):
    check_form("cpu", rule, form, "gaps")


def test_norms_are_exact():
    check_squared_norm("cpu")


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


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_checks_against_the_cpu_hold(name):
    check_same_bits_as_cpu(name, "cpu", torch.bfloat16, "gaps")
    check_extreme_numbers(name, "cpu")
    check_state_dict(name, ("cpu", "cpu"), capturable=True)


@pytest.mark.parametrize("decision", ["rows", "whole", "none"])
@pytest.mark.parametrize("name", PROJECTED)
def test_adamps_decisions_are_the_ones_meant(name, decision):
    check_projection(name, "cpu", decision, torch.float64)
    check_projection(name, "cpu", decision, torch.float32)


@pytest.mark.parametrize("name", FRICTION)
def test_check_of_statistics_holds(name):
    check_friction_stats(name, "cpu")


@every_optimizer
def test_schedules_are_followed(name):
    check_schedule(name, "cpu", graphed=False)
    check_eager_steps_between(name, "cpu", graphed=False, shapes=[(5,)] * 7, layout="gaps")


# The script.


def report_in(folder, **options):
    defaults = {"device": "cpu", "quick": False, "only": None, "folder": folder}
    return gpu_report.Report(argparse.Namespace(**{**defaults, **options}))


def test_a_part_that_fails_hangs_or_is_missing_is_noted_and_the_rest_goes_on(tmp_path, monkeypatch):
    report = report_in(tmp_path)
    fail = [sys.executable, "-c", "print('why'); raise SystemExit(3)"]
    assert not report.do("fails", fail, 20, "a.log")[0]
    begin = time.monotonic()
    hang = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert not report.do("hangs", hang, 1, "a.log")[0]
    assert time.monotonic() - begin < 10
    assert not report.do("missing", ["/no/such/program"], 20, "a.log")[0]
    monkeypatch.setattr(gpu_report, "SECONDS", 0)
    assert not report.do("late", fail, 20, "a.log")[0]
    found = {outcome.part: outcome.summary for outcome in report.outcomes}
    assert found["fails"].startswith("exit status 3; why")
    assert found["hangs"].startswith("stopped after 1 s")
    assert "/no/such/program" in found["missing"]
    assert "used up" in found["late"]


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
    report.sanitizers()
    assert [o.ok for o in report.outcomes] == [False] * 3
    assert all("compute-sanitizer is missing" in o.summary for o in report.outcomes)


def kept_results():
    return {file: file.stat().st_mtime for file in (gpu_report.ROOT / "bench/results").rglob("*")}


def test_a_dry_run_measures_and_writes_beside_the_results(tmp_path, monkeypatch, capsys):
    before, out = kept_results(), tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(gpu_report.LIMITS, "benchmarks", 300)  # of a machine that is busy
    arguments = ["--device", "cpu", "--only", "benchmarks", "--folder", str(tmp_path / "dry")]
    assert gpu_report.main(arguments) == 0
    assert kept_results() == before
    results = tmp_path / "dry" / "results"
    report = json.loads((results / "optimizers.json").read_text())
    assert report["kind"] == "dry run on a CPU" and report["suite"] == "optimizers"
    (scenario,) = report["scenarios"]
    assert scenario["rows"]["SigSignAdamW"]["launches"] == {"friction_adam": 1}
    assert sum(scenario["rows"]["SigSignAdamP"]["launches"].values()) == 3
    text = (results / "gpu_report.md").read_text()
    assert "prove nothing about speed" in text and "- ok: resnet50 float32" in text
    assert as_markdown(json.loads((results / "gpu_report.json").read_text())) == text
    assert re.search(r"\| SigSignAdamW ", (results / "report.md").read_text())
    kept = {"gpu_report.json", "gpu_report.md", "optimizers.json", "report.md", "logs.txt"}
    assert {file.name for file in out.iterdir()} == kept
    assert capsys.readouterr().out.rstrip().endswith(text.rstrip())


def outcome_of(part, report):
    (outcome,) = [outcome for outcome in report.outcomes if outcome.part == part]
    return outcome


def test_a_dry_run_of_gloss_writes_beside_the_results(tmp_path, monkeypatch, capsys):
    before, out = kept_results(), tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    arguments = ["--device", "cpu", "--only", "gloss", "--folder", str(tmp_path / "dry")]
    assert gpu_report.main(arguments) == 0
    assert kept_results() == before
    found = json.loads((tmp_path / "dry" / "results" / "gloss.json").read_text())
    assert [s["nodes"] for s in found["scenarios"]] == [64]
    assert "ok     gloss: partial run, 1 scenarios" in capsys.readouterr().out
    names = {file.name for file in out.iterdir()}
    assert {"gloss.json", "report.md", "logs.txt"} < names and len(names) <= 8


SCENARIO = {"name": "N = 128, d = 768, C = 8, fp32", "rows": {}, "missing": {}}
MET = {"goal": "as fast", "measured": "60 times", "verdict": "met"}


def pretended(**found):
    report = {"schema": 1, "suite": "gloss", "kind": "full run", "machine": {"kind": "cuda"}}
    return {**report, "scenarios": [SCENARIO], "goals": [], "seconds": 1.0, **found}


def pretend(monkeypatch, then="", **found):
    """A benchmark that writes this report and then does what `then` says."""

    def command(suite, device, quick, folder, *more):
        program = (
            f"import pathlib, sys, time; p = pathlib.Path({str(folder)!r}); p.mkdir(parents=True); "
        )
        program += f"(p / 'gloss.json').write_text({json.dumps(pretended(**found))!r}); {then}"
        return [sys.executable, "-c", program]

    monkeypatch.setattr(gpu_report, "suite_command", command)
    quick_tests = replace(APART["gloss"], tests=("--version",))
    monkeypatch.setitem(gpu_report.APART, "gloss", quick_tests)


def card_report_in(folder, **options):
    report = report_in(folder, **options)
    report.dry, report.results = False, folder / "kept"
    return report


def test_results_of_a_full_run_of_gloss_are_kept(tmp_path, monkeypatch):
    pretend(monkeypatch, goals=[MET])
    report = card_report_in(tmp_path, only=["gloss"])
    report.gloss()
    assert outcome_of("gloss", report).ok
    assert outcome_of("gloss", report).summary == "full run, 1 scenarios; goals: 1 met"
    assert (tmp_path / "kept" / "gloss.json").exists()
    report.write()  # of optimizers nothing was measured
    text = (tmp_path / "results" / "gpu_report.md").read_text()
    assert "- met: gloss: as fast: 60 times" in text


NOT_MEASURED = {**SCENARIO, "missing": {"GLoss": "out of memory", "PyKeOps": "not installed"}}


@pytest.mark.parametrize(
    ("found", "said"),
    (
        ({"then": "sys.exit('no card')"}, "exit status 1; no card"),
        ({"then": "time.sleep(60)"}, "stopped after 1 s"),
        ({"scenarios": [NOT_MEASURED]}, f"{SCENARIO['name']}, GLoss: out of memory"),
        ({"scenarios": [{"name": "huge", "skipped": "it is late"}]}, "huge: it is late"),
    ),
)
def test_what_gloss_did_not_measure_is_said(tmp_path, monkeypatch, found, said):
    pretend(monkeypatch, kind="partial run", **found)
    limit = 1 if "time.sleep" in found.get("then", "") else 60
    monkeypatch.setitem(gpu_report.APART, "gloss", replace(gpu_report.APART["gloss"], limit=limit))
    report = card_report_in(tmp_path)
    report.gloss()
    assert not outcome_of("gloss", report).ok and said in outcome_of("gloss", report).summary
    assert "PyKeOps" not in outcome_of("gloss", report).summary  # a peer may be missing
    assert (tmp_path / "results" / "gloss.json").exists()  # as far as it came


def test_gloss_without_results_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "suite_command", lambda *_: [sys.executable, "-c", "pass"])
    report = report_in(tmp_path)
    report.gloss()
    assert not outcome_of("gloss", report).ok
    assert "no results" in outcome_of("gloss", report).summary


def test_models_are_one_suite_and_a_missing_one_makes_it_no_full_run(tmp_path, monkeypatch):
    def command(suite, device, quick, folder, *more):
        model = more[1]
        if model == "tiny":
            return [sys.executable, "-c", "raise SystemExit('the card is gone')"]
        scenario = {"name": f"{model} float32", "rows": {}, "missing": {}}
        found = pretended(suite="optimizers", scenarios=[scenario])
        program = f"import pathlib; p = pathlib.Path({str(folder)!r}); p.mkdir(parents=True); "
        program += f"(p / 'optimizers.json').write_text({json.dumps(found)!r})"
        return [sys.executable, "-c", program]

    monkeypatch.setattr(gpu_report, "suite_command", command)
    models = [("resnet50", "float32"), ("tiny", "float32"), ("gpt2", "float32")]
    monkeypatch.setattr(gpu_report, "BENCHMARKS", models)
    report = card_report_in(tmp_path)
    report.full = True
    report.benchmarks()
    assert [o.ok for o in report.outcomes] == [True, False, True]
    found = json.loads((tmp_path / "results" / "optimizers.json").read_text())
    assert found["kind"] == "partial run"
    assert [s["name"] for s in found["scenarios"]] == ["resnet50 float32", "gpt2 float32"]
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}


def test_commands_and_their_time(tmp_path):
    """Each budget leaves something of 8 minutes for starting and writing."""
    gloss = APART["gloss"]
    assert gloss.tests_limit + gloss.limit <= gpu_report.SECONDS <= 450
    assert APART["scale"].limit <= 90
    assert all(apart.begin_within < apart.limit for apart in APART.values())
    command = gpu_report.suite_command("gloss", "cuda", False, tmp_path, "--seconds", 200)
    options = __main__.run_parser().parse_args([*map(str, command[4:])])
    assert (options.suites, options.device, options.seconds) == (["gloss"], "cuda", 200)
    assert not options.quick
    assert "--quick" in gpu_report.suite_command("scale", "cpu", False, tmp_path)


def test_every_model_that_is_measured_has_a_scenario():
    names = {scenario.name for scenario in scenarios_of("optimizers", "cuda")}
    assert {f"{model} {dtype}" for model, dtype in gpu_report.BENCHMARKS} <= names
    assert faults(pretended()) == [] and counted(pretended()).startswith("full run, 1 scenarios")
