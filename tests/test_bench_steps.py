"""The benchmark of steps: miniature runs of it, and that what it says of bytes, memory and counts is so."""

import time
from dataclasses import replace

import pytest
import torch

import friction_kernels as fk
from bench import contenders, counting, memory, peers, rounds, steps
from bench.contenders import ADAMW_FOR_LOOP, ADAMW_FUSED, COPY, EAGER_ADAMW, EAGER_RSGDM, OPTIMIZERS
from bench.entries import Entry, Pool, tensors_of
from bench.peers import peer, why_not_importable
from bench.rounds import Clock, Times, measure
from bench.scenarios import StepScenario, miniature, scenarios_of
from bench.shapes import MODELS, vectors
from bench.states import ALL_8BIT, CLIPPED, CLIPPED_UNSCALED, GRAD_8BIT, PLAIN, SPLIT, WAYS
from bench.steps import Field, measure_steps

by_name = {c.name: c for c in (*OPTIMIZERS, *WAYS, *peers.OF_OPTIMIZERS)}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def measured(*chosen, seconds=60.0, **options):
    scenario = StepScenario("miniature", chosen, rounds=2, seconds=5, **options)
    deadline = time.monotonic() + seconds
    return measure_steps(scenario, "cpu", None, deadline, lambda share: None)


@pytest.fixture(scope="module")
def ways():
    """The suite `scale` in miniature, without peers: what compiles takes a minute."""
    torch.set_num_threads(1)
    mine = [way for way in WAYS if not way.needs]
    return measured(*mine, peer("absent", "no_such_module.optim", "Adam"), seconds=300)


def test_every_way_is_measured_and_who_is_absent_named(ways):
    assert ways["missing"] == {"absent": "ModuleNotFoundError: No module named 'no_such_module'"}
    assert set(ways["rows"]) == {way.name for way in WAYS if not way.needs}
    assert all(row["seconds"] > 0 and row["rounds"] for row in ways["rows"].values())
    # Operations of a step do not depend on how its states are kept.
    friction = {row["flops"] for row in ways["rows"].values() if row.get("ours")}
    assert len(friction) == 1 and friction.pop() / ways["parameters"] == pytest.approx(22, abs=0.1)


@pytest.mark.parametrize(
    ("way", "kept", "gradients", "launches"),
    [
        (PLAIN, 16, 4, 1),
        (ALL_8BIT, 4 + 3 * (1 + 4 / 256), 4, 1),
        (GRAD_8BIT, 12 + 1 + 4 / 256, 4, 1),
        (CLIPPED_UNSCALED, 16, 8, 2),
        (SPLIT, 4 + 3 * (1 + 4 / 256), 2, 1),
    ],
)
def test_what_is_kept_and_moved_is_what_is_meant(ways, way, kept, gradients, launches):
    row = ways["rows"][way.name]
    assert row["memory"]["in all"] == pytest.approx(kept, rel=0.01)  # small tensors stay in float32
    assert sum(row["launches"].values()) == launches
    moved = (2 * row["memory"]["in all"] + gradients) * ways["parameters"]
    assert row["bytes"] == pytest.approx(moved, rel=1e-3)  # but for the steps' numbers


def test_peaks_hold_what_is_kept(ways):
    rows = [row for name, row in ways["rows"].items() if name != COPY]
    peaks = [row["peak_bytes"] / ways["parameters"] for row in rows if "peak_bytes" in row]
    assert len(peaks) in (0, len(rows))  # Linux tells them
    assert all(peak > row["memory"]["parameter"] for peak, row in zip(peaks, rows, strict=False))


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        (ADAMW_FUSED, "cpu", 28),
        ("SigSignAdamW", "cpu", 36),
        ("RSGDM", "cpu", 20),
        ("torch SGD nesterov fused", "cpu", 20),
        ("SigSignAdamP", "cpu", 44),
        ("SigSignAdamP", "cuda", 56),
        (peers.ADAMP, "cpu", 36),
    ],
)
def test_bytes_of_a_step(name, device, expected):
    entry = Entry(by_name[name], tensors_of([(400, 50)], "cpu", torch.float32), Pool())
    assert entry.moved(device) / 20_000 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "operations"),
    [
        # v = b v + (1 - b) g: 3; m - m_old and its average: 4; m + b z: 2; p - lr u: 2.
        (EAGER_RSGDM, 11),
        # m: 3; v: 4; m^, v^: 2; x: 1; b3 x, sigmoid: 5; S m^ / (sqrt + eps): 4; decay: 1; p - lr u: 2.
        (EAGER_ADAMW, 22),
        # decay: 1; m: 3; v: 4; root, quotient, eps: 3; p + m / d: 3.
        (ADAMW_FOR_LOOP, 14),
    ],
)
def test_operations_of_a_step_are_those_of_its_equations(name, operations):
    found = counting.arithmetic_per_parameter(by_name[name].build, (64, 64))
    assert found == pytest.approx(operations, abs=0.01)


