"""The GPU report and the GPU's tests, as far as a processor can prove them: the script's logic, its
numbers, and that the checks of gpu_cases.py hold where they should and fail where they should."""

import argparse
import json
import sys
import time
from pathlib import Path

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

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench is a folder, and not installed

from bench import gpu_gloss, gpu_report
from bench.gpu_contenders import (
    ADAMW,
    FRICTION_ADAMP,
    MOMENTUM,
    Contender,
    bytes_per_parameter,
    contenders_for,
)
from bench.gpu_contenders import FRICTION as FRICTION_LISTS
from bench.gpu_goals import GOALS, Goal
from bench.gpu_markdown import as_markdown, judge, summary
from bench.gpu_measure import Clock, enter, measure, ratio, tensors_of
from bench.gpu_shapes import GPU_MODELS
from friction_kernels import OPTIMIZERS

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


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
    cls = OPTIMIZERS["SigSignAdamW"]
    right = cls._settings
    monkeypatch.setattr(cls, "_settings", lambda self, g: {**right(self, g), "beta1": 0.8})
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


# Numbers.


def test_models_have_the_parameters_they_say():
    for model in GPU_MODELS.values():
        model.check()


@pytest.mark.parametrize(
    ("lists", "size", "expected"),
    [
        (ADAMW, 4, 28),
        (FRICTION_LISTS, 4, 36),
        (MOMENTUM, 4, 20),
        (FRICTION_ADAMP, 4, 56),
        (FRICTION_LISTS, 2, 26),
    ],
)
def test_bytes_of_a_step(lists, size, expected):
    assert bytes_per_parameter(lists, size, wide=4) == expected


def test_every_goals_contenders_exist():
    for goal in GOALS:
        names = {contender.name for contender in contenders_for(goal.model, "cuda")}
        assert {goal.contender, goal.against or goal.contender} <= names


def model_with(rows, missing=None):
    return {"resnet50": {"rows": rows, "missing": missing or {}}}


def test_goals_are_met_missed_or_not_measured():
    share = Goal("resnet50", "A", at_least=0.92)
    times = Goal("resnet50", "A", "B", at_most=1.0)
    host = Goal("resnet50", "A", "B", at_most=0.5, of="host time")
    rows = {
        "A": {"share_of_copy": 0.93, "ratios": {"B": 1.01}, "host_seconds": 1.0},
        "B": {"host_seconds": 4.0},
    }
    verdicts = [goal.verdict(model_with(rows)) for goal in (share, times, host)]
    assert [v["verdict"] for v in verdicts] == ["met", "missed", "met"]
    assert [v["measured"] for v in verdicts] == ["93.0% of copy", "1.01x", "0.25x"]
    absent = times.verdict(model_with({}, {"B": "B is not installed"}))
    assert absent["verdict"] == "not measured" and "B is not installed" in absent["measured"]
    assert all(v["verdict"] == "not measured" for v in judge({}))


def test_ratios_are_of_the_same_rounds():
    times = {"A": {0: 2.0, 1: 3.0, 2: 50.0}, "B": {0: 1.0, 1: 2.0, 3: 0.1}}
    assert ratio(times, "A", "B") == 1.75
    assert ratio(times, "A", "C") is None


def test_who_cannot_step_is_named_and_the_rest_measured():
    def broken(params):
        raise RuntimeError("not on this card\nsecond line")

    contenders = [
        Contender("broken", broken, ADAMW),
        Contender("absent", broken, ADAMW, needs="no_such_module_at_all"),
        *(c for c in contenders_for("resnet50", "cpu") if c.name in ("RSGDM", "torch AdamW fused")),
    ]
    values, grads = tensors_of([(3, 4), (5,)], "cpu", torch.float32)
    entries, missing = enter(contenders, values, grads)
    assert missing == {
        "broken": "RuntimeError: not on this card",
        "absent": "no_such_module_at_all is not installed",
    }
    times, host = measure(entries, Clock("cpu"), rounds=2, seconds=60)
    assert {name: len(rounds) for name, rounds in times.items()} == {
        "torch AdamW fused": 2,
        "RSGDM": 2,
    }
    assert all(seconds > 0 for seconds in host.values())
    # One set of moments for all.
    moments = [entry.opt.state[entry.params[0]] for entry in entries]
    assert moments[0]["momentum_buffer"] is moments[1]["exp_avg"]


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


def test_a_dry_run_measures_and_writes_beside_the_results(tmp_path, monkeypatch, capsys):
    results = gpu_report.ROOT / "bench" / "results"
    before = sorted(results.rglob("*"))
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiling C++ takes a minute
    monkeypatch.setattr(gpu_report, "DRY_BENCHMARKS", [("tiny", "float32")])
    arguments = ["--device", "cpu", "--only", "benchmarks", "--folder", str(tmp_path / "dry")]
    assert gpu_report.main(arguments) == 0
    assert sorted(results.rglob("*")) == before
    report = json.loads((tmp_path / "dry" / "results" / "optimizers.json").read_text())
    assert report["kind"] == "dry run on a CPU" and report["goals"] == []
    rows = report["models"]["tiny"]["rows"]
    assert rows["SigSignAdamW"]["launches"] == {"friction_adam": 1}
    assert sum(rows["SigSignAdamP"]["launches"].values()) == 3
    text = (tmp_path / "dry" / "results" / "optimizers.md").read_text()
    assert "prove nothing about speed" in text and "| SigSignAdamW " in text
    assert {"optimizers.json", "optimizers.md"} <= {file.name for file in out.iterdir()}
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(summary(report).rstrip())
    assert as_markdown(report) == text


