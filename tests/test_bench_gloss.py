"""GLoss's benchmark: that its baselines compute what GLoss computes, and what it makes of its numbers."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_cases import relative
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench is a folder, and not installed

from bench import bench_gloss, gloss_cases, gloss_measure
from bench.bench_gloss import SIZES
from bench.gloss_baselines import (
    AUTHORS,
    CONTENDERS,
    FP32,
    KEOPS,
    LEAN,
    OURS,
    Contender,
    Problem,
    Step,
    authors,
    contenders_for,
    make_problem,
)
from bench.gloss_goals import BATCH, GOALS, HUGE, LARGE, Goal, judge
from bench.gloss_measure import Limits, Times, measure, slope, why_not

by_name = {contender.name: contender for contender in CONTENDERS}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", (LEAN, FP32, OURS))
def test_contenders_compute_the_same(name):
    problem = make_problem(90, 24, 4)
    theirs, ours = Step(by_name[AUTHORS], problem), Step(by_name[name], problem)
    assert ours().item() == pytest.approx(theirs().item(), rel=1e-5)
    assert relative(ours.embeddings.grad, theirs.embeddings.grad) < 5e-5


@pytest.mark.parametrize("name", ("gloss_r8_n128", "gloss_r8_n512"))
def test_the_authors_form_is_theirs(golden_dir, name):
    golden = np.load(golden_dir / f"{name}.npz")
    embeddings = torch.from_numpy(golden["embeddings"]).double().requires_grad_()
    labels = torch.from_numpy(golden["labels"]).long()
    num_labelled, classes = int(golden["num_labelled"]), len(golden["class_weights"])
    problem = Problem(embeddings, labels, num_labelled, classes, float(golden["sigma"]))
    # The golden loss weights its classes, so the gradient is compared per document of a weighted sum.
    weight = torch.from_numpy(golden["class_weights"]).double()
    recovered = {}

    def weighted(f, truth):
        recovered["f"] = f
        return torch.nn.functional.cross_entropy(f, truth, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.gloss_baselines.cross_entropy", weighted)
        loss = authors(problem)(embeddings)
    loss.backward()
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-10)
    assert relative(recovered["f"].detach(), torch.from_numpy(golden["propagated"])) < 1e-9
    assert relative(embeddings.grad, torch.from_numpy(golden["grad_embeddings"])) < 1e-8


def test_problems_are_like_documents():
    problem = make_problem(400, 384, 8)
    z = torch.nn.functional.normalize(problem.embeddings, dim=1)
    cosine, same = z @ z.T, problem.labels[:, None] == problem.labels
    others = ~torch.eye(400, dtype=torch.bool)
    assert cosine[same & others].mean().item() == pytest.approx(0.38, abs=0.03)
    assert cosine[~same].mean().item() == pytest.approx(0.19, abs=0.03)
    assert problem.labelled.sum() == 280 and problem.labelled[:280].all()
    assert make_problem(2, 3, 8).num_labelled == 1


def test_who_is_left_out_and_why():
    contender = Contender("x", authors, power=3, bytes_per_pair=100, most_nodes=1000)
    limits = Limits(step_seconds=1, bytes=1e6)
    assert why_not(contender, 100, None, limits) is None
    assert why_not(contender, 100, (50, 0.124), limits) is None
    assert "a step would take about 1 s" in why_not(contender, 100, (50, 0.126), limits)
    assert "would need about 0 GiB" in why_not(contender, 101, None, limits)
    assert "not tried beyond N = 1,000" in why_not(contender, 2000, None, limits)
    patient = Contender("x", authors, bytes_per_pair=1, sure_up_to=100)
    assert why_not(patient, 100, (50, 1e9), limits) is None
    absent = Contender("y", authors, needs="no_such_module")
    assert why_not(absent, 2, None, limits) == "no_such_module is not installed"
    compiling = Contender("z", authors, compiles=True)
    assert "compiles" in why_not(compiling, 2, None, Limits(compiling=False))


def test_a_contender_that_fails_is_named_and_the_others_go_on():
    def broken(problem):
        raise RuntimeError("no such card\nand more")

    last = {}
    contenders = [Contender("broken", broken), by_name[OURS]]
    times = measure(contenders, make_problem(20, 8, 3), "cpu", Limits(bytes=1e9), last, 2)
    assert times.missing == {"broken": "RuntimeError: no such card"}
    assert list(times.seconds) == [OURS] and len(times.seconds[OURS]) == 2
    assert last[OURS][0] == 20 and last[OURS][1] == times.median(OURS)


def test_ratios_are_of_rounds_in_common():
    times = Times({"a": {0: 1.0, 1: 2.0, 2: 30.0}, "b": {1: 1.0, 2: 3.0, 3: 9.0}})
    assert times.ratio("a", "b") == 6.0
    assert times.quartiles("a") == [1.5, 16.0]


def test_slopes():
    assert slope([(n, 3 * n**2.5) for n in (2, 10, 64)]) == pytest.approx(2.5)
    assert slope([(64, 1.0)]) is None
    assert slope([(64, 0.0), (128, 1.0)]) is None


def report_of(**found):
    return {"device": "cpu", "sizes": {}, "memory": {}, "cases": {}, **found}


def test_goals():
    goal = Goal("cpu", "speed-up", 512, at_least=4)
    row = {"seconds": 1, "ratios": {OURS: 4.5}}
    report = report_of(sizes={"512": {"rows": {AUTHORS: row}, "missing": {}}})
    assert goal.verdict(report) == {
        "goal": "N = 512: ≥ 4 times as fast as the authors' float64 form",
        "measured": "4.5 times",
        "verdict": "met",
    }
    row["ratios"][OURS] = 3.9
    assert goal.verdict(report)["verdict"] == "missed"
    missing = report_of(sizes={"512": {"rows": {}, "missing": {AUTHORS: "too large"}}})
    assert goal.verdict(missing)["measured"] == f"{AUTHORS}: too large"
    assert goal.verdict(report_of())["verdict"] == "not measured"

    memory = Goal("cpu", "process", 20_000, at_most=1.5 * 2**30)
    assert str(memory) == "N = 20,000: the whole process ≤ 1.5 GiB"
    measured = report_of(memory={"20000": {OURS: {"process_bytes": 2**30}}})
    assert memory.verdict(measured)["verdict"] == "met"
    assert memory.verdict(measured)["measured"] == "1 GiB"


def test_goals_of_a_card():
    cases = {
        BATCH: {"launches": 1},
        LARGE: {"seconds": 0.07, "extra_bytes": 0.4e9},
        HUGE: {"missing": "out of memory"},
    }
    verdicts = judge({**report_of(cases=cases), "device": "cuda"})
    assert [v["verdict"] for v in verdicts] == [
        "met",
        "not measured",
        "missed",
        "met",
        "not measured",
    ]
    assert verdicts[-1] == {
        "goal": f"{HUGE}: runs",
        "measured": "out of memory",
        "verdict": "not measured",
    }
    assert verdicts[2]["goal"].endswith("forward and backward ≤ 60 ms")
    assert Goal("cuda", "seconds", case=HUGE).verdict({"cases": {HUGE: {"seconds": 9}}})[
        "verdict"
    ] == ("met")
    assert {goal.device for goal in GOALS} == {"cpu", "cuda"}
    named = {case.name for case in gloss_cases.CASES}
    assert all(goal.case in named for goal in GOALS if goal.case)


def test_report_of_tiny_sizes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_gloss, "FEWEST_NODES_FOR_MEMORY", 48)
    only = [contender for contender in CONTENDERS if contender.name in (OURS, AUTHORS, KEOPS)]
    monkeypatch.setattr(bench_gloss, "contenders_for", lambda device: only)
    monkeypatch.setattr(
        bench_gloss, "peak_in_process", lambda *_: {"extra_bytes": 2**20, "process_bytes": 2**28}
    )
    assert bench_gloss.main(["--quick", "--sizes", "64", "32", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "gloss.json").read_text())
    assert report["kind"] == "partial run" and list(report["sizes"]) == ["32", "64"]
    rows = report["sizes"]["64"]["rows"]
    assert set(rows) == {OURS, AUTHORS}
    assert rows[AUTHORS]["ratios"][OURS] == pytest.approx(1 / rows[OURS]["ratios"][AUTHORS], rel=1)
    assert report["sizes"]["64"]["missing"].keys() == {KEOPS}
    assert list(report["memory"]) == ["64"]
    assert math.isfinite(report["slopes"][OURS]["time"])
    assert {goal["verdict"] for goal in report["goals"]} == {"not measured"}
    text = (tmp_path / "gloss.md").read_text()
    assert (
        "## N = 64" in text and "Not measured: PyKeOps" in text and "not measured: N = 512" in text
    )
    with Image.open(tmp_path / "gloss.png") as plot:
        assert plot.format == "PNG" and min(plot.size) > 300
    assert "not measured: N = 20,000" in capsys.readouterr().out


def test_what_was_measured_is_kept_whatever_comes_then(tmp_path, monkeypatch, capsys):
    def add_size(report, nodes, quick, last):
        if nodes == 64:
            raise RuntimeError("the card is gone")
        report["sizes"][str(nodes)] = {"rows": {}, "missing": {OURS: "tried"}}

    monkeypatch.setattr(bench_gloss, "add_size", add_size)
    with pytest.raises(RuntimeError, match="the card is gone"):
        bench_gloss.gloss_report("cpu", True, tmp_path, sizes=[32, 64])
    report = json.loads((tmp_path / "gloss.json").read_text())
    assert list(report["sizes"]) == ["32"] and report["kind"] == "partial run"
    bench_gloss.gloss_report("cpu", False, tmp_path, seconds=0)
    report = json.loads((tmp_path / "gloss.json").read_text())
    assert report["kind"] == "partial run" and len(report["left_out"]) == len(SIZES["cpu"])
    assert "Left out, the time was used up: N = 64; N = 128" in (tmp_path / "gloss.md").read_text()
    assert "N = 20,000: left out, the time is used up" in capsys.readouterr().out


def test_peak_of_a_process():
    found = gloss_measure.peak_in_process(by_name[FP32], 1024, 16, 4, 1)
    # It keeps several N x N matrices of float32 for backward.
    assert 3 * 4 * 1024**2 < found["extra_bytes"] < 40 * 4 * 1024**2
    assert found["process_bytes"] > found["extra_bytes"]


def test_cases_without_a_card(monkeypatch):
    case = gloss_cases.CASES[0]
    assert gloss_cases.measure_case(case, "cpu", quick=True)["seconds"] > 0
    broken = gloss_cases.measure_case(case, "no-device")
    assert "missing" in broken
    with pytest.raises(SystemExit):
        bench_gloss.main(["--sizes", "1"])
    assert contenders_for("cpu")[0].name == OURS
