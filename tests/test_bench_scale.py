"""The benchmark of training at scale: a miniature run of it, and what it makes of its numbers."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # bench is a folder, and not installed

import friction_kernels as fk
from bench import bench_scale, gpu_scale, scale_contenders, scale_memory
from bench.gpu_contenders import ADAMW_FUSED, COPY
from bench.scale_contenders import (
    ALL_8BIT,
    CLIPPED,
    CLIPPED_BEFORE,
    CLIPPED_UNSCALED,
    GRAD_8BIT,
    PLAIN,
    SPLIT,
    VARIANTS,
    variants_for,
)
from bench.scale_goals import GOALS, MODEL, judge
from bench.scale_text import as_markdown


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:
        # What compiles takes a minute, and peers are not what is tested.
        mine = [variant for variant in VARIANTS if not variant.contender.needs]
        absent = scale_contenders.peer("absent", "no_such_module.optim", "Adam")
        patch.setattr(scale_contenders, "VARIANTS", [*mine, absent])
        assert bench_scale.main(["--quick", "--out", str(folder)]) == 0
    found = json.loads((folder / "scale.json").read_text())
    assert (folder / "scale.md").read_text() == as_markdown(found)
    return found


def test_every_variant_is_measured_and_who_is_absent_named(report):
    assert report["missing"] == {"absent": "no_such_module is not installed"}
    ours = {v.name for v in variants_for("cpu") if not v.contender.needs}
    assert set(report["rows"]) == ours and COPY not in ours
    assert report["kind"] == "partial run" and report["model"] == "miniature"
    assert {goal["verdict"] for goal in report["goals"]} == {"not measured"}
    assert "Not measured: absent (no_such_module is not installed)" in as_markdown(report)


@pytest.mark.parametrize(
    ("variant", "kept", "launches"),
    [
        (PLAIN, 16, 1),
        (ALL_8BIT, 4 + 3 * (1 + 4 / 256), 1),
        (GRAD_8BIT, 12 + 1 + 4 / 256, 1),
        (CLIPPED_UNSCALED, 16, 2),
        (SPLIT, 4 + 3 * (1 + 4 / 256), 1),
    ],
)
def test_what_is_kept_and_moved_is_what_is_meant(report, variant, kept, launches):
    row = report["rows"][variant.name]
    assert row["memory"]["in all"] == pytest.approx(kept, rel=0.01)  # small tensors stay in float32
    assert sum(row["launches"].values()) == launches
    grads = variant.gradients * variant.dtype.itemsize
    moved = (2 * row["memory"]["in all"] + grads) * report["parameters"]
    assert row["bytes"] == pytest.approx(moved)


def test_peaks_hold_what_is_kept(report):
    rows = report["rows"].values()
    peaks = [row for row in rows if "peak_bytes" in row]
    assert len(peaks) in (0, len(rows))  # Linux tells them
    assert all(row["peak_bytes"] > row["memory"]["parameter"] for row in peaks)


def test_bytes_of_peers_states_are_counted():
    """As those are that bitsandbytes, torchao and flashoptim keep."""

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.codes, self.scales = torch.zeros(8, dtype=torch.uint8), torch.zeros(2)

        def __tensor_flatten__(self):
            return ["codes", "scales"], None

    class Holder:
        def __init__(self):
            self._data, self._quantized = None, torch.zeros(8, dtype=torch.int8)

    params = [torch.zeros(8), torch.zeros(8)]
    opt = torch.optim.SGD(params)
    table = torch.zeros(4)
    for param in params:
        opt.state[param] = {"step": 3, "table": table, "m": Two(), "v": Holder()}
    report = scale_memory.memory_of(opt)
    assert report.sizes == {"parameter": 64, "table": 16, "m": 32, "v": 16}


def rows_with(**seconds):
    names = {
        "alone": PLAIN,
        "eight": ALL_8BIT,
        "grad": GRAD_8BIT,
        "inside": CLIPPED,
        "unscaled": CLIPPED_UNSCALED,
        "before": CLIPPED_BEFORE,
        "split": SPLIT,
    }
    return {names[key].name: row for key, row in seconds.items()}


def verdicts(device, rows):
    found = judge({"device": device, "model": MODEL, "rows": rows, "missing": {}})
    return [(goal["verdict"], goal["measured"]) for goal in found]


def test_goals_of_a_processor():
    rows = rows_with(
        eight={"ratios": {PLAIN.name: 0.97}},
        inside={"added_seconds": 2.0},
        before={"added_seconds": 3.0},
        split={"memory": {"in all": 7.05}},
    )
    assert verdicts("cpu", rows) == [
        ("met", "0.97x"),
        ("missed", "0.667x"),
        ("met", "7.05 bytes a parameter"),
    ]
    rows[CLIPPED_BEFORE.name]["added_seconds"] = -1.0  # noise is no ratio
    assert verdicts("cpu", rows)[1][0] == "not measured"


def test_goals_of_a_card():
    rows = rows_with(
        eight={"ratios": {ADAMW_FUSED: 0.76}},
        grad={"ratios": {ADAMW_FUSED: 1.08}},
        unscaled={"added_bytes": 4.1},
        split={"memory": {"in all": 7.3}},
    )
    assert [verdict for verdict, _ in verdicts("cuda", rows)] == ["missed", "met", "met", "missed"]


def test_goals_are_of_what_is_measured():
    for device, goals in GOALS.items():
        names = {variant.name for variant in variants_for(device)}
        assert all({goal.contender, goal.against or goal.contender} <= names for goal in goals)


def test_added_time_is_of_the_same_rounds_and_becomes_traffic():
    scale = bench_scale.Scale("cpu", "miniature", quick=True, seconds=60)
    alone = dict(enumerate([1.0, 2.0, 9.0]))
    times = {PLAIN.name: alone, CLIPPED.name: {0: 1.5, 1: 2.7, 3: 100.0}}
    found = scale.added(CLIPPED, times, bandwidth=10.0 * scale.parameters)
    assert found["added_seconds"] == pytest.approx(0.6)
    assert found["added_bytes"] == pytest.approx(6.0)


def test_a_first_step_that_takes_too_long_is_given_up():
    def slow(params):
        time.sleep(20)

    contender = scale_contenders.Contender("slow", slow, ("", ""), needs="math")
    scale = bench_scale.Scale("cpu", "miniature", quick=True, seconds=0.5)
    begin = time.monotonic()
    scale.enter(scale_contenders.Variant(contender))
    assert time.monotonic() - begin < 10
    assert "took more than" in scale.missing["slow"]
    time.sleep(0.5)
    scale.enter(scale_contenders.Variant(contender))
    assert scale.missing["slow"] == "the time was used up"


# Its part of the GPU report.


def test_the_report_runs_it_within_its_time(tmp_path):
    assert gpu_scale.BEGIN_WITHIN < gpu_scale.LIMIT <= 90
    command = [*map(str, gpu_scale.benchmark("cuda", False, tmp_path))]
    assert "--quick" not in command
    assert command[command.index("--seconds") + 1] == str(gpu_scale.BEGIN_WITHIN)
    assert "--quick" in gpu_scale.benchmark("cpu", False, tmp_path)


def test_what_of_ours_was_not_measured_is_a_fault(report):
    assert gpu_scale.faults(report) == []  # a peer may be missing
    failed = {**report, "missing": {SPLIT.name: "out of memory"}}
    assert gpu_scale.faults(failed) == [f"{SPLIT.name}: out of memory"]
    assert gpu_scale.summary(failed).endswith(
        "goals: 3 not measured; " + gpu_scale.faults(failed)[0]
    )
    assert gpu_scale.goals(report)[0]["goal"].startswith("at scale, vit_b_16: ")


def test_optimizers_that_share_states_step_on():
    """The benchmark gives all the same moments, whatever else they keep."""
    scale = bench_scale.Scale("cpu", "miniature", quick=True, seconds=60)
    for variant in (PLAIN, GRAD_8BIT):
        scale.enter(variant)
    plain, grad = (scale.entries[variant] for variant in (PLAIN, GRAD_8BIT))
    states = [entry.opt.state[entry.params[0]] for entry in (plain, grad)]
    assert states[0]["exp_avg"] is states[1]["exp_avg"]
    assert states[1]["prev_grad"].dtype == torch.uint8
    assert isinstance(plain.opt, fk.SigSignAdamW)
