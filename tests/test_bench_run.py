"""``python -m bench``: filters, results that are kept whatever happens, goals, the page and its pictures."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench import __main__ as command
from bench import goals, loss_contenders, machine, records, report, runner
from bench.contenders import ADAMW_FUSED
from bench.gloss_contenders import AUTHORS, OURS
from bench.goals import GOALS, Goal, judge, of_graph
from bench.list_contenders import entries_of
from bench.records import ROOT
from bench.scenarios import SUITES, scenarios_of

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]

HEAD = {"device": "a machine", "kind": "cpu", "torch threads": 1, "copy_gb_s": 10.0}


@pytest.fixture
def quick_machine(monkeypatch):
    """Measuring what the machine can do takes seconds."""
    monkeypatch.setattr(machine, "record", lambda device: dict(HEAD))


def options(*arguments):
    return command.run_parser().parse_args(list(arguments))


def picked(suite, *arguments):
    return {s.name: s for s in runner.pick(suite, options(suite, *arguments))}


def names(scenario):
    return [contender.name for contender in scenario.contenders]


def test_what_is_run_without_filters():
    chosen = picked("optimizers")
    assert list(chosen)[:3] == ["vit_b_16 float32", "resnet50 float32", "tiny float32"]
    assert {"gpt2 float32", "llama_1b float32", "vit_b_16 bfloat16"} < set(chosen)
    assert "resnet50 bfloat16" not in chosen and "llama_1b_4_of_16_layers float32" not in chosen
    assert options().suites == ["optimizers", "scale", "gloss", "lists", "host", "plan"]


def test_filters_choose_scenarios():
    parts = picked("optimizers", "--models", "llama_1b_4_of_16_layers")
    assert list(parts) == ["llama_1b_4_of_16_layers float32"]
    of_bf16 = picked("optimizers", "--models", "resnet50", "--dtypes", "bfloat16")
    assert list(of_bf16) == ["resnet50 bfloat16"]
    assert list(picked("optimizers", "--dtypes", "bfloat16")) == ["vit_b_16 bfloat16"]
    assert list(picked("gloss", "--nodes", "100")) == ["N = 100, d = 384, C = 8, fp32"]
    assert not picked("gloss", "--dtypes", "bf16")
    assert not picked("optimizers", "--models", "no_such_model")


def test_filters_choose_contenders():
    few = ["--contenders", "rsgdm", "fused", "copy"]
    vit = names(picked("optimizers", *few)["vit_b_16 float32"])
    assert {"RSGDM", "torch SGD nesterov fused", "copy", ADAMW_FUSED} <= set(vit)
    assert "SigSignAdamW" not in vit
    (scale,) = picked("scale", "--contenders", "SigSignAdamW 8bit").values()
    assert names(scale) == ["SigSignAdamW 8bit"]  # a whole name
    (scale,) = picked("scale", "--contenders", "gnAdamW 8bit").values()
    assert names(scale) == ["SigSignAdamW 8bit", "SigSignAdamW 8bit, max_grad_norm"]
    assert not picked("optimizers", "--contenders", "fused")  # nobody of ours


def test_filters_that_leave_nothing_are_told(capsys):
    assert command.main(["run", "optimizers", "--models", "no_such_model"]) == 2
    assert "nothing of optimizers is left" in capsys.readouterr().out
    for wrong, said in (
        (["no-such-suite"], "no suite is called no-such-suite"),
        (["gloss", "--nodes", "1"], "at least two nodes"),
    ):
        with pytest.raises(SystemExit):
            command.main(["run", *wrong])
        assert said in capsys.readouterr().err


def test_list_names_everything_and_why_what_is_absent_is_absent(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optimi", None)
    assert command.main(["list"]) == 0
    printed = capsys.readouterr().out
    for name, suite in SUITES.items():
        assert f"{name}: {suite.what}" in printed
        for scenario in scenarios_of(name, "cpu"):
            assert f"| {scenario.name} " in printed
            assert all(f"| {c.name} " in printed for c in scenario.contenders)
    assert re.search(r"\| optimi.AdamW +\| +ModuleNotFoundError: import of optimi halted", printed)
    assert re.search(r"\| torch AdamW fused +\| +here", printed)


def test_results_and_page_of_a_run(tmp_path, quick_machine, capsys):
    out = ["--quick", "--out", str(tmp_path)]
    run = ["run", "optimizers", "host", "--contenders", "RSGDM", "fused"]
    assert command.main([*run, *out]) == 0
    found = json.loads((tmp_path / "optimizers.json").read_text())
    assert found["schema"] == records.SCHEMA and found["kind"] == "partial run"
    assert found["machine"] == HEAD
    assert found["arguments"]["contenders"] == ["RSGDM", "fused"]
    (plain, half) = found["scenarios"]
    assert (plain["name"], half["name"]) == ("miniature float32", "miniature bfloat16")
    assert plain["rows"]["RSGDM"]["launches"] == {"sgd": 1}
    assert {goal["verdict"] for goal in found["goals"]} == {"not measured"}
    printed = capsys.readouterr().out
    assert "optimizers: miniature float32: RSGDM" in printed and "min left" in printed

    few = ["--contenders", OURS, "dense fp32, e", "--nodes", "32", "64"]
    command.main(["run", "gloss", *few, *out])
    assert command.main(["report", str(tmp_path)]) == 0
    page = (tmp_path / "report.md").read_text()
    headings = "# Benchmarks on a machine", "## Goals", "## optimizers", "## gloss", "### N = 64, d"
    assert all(f"\n{heading}" in f"\n{page}" for heading in headings)
    assert re.search(r"\| RSGDM .*torch SGD nesterov fused .*1 launches", page)
    assert "exponent of N, fitted" in page
    for name in ("step-miniature-float32", "gloss-time"):
        assert f"]({name}.png)" in page
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG" and picture.width == 700


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_done(tmp_path):
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    run = "-m bench run host --models vectors_10 vectors_10000 --contenders RSGDM fused --threads 1"
    process = subprocess.Popen(
        [sys.executable, *run.split(), "--repeats", "1000000", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("host: vectors_10000"):  # the first is done, the second begins
            time.sleep(1)
            process.send_signal(signal.SIGINT)
    assert process.wait(60) == runner.INTERRUPTED
    assert printed[-2:] == ["stopped\n", f"host is kept in {tmp_path / 'host.json'}\n"]
    found = json.loads((tmp_path / "host.json").read_text())
    assert [s["name"] for s in found["scenarios"]] == ["vectors_10 float32"]
    assert found["kind"] == "partial run" and found["machine"]["copy_gb_s"] > 0
    assert set(found["scenarios"][0]["rows"]) >= {"RSGDM", ADAMW_FUSED}
    assert not list(tmp_path.glob("*.part"))


def test_a_scenario_that_fails_is_named_and_the_rest_goes_on(tmp_path, quick_machine, monkeypatch):
    def measure(scenario, *_):
        if scenario.model == "vectors_100":
            raise RuntimeError("the card is gone\nand more")
        return {"rows": {}, "missing": {}}

    monkeypatch.setattr(runner, "measurer", lambda suite: measure)
    assert command.main(["run", "host", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "host.json").read_text())
    skipped = {s["name"]: s["skipped"] for s in found["scenarios"]}
    assert skipped["vectors_100 float32"] == "RuntimeError: the card is gone"
    assert skipped["vectors_10 float32"] == "nobody could be measured"
    assert len(skipped) == len(scenarios_of("host", "cpu"))


def test_nothing_is_begun_when_time_is_up(tmp_path, quick_machine, monkeypatch):
    monkeypatch.setattr(runner, "measurer", lambda suite: pytest.fail)
    assert command.main(["run", "host", "--seconds", "0", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "host.json").read_text())
    assert {s["skipped"] for s in found["scenarios"]} == {records.TIME_IS_UP}
    assert found["kind"] == "partial run"


@pytest.mark.parametrize(
    "narrowing",
    (["--models", "vectors_10"], ["--quick"], ["--repeats", "3"], ["--contenders", "R"]),
)
def test_only_a_whole_run_is_called_full_and_kept_with_the_project(
    tmp_path, quick_machine, monkeypatch, narrowing
):
    kept = Path(machine.slug()) / "host.json"

    def measure(scenario, *_):
        # Until the last scenario is done, nothing lies where whole results do.
        assert not (tmp_path / "bench" / "results" / kept).exists()
        return {"tables": [{"header": ["a", "b"], "rows": [["1", "2"]]}]}

    monkeypatch.setattr(runner, "measurer", lambda suite: measure)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    command.main(["run", "host", *narrowing])
    partial = json.loads((tmp_path / "build" / "bench" / "host.json").read_text())
    command.main(["run", "host", "--threads", "1"])
    full = json.loads((tmp_path / "bench" / "results" / kept).read_text())
    assert (partial["kind"], full["kind"]) == ("partial run", "full run")
    assert len(full["scenarios"]) == len(scenarios_of("host", "cpu"))


def test_a_killed_write_leaves_the_last_results(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    records.save({"schema": 1, "x": 1 / 3}, path)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        records.save({"schema": 1, "x": 2}, path)
    assert records.load(path) == {"schema": 1, "x": 0.333333}


def test_results_of_another_schema_are_refused(tmp_path):
    (tmp_path / "host.json").write_text('{"schema": 0}')
    with pytest.raises(ValueError, match="has schema 0, and this reads 1; measure anew"):
        report.read(tmp_path)
    with pytest.raises(SystemExit, match="holds no results"):
        command.main(["report", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "bench" / "results").iterdir()), ids=lambda f: f.name
)
def test_the_page_with_the_project_is_that_of_its_results(folder):
    reports, page = report.read(folder), (folder / "report.md").read_text()
    pictures = dict(re.findall(r"^!\[(.*)\]\((.*)\)$", page, re.MULTILINE))
    assert page == report.page_of(reports, pictures)
    assert pictures and all((folder / picture).exists() for picture in pictures.values())


# Goals.


def report_of(suite, rows, scenario, device="cpu", **found):
    one = {"name": scenario, "rows": rows, "missing": {}, "parameters": 1000, **found}
    return {"suite": suite, "machine": {"kind": device}, "scenarios": [one]}


def verdict(goal, rows, **found):
    said = goal.verdict(report_of(goal.suite, rows, goal.scenario, **found))
    return said["verdict"], said["measured"]


def test_goals_are_met_missed_or_not_measured():
    ratio = Goal("optimizers", "cpu", "vit", "A", "B", at_most=1.0)
    rows = {
        "A": {"seconds": 2.0, "ratios": {"B": 1.01}, "host_seconds": 1.0},
        "B": {"host_seconds": 4.0},
    }
    assert verdict(ratio, rows) == ("missed", "1.01 times")
    assert str(ratio) == "vit: A / B ≤ 1 times"
    host = Goal("optimizers", "cpu", "vit", "A", "B", at_most=0.5, of="host time")
    assert verdict(host, rows) == ("met", "0.25 times")
    seconds = Goal("optimizers", "cpu", "vit", "A", at_most=500e-6)
    assert verdict(seconds, {"A": {"seconds": 723e-6}}) == ("missed", "723 µs")
    share = Goal("optimizers", "cpu", "vit", "A", at_least=0.92, of="share of copy")
    assert verdict(share, {"A": {"share_of_copy": 0.93}}) == ("met", "93.0% of copy")
    assert verdict(ratio, {}, missing={"B": "B is absent"}) == ("not measured", "B: B is absent")
    assert verdict(ratio, {}, skipped="needs 9 GiB") == ("not measured", "needs 9 GiB")
    assert ratio.verdict({"scenarios": []})["measured"] == "vit was not run"


def test_goals_of_memory_and_added_work():
    added = Goal("scale", "cpu", "vit", "A", "B", at_most=0.6, of="added time")
    rows = {"A": {"added_seconds": 2.0}, "B": {"added_seconds": 3.0}}
    assert verdict(added, rows) == ("missed", "0.667 times")
    rows["B"]["added_seconds"] = -1.0  # noise is no ratio
    assert verdict(added, rows)[0] == "not measured"
    kept = Goal("scale", "cpu", "vit", "A", at_most=7.2, of="memory")
    assert verdict(kept, {"A": {"memory": {"in all": 7.05}}}) == ("met", "7.05 bytes a parameter")
    traffic = Goal("scale", "cuda", "vit", "A", at_most=4.2, of="added traffic")
    rows = {"A": {"added_seconds": 1e-6}, "copy": {"gb_s": 4.0}}
    assert verdict(traffic, rows) == ("met", "4.00 bytes a parameter")
    process = Goal("gloss", "cpu", "N", OURS, at_most=1.5 * goals.GIB, of="process memory")
    assert verdict(process, {OURS: {"process_bytes": 2**30}}) == ("met", "1 GiB")
    runs = Goal("gloss", "cuda", "N", OURS, of="runs")
    assert verdict(runs, {OURS: {"seconds": 9.0}})[0] == "met"
    launches = Goal("gloss", "cuda", "N", OURS, at_most=1, of="launches")
    assert verdict(launches, {OURS: {"launches": {"batch": 1}}}) == ("met", "1")


def test_every_goal_is_of_what_is_measured():
    for goal in GOALS:
        found = {s.name: s for s in scenarios_of(goal.suite, goal.device) if s.default}
        assert goal.scenario in found, goal
        contenders = {c.name for c in found[goal.scenario].contenders}
        if goal.suite == "lists":
            contenders = {entry.name for entry in entries_of([[torch.ones(2)]] * 5)}
        elif goal.suite == "losses":
            given = loss_contenders.Given.of(loss_contenders.MINIATURE, "cpu", torch.float32)
            entries, missing = loss_contenders.entries_of(goal.scenario, given, "cpu")
            contenders = {entry.name for entry in entries} | missing.keys()
        assert {goal.contender, goal.against or goal.contender} <= contenders, goal


def test_a_report_is_judged_by_its_own_goals():
    rows = {AUTHORS: {"seconds": 1.0, "ratios": {OURS: 4.5}}, OURS: {"seconds": 1.0, "ratios": {}}}
    found = judge(report_of("gloss", rows, of_graph(512)))
    assert len(found) == sum(g.suite == "gloss" and g.device == "cpu" for g in GOALS)
    met = [each for each in found if each["verdict"] == "met"]
    assert [each["measured"] for each in met] == ["4.5 times"]


# Numbers of the pictures.


def test_curves_are_of_one_shape():
    def graph(nodes, dim=384):
        shape = {"nodes": nodes, "dim": dim, "classes": 8, "precision": "fp32"}
        return {"name": of_graph(nodes, dim), **shape, "rows": {OURS: {}}}

    found = records.full_graphs({"scenarios": [graph(128), graph(64), graph(64, dim=768)]})
    assert [s["nodes"] for s in found] == [64, 128]


def test_slopes():
    assert records.slope([(n, 3 * n**2.5) for n in (2, 10, 64)]) == pytest.approx(2.5)
    assert records.slope([(64, 1.0)]) is None
    assert records.slope([(64, 0.0), (128, 1.0)]) is None