def test_what_cannot_be_counted_is_not_guessed():
    for name in ("SigSignAdamW", ADAMW_FUSED):
        with pytest.raises(counting.UncountableError):
            counting.arithmetic_per_parameter(by_name[name].build, (8, 8))


def test_operators_and_launches():
    rows = measured(by_name[ADAMW_FUSED], by_name[ADAMW_FOR_LOOP], by_name["SigSignAdamP"])["rows"]
    assert rows[ADAMW_FUSED]["operators"] < rows[ADAMW_FOR_LOOP]["operators"] / 5
    assert sum(rows["SigSignAdamP"]["launches"].values()) == 3
    assert "operators" not in rows["SigSignAdamP"]


def test_contenders_that_are_said_to_be_equal_are_compared():
    fused = by_name[ADAMW_FUSED]
    loop = replace(by_name[ADAMW_FOR_LOOP], equals=ADAMW_FUSED)
    double = contenders.adamw("twice the rate", fused=True)
    double = replace(
        double, equals=ADAMW_FUSED, build=contenders.optimizer(torch.optim.AdamW, lr=2e-3)
    )
    rows = measured(fused, loop, double)["rows"]
    assert rows[ADAMW_FOR_LOOP]["equals"] == ADAMW_FUSED
    assert rows[ADAMW_FOR_LOOP]["difference"] < 1e-5
    assert rows["twice the rate"]["difference"] == pytest.approx(1, rel=0.01)


def test_named_contenders_exist():
    """Those that another is compared with, counted as or added to."""
    for device in ("cpu", "cuda"):
        for suite in ("optimizers", "scale", "host"):
            for scenario in scenarios_of(suite, device):
                here = {c.name for c in scenario.contenders}
                counted = here | {c.name for c in contenders.COUNTED} | {EAGER_ADAMW}
                assert len(here) == len(scenario.contenders), "two of the same name"
                for contender in scenario.contenders:
                    assert {contender.equals, contender.alone} - {None} <= here
                    if suite == "optimizers":
                        assert {contender.plain} - {None} <= counted, contender.name


def test_models_have_the_parameters_they_say():
    for model in MODELS.values():
        model.check()
    assert len(vectors(7)) == 7


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
    report = memory.memory_of(opt)
    assert report.sizes == {"parameter": 64, "table": 16, "m": 32, "v": 16}


def test_added_time_is_of_the_same_rounds():
    field = Field(StepScenario("miniature", (PLAIN, CLIPPED)), "cpu", time.monotonic() + 60)
    for way in (PLAIN, CLIPPED):
        field.enter(way)
    alone = dict(enumerate([1.0, 2.0, 9.0]))
    times = Times({PLAIN.name: alone, CLIPPED.name: {0: 1.5, 1: 2.7, 3: 100.0}})
    row = field.row(field.entries[1], times)
    assert row["alone"] == PLAIN.name and row["added_seconds"] == pytest.approx(0.6)


def test_ratios_are_of_the_same_rounds():
    times = Times({"A": {0: 2.0, 1: 3.0, 2: 50.0}, "B": {0: 1.0, 1: 2.0, 3: 0.1}})
    assert times.ratio("A", "B") == 1.75
    assert times.ratio("A", "C") is None
    assert times.quartiles("A") == [2.5, 26.5]
    assert times.row("A")["ratios"] == {"B": 1.75}


