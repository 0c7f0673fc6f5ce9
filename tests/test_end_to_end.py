"""The end-to-end benchmark: that its comparisons are fair, its intervals right, and that it runs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from argparse import ArgumentParser
from functools import partial
from pathlib import Path

import pytest
import torch
from scipy import stats
from tiny_trainings import tiny_trainings

import friction_kernels as fk
from bench import end_to_end
from bench.end_to_end_optimizers import (
    ADAMW,
    ADAMW_FUSED,
    RSGDM,
    SGD_FUSED,
    SGD_NESTEROV,
    TIMED,
    TRAINED,
    with_friction,
)
from bench.end_to_end_statistics import interval, paired
from bench.end_to_end_summary import MEASURES, against_adamw, chosen_rate, summary
from bench.end_to_end_tasks import TASKS
from bench.end_to_end_text import as_markdown
from bench.end_to_end_training import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def miniature():
    with tiny_trainings():
        yield


def curve(task, entrant, rate, seed=0, steps=8, **options):
    return train(task, partial(entrant.build, rate=rate), seed, steps, **options).curve


@pytest.mark.parametrize("task", TASKS)
def test_all_optimizers_start_alike_and_see_the_same_batches(task):
    """At a rate of zero nothing is learnt, so losses tell weights and batches, to the bit."""
    curves = {name: curve(task, entrant, 0.0, seed=3) for name, entrant in TRAINED.items()}
    assert all(each == curves[ADAMW] for each in curves.values())
    assert len(set(curves[ADAMW])) > 1
    assert curve(task, TRAINED[ADAMW], 0.0, seed=4) != curves[ADAMW]


@pytest.mark.parametrize("task", TASKS)
def test_rsgdm_is_nesterov_momentum(task):
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.float64, 1e-11)):
        rsgdm, nesterov = (
            curve(task, TRAINED[name], 0.03, dtype=dtype) for name in (RSGDM, SGD_NESTEROV)
        )
        assert rsgdm == pytest.approx(nesterov, rel=tolerance)
        assert nesterov[-1] < nesterov[0]


@pytest.mark.parametrize("kind", [fk.SigSignAdamW, fk.TanhSignAdamW])
def test_rates_mean_the_same_step_where_friction_does_nothing(kind):
    without = with_friction(kind, beta3=0.0)
    adamw = curve("ViT on digits", TRAINED[ADAMW], 3e-3)
    assert curve("ViT on digits", without, 3e-3) == pytest.approx(adamw, rel=1e-5)


def test_every_optimizer_has_as_many_tries():
    assert len({len(entrant.rates) for entrant in TRAINED.values()}) == 1


@pytest.mark.parametrize("values", [[1.0, 2.0], [0.3, 0.1, 0.4, 0.15, 0.92], [5.0, 5.0, 5.5]])
def test_intervals_are_those_of_scipy(values):
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean, half = interval(values)
    assert (mean - half, mean + half) == pytest.approx(tuple(expected))
    others = [value**2 for value in reversed(values)]
    expected = stats.ttest_rel(values, others).confidence_interval(0.95)
    mean, half = paired(dict(enumerate(values)), dict(enumerate(others)))
    assert (mean - half, mean + half) == pytest.approx(tuple(expected))


def test_of_one_seed_there_is_no_interval():
    mean, half = interval([2.5])
    assert mean == 2.5 and math.isnan(half)


def test_what_diverges_is_neither_chosen_nor_averaged():
    diverged = train("ViT on digits", partial(TRAINED[SGD_NESTEROV].build, rate=1e20), 0, 8)
    assert math.isnan(diverged.training_loss) and math.isnan(diverged.accuracy)

    def training(rate, seed, loss):
        values = dict.fromkeys(MEASURES, loss)
        return {"task": "ViT on digits", "optimizer": ADAMW, "rate": rate, "seed": seed, **values}

    trainings = [training(0.3, 0, math.nan), training(0.1, 1, 2.0), training(0.2, 2, 3.0)]
    assert chosen_rate(trainings, "ViT on digits", ADAMW) == 0.1
    row = summary(trainings)["ViT on digits"][ADAMW]
    assert row["seeds"] == 3 and row["diverged"] == 1
    assert row["test_loss"] == pytest.approx(interval([2.0, 3.0]))


def test_better_and_worse_are_said_only_where_the_interval_does_not_hold_zero():
    differences = {"A": (-0.2, 0.1), "B": (0.2, 0.1), "C": (0.2, 0.3), "D": (-0.2, math.nan)}
    rows = {name: {"test_loss_less_adamw": pair} for name, pair in differences.items()}
    found = against_adamw({ADAMW: {}, "E": {}, **rows})
    assert found == {"better": ["A"], "worse": ["B"], "not told apart": ["E", "C", "D"]}


@pytest.fixture(scope="module")
def quick_run(miniature, tmp_path_factory):
    folder = tmp_path_factory.mktemp("end_to_end")
    parser = ArgumentParser()
    end_to_end.add_arguments(parser)
    end_to_end.run(parser.parse_args(["--quick", "--workers", "1"]), folder)
    return folder, json.loads((folder / "end_to_end.json").read_text())


def test_every_optimizer_trains_at_its_best_rate_on_seeds_that_the_search_has_not_seen(quick_run):
    _, report = quick_run
    assert report["kind"] == "quick run" and report["machine"]["copy_gb_s"] > 0
    assert len(report["search"]) == sum(len(e.rates) for e in TRAINED.values()) * len(TASKS)
    searched = {training["seed"] for training in report["search"]}
    for task in TASKS:
        for name in TRAINED:
            runs = [t for t in report["trainings"] if (t["task"], t["optimizer"]) == (task, name)]
            assert sorted(t["seed"] for t in runs) == [0, 1] and not searched & {0, 1}
            assert {t["rate"] for t in runs} == {chosen_rate(report["search"], task, name)}
            measured = report["summary"][task][name]["test_loss"]
            assert measured == pytest.approx(interval([t["test_loss"] for t in runs]), abs=1e-3)
        starts = {(t["seed"], t["first_loss"]) for t in report["trainings"] if t["task"] == task}
        assert len(starts) == 2  # one start a seed


def test_step_times_are_whole_and_against_torchs_fused(quick_run):
    _, report = quick_run
    (timed,) = report["step_times"].values()
    assert timed["rows"].keys() == TIMED.keys()
    for name, row in timed["rows"].items():
        assert row["against"] == (SGD_FUSED if "SGD" in name else ADAMW_FUSED)
        assert 0 < row["share"] < 1
        assert row["step"]["median"] > row["optimizer"]["median"] > 0
    for name in (ADAMW_FUSED, SGD_FUSED):
        assert timed["rows"][name]["step_ratio"] == timed["rows"][name]["optimizer_ratio"] == 1


def test_the_page_tells_what_is_in_the_file(quick_run):
    folder, report = quick_run
    page = (folder / "end_to_end.md").read_text()
    assert page == as_markdown(report) and "nan" not in page
    for task in TASKS:
        assert f"- {task}, float64: " in page
        assert report["rsgdm_apart"]["float64"][task][1] < 1e-11
    for name in (*TASKS, *TRAINED, *TIMED, "RSGDM is Nesterov momentum in other clothes"):
        assert name in page
    for picture in ("end_to_end.png", "end_to_end_steps.png"):
        assert f"({picture})" in page and (folder / picture).exists()


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_finished(tmp_path):
    command = [sys.executable, "-m", "bench.end_to_end", "--quick", "--out", str(tmp_path)]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    path = tmp_path / "end_to_end.json"
    try:
        while not (path.exists() and len(json.loads(path.read_text())["search"]) >= 2):
            assert process.poll() is None
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
        _, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0 and "stopped: what was finished is kept" in errors
    report = json.loads(path.read_text())
    assert report["kind"] == "partial run" and report["step_times"]
    assert len(report["search"]) >= 2 and not report["trainings"]
    assert (tmp_path / "end_to_end.md").read_text() == as_markdown(report)