def gloss_outcome(report):
    (outcome,) = [outcome for outcome in report.outcomes if outcome.part == "gloss"]
    return outcome


def test_a_dry_run_of_gloss_writes_beside_the_results(tmp_path, monkeypatch, capsys):
    results = gpu_report.ROOT / "bench" / "results"
    before = {file: file.stat().st_mtime for file in results.rglob("*")}
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("OUT", str(out))
    arguments = ["--device", "cpu", "--only", "gloss", "--folder", str(tmp_path / "dry")]
    assert gpu_report.main(arguments) == 0
    assert {file: file.stat().st_mtime for file in results.rglob("*")} == before
    found = json.loads((tmp_path / "dry" / "results" / "gloss.json").read_text())
    assert list(found["sizes"]) == ["64"] and found["kind"] == "partial run"
    assert "ok     gloss: partial run, 1 sizes, 0 cases" in capsys.readouterr().out
    names = {file.name for file in out.iterdir()}
    assert {"gloss.json", "gloss.md", "gloss.png", "logs.txt"} < names and len(names) <= 8


def pretend_gloss(monkeypatch, **found):
    """A benchmark that writes this report and then does what `then` says."""
    then = found.pop("then", "")
    report = {"kind": "full run", "sizes": {}, "cases": {}, "left_out": [], "goals": [], **found}

    def command(device, quick, folder):
        program = f"import pathlib, sys, time; p = pathlib.Path({str(folder)!r}); p.mkdir(); "
        program += f"(p / 'gloss.json').write_text({json.dumps(report)!r}); {then}"
        return [sys.executable, "-c", program]

    monkeypatch.setattr(gpu_gloss, "benchmark", command)
    monkeypatch.setattr(gpu_gloss, "TESTS", ("--version",))


def card_report_in(folder, **options):
    report = report_in(folder, **options)
    report.dry, report.results = False, folder / "kept"
    return report


GOAL = {"goal": "N = 128: as fast", "measured": "60 times", "verdict": "met"}


def test_results_of_a_full_run_of_gloss_are_kept(tmp_path, monkeypatch):
    pretend_gloss(monkeypatch, goals=[GOAL])
    report = card_report_in(tmp_path, only=["gloss"])
    report.gloss()
    assert gloss_outcome(report).ok
    assert gloss_outcome(report).summary == "full run, 0 sizes, 0 cases; goals: 1 met"
    assert (tmp_path / "kept" / "gloss.json").exists()
    report.write()  # of optimizers nothing was measured
    (text,) = tmp_path.rglob("optimizers.md")
    assert text.parent == tmp_path / "results"
    assert "- met: G-Loss, N = 128: as fast: 60 times" in text.read_text()


@pytest.mark.parametrize(
    ("found", "said"),
    (
        ({"then": "sys.exit('no card')"}, "exit status 1; no card"),
        ({"then": "time.sleep(60)"}, "stopped after 1 s"),
        ({"cases": {"huge": {"missing": "out of memory"}}}, "huge: out of memory"),
        ({"sizes": {"128": {"missing": {"GLoss": "no"}}}}, "GLoss at N = 128: no"),
        ({"left_out": ["N = 512"]}, "left out, the time was used up: N = 512"),
    ),
)
def test_what_gloss_did_not_measure_is_said(tmp_path, monkeypatch, found, said):
    pretend_gloss(monkeypatch, kind="partial run", **found)
    monkeypatch.setattr(gpu_gloss, "LIMIT", 1 if "time.sleep" in found.get("then", "") else 60)
    report = card_report_in(tmp_path)
    report.gloss()
    assert not gloss_outcome(report).ok and said in gloss_outcome(report).summary
    assert (tmp_path / "results" / "gloss.json").exists()  # as far as it came


def test_gloss_without_results_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_gloss, "benchmark", lambda *_: [sys.executable, "-c", "pass"])
    report = report_in(tmp_path)
    report.gloss()
    assert not gloss_outcome(report).ok and "no results" in gloss_outcome(report).summary


def test_gloss_has_minutes_of_its_own(tmp_path):
    """Each budget leaves something of 8 minutes for starting and writing."""
    assert gpu_gloss.TESTS_LIMIT + gpu_gloss.LIMIT <= gpu_report.SECONDS <= 450
    assert gpu_gloss.BEGIN_WITHIN < gpu_gloss.LIMIT
    command = [*map(str, gpu_gloss.benchmark("cuda", False, tmp_path))]
    assert command[command.index("--seconds") + 1] == str(gpu_gloss.BEGIN_WITHIN)
    assert "--quick" not in command