def test_rounds_interleave_and_slow_ones_run_in_every_fourth(monkeypatch):
    ran = []

    class Stub:
        new_gradients, repeats = False, 1

        def __init__(self, name, slow):
            self.name, self.slow = name, slow

        def prepare(self):
            pass

        def step(self):
            ran.append(self.name)

    times = measure([Stub("A", False), Stub("B", False), Stub("S", True)], Clock("cpu"), 5, 60)
    assert "".join(ran) == "ABSABABABABS"
    assert list(times.seconds["S"]) == [0, 4] and len(times.seconds["A"]) == 5
    ran.clear()
    measure([Stub("A", False)], Clock("cpu"), 50, 0)
    assert len(ran) == rounds.FEWEST_ROUNDS  # however little time there is
    ran.clear()
    short = Stub("A", False)
    short.repeats = 3
    measure([short], Clock("cpu"), 1, 60)
    assert len(ran) == 1 + 3  # the first is not timed


def test_who_cannot_step_is_named_and_the_rest_measured():
    def broken(params):
        raise RuntimeError("not on this card\nsecond line")

    found = measured(
        contenders.Contender("broken", broken),
        by_name["RSGDM"],
        by_name["torch SGD nesterov fused"],
    )
    assert found["missing"] == {"broken": "RuntimeError: not on this card"}
    assert list(found["rows"]) == ["RSGDM", "torch SGD nesterov fused"]
    assert (
        found["rows"]["RSGDM"]["ratio"]
        == found["rows"]["RSGDM"]["ratios"]["torch SGD nesterov fused"]
    )


def test_a_first_step_that_takes_too_long_is_given_up():
    def slow(params):
        try:
            time.sleep(20)
        except TimeoutError as error:  # as compilers do
            raise RuntimeError("a worker did not complete") from error

    contender = contenders.Contender("slow", slow, needs="math")
    begin = time.monotonic()
    found = measured(contender, by_name["RSGDM"], seconds=1.0)
    assert time.monotonic() - begin < 15
    assert "took more than" in found["missing"]["slow"]
    assert found["missing"]["RSGDM"] == "the time was used up"


def test_optimizers_that_share_states_step_on():
    """The benchmark gives all the same moments, whatever else they keep."""
    field = Field(StepScenario("miniature", (PLAIN, GRAD_8BIT)), "cpu", time.monotonic() + 60)
    for way in (PLAIN, GRAD_8BIT):
        field.enter(way)
    plain, _ = field.entries
    kept = [entry.opt.state[entry.params[0]] for entry in field.entries]
    assert kept[0]["exp_avg"] is kept[1]["exp_avg"]
    assert kept[1]["prev_grad"].dtype == torch.uint8
    assert isinstance(plain.opt, fk.SigSignAdamW)


def test_a_model_that_does_not_fit_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 20 * 2**30)
    monkeypatch.setattr(steps, "tensors_of", lambda *_: pytest.fail("memory was taken"))
    scenario = StepScenario("llama_1b", (PLAIN,))
    found = measure_steps(scenario, "cpu", None, time.monotonic() + 9, lambda share: None)
    assert found["skipped"] == "needs about 23 GiB, and 20 GiB are free"
    assert "rows" not in found and found["parameters"] == 1_235_814_400


def test_a_contender_that_does_not_fit_is_named(monkeypatch):
    available = iter([2e6])  # and less once parameters and gradients are there
    monkeypatch.setattr(memory, "available_bytes", lambda device: next(available, 3e5))
    found = measured(by_name["RSGDM"], by_name["SigSignAdamW"])
    assert list(found["rows"]) == ["RSGDM"]
    assert "are free" in found["missing"]["SigSignAdamW"]


def test_an_import_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "needs_a_card.py").write_text("raise OSError('libcuda.so.1 is missing')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert why_not_importable("needs_a_card") == "OSError: libcuda.so.1 is missing"
    assert why_not_importable(None) is None and why_not_importable("math") is None


def test_miniatures_leave_out_what_compiles():
    for suite in ("optimizers", "scale", "gloss"):
        small = [miniature(scenario) for scenario in scenarios_of(suite, "cpu")]
        assert not any(c.compiles for scenario in small for c in scenario.contenders)
