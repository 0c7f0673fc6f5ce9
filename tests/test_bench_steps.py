"""The benchmark of steps: miniature runs of it, and that what it says of bytes, memory and calls is so."""

import time
from types import SimpleNamespace

import pytest
import torch

import friction_kernels as fk
from bench import contenders, eager, memory, peers, rounds, steps
from bench.contenders import ADAMW_FOR_LOOP, ADAMW_FUSED, OPTIMIZERS
from bench.memory import sizes_of
from bench.peers import import_failure, peer
from bench.rounds import Clock, Times, measure
from bench.scenarios import StepScenario, scenarios_of
from bench.shapes import MODELS, elements, shapes_of
from bench.states import ALL_8BIT, CLIPPED, CLIPPED_UNSCALED, GRAD_8BIT, PLAIN, SPLIT, WAYS
from bench.steps import Entry, Field, Pool, measure_steps, tensors_of

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]

by_name = {c.name: c for c in (*OPTIMIZERS, *WAYS, *peers.OF_OPTIMIZERS)}


def measured(*chosen, seconds=60.0):
    scenario = StepScenario("miniature", chosen, rounds=2, seconds=5)
    return measure_steps(scenario, "cpu", None, time.monotonic() + seconds)


@pytest.mark.parametrize(
    ("update", "options", "cls", "ours"),
    [
        (eager.friction_adamw, {}, fk.SigSignAdamW, {}),
        (eager.friction_adamw, {"friction": "tanh"}, fk.TanhSignAdamW, {}),
        (
            eager.friction_adamw,
            {"normalized": True},
            fk.SigSignAdamW,
            {"friction_input": "normalized"},
        ),
        (eager.friction_adamp, {}, fk.SigSignAdamP, {}),
        (eager.rsgdm, {}, fk.RSGDM, {}),
    ],
)
def test_eager_equations_take_the_same_steps(update, options, cls, ours):
    values = [torch.randn(shape) for shape in ((64, 40), (3, 5, 2), (7,), ())]
    gradients = [[torch.randn_like(value) / 10 for value in values] for _ in range(5)]
    ends = []
    for build in (lambda p: eager.Eager(p, update, **options), lambda p: cls(p, **ours)):
        params = [value.clone().requires_grad_() for value in values]
        opt = build(params)
        for step in gradients:
            for param, grad in zip(params, step, strict=True):
                param.grad = grad.clone()
            opt.step()
        ends.append(params)
    for theirs, mine, start in zip(*ends, values, strict=True):
        assert (theirs - mine).abs().max() < 1e-3 * (mine - start).abs().max()


@pytest.fixture(scope="module")
def ways():
    """The suite `scale` in miniature, without peers: what compiles takes a minute."""
    torch.set_num_threads(1)
    mine = [way for way in WAYS if not way.needs]
    return measured(*mine, peer("absent", "no_such_module.optim.Adam"), seconds=300)


def test_every_way_is_measured_and_who_is_absent_named(ways):
    assert ways["missing"] == {"absent": "ModuleNotFoundError: No module named 'no_such_module'"}
    assert set(ways["rows"]) == {way.name for way in WAYS if not way.needs}
    assert all(row["seconds"] > 0 and row["rounds"] for row in ways["rows"].values())


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
    rows = [row for row in ways["rows"].values() if "memory" in row]  # a copy keeps nothing
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


def test_operators_and_launches():
    rows = measured(by_name[ADAMW_FUSED], by_name[ADAMW_FOR_LOOP], by_name["SigSignAdamP"])["rows"]
    assert rows[ADAMW_FUSED]["operators"] < rows[ADAMW_FOR_LOOP]["operators"] / 5
    assert sum(rows["SigSignAdamP"]["launches"].values()) == 3
    assert "operators" not in rows["SigSignAdamP"]


def test_named_contenders_exist():
    """Those that another is added to or, in the main suite, compared with."""
    for device in ("cpu", "cuda"):
        for suite in ("optimizers", "scale", "host"):
            for scenario in scenarios_of(suite, device):
                here = {c.name for c in scenario.contenders} | {contenders.EAGER_NORMALIZED}
                assert len(here) == len(scenario.contenders) + 1, "two of the same name"
                for contender in scenario.contenders:
                    assert {contender.alone} - {None} <= here
                    if suite == "optimizers":
                        assert {contender.plain, contender.baseline} - {None} <= here


@pytest.mark.parametrize(
    ("model", "tensors", "parameters"),
    [
        ("resnet50", 161, 25_557_032),
        ("vit_b_16", 152, 86_567_656),
        ("gpt2", 148, 124_439_808),
        ("llama_1b", 146, 1_235_814_400),
        ("llama_7b_8_of_32_layers", 72, 1_619_066_880),
    ],
)
def test_models_have_the_published_sizes(model, tensors, parameters):
    shapes = MODELS[model]()
    assert (len(shapes), elements(shapes)) == (tensors, parameters)


def test_models_of_the_zoo_have_the_shapes_that_are_trained():
    """This one needs no data that are fetched."""
    shapes = shapes_of("zoo/encoder_gpt")
    assert shapes[:2] == [(128, 64), (256, 64)] and elements(shapes) > 200_000
    assert "zoo/encoder_gpt" in [s.model for s in scenarios_of("zoo", "cpu")]


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
    assert sizes_of(opt) == {"parameter": 64, "table": 16, "m": 32, "v": 16}


class CardsClock(Clock):
    """Of a card, as far as rounds know one: a step of A takes two seconds, one of B some milliseconds."""

    def __init__(self):
        super().__init__("cpu")
        self.cuda = True

    def steps(self, entry):
        return 2.0 if entry.name == "A" else 0.002

    def host(self, entry):
        return 1e-5


def test_a_long_step_is_measured_once_on_a_card():
    entries = [SimpleNamespace(name=name, slow=False) for name in "AB"]
    times = measure(entries, CardsClock(), 5, 60)
    assert [len(times.seconds[name]) for name in "AB"] == [1, 5]
    assert list(times.host) == ["B"] and "host_seconds" not in times.row("A", [])


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
    assert times.quartiles("A") == [2.5, 26.5]
    assert times.row("A", ["B", "C", None])["ratios"] == {"B": 1.75}


def test_rounds_interleave_and_slow_ones_run_in_every_fourth():
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

    nesterov = "torch SGD nesterov fused"
    everyone = contenders.Contender("broken", broken), by_name["RSGDM"], by_name[nesterov]
    found = measured(*everyone)
    assert found["missing"] == {"broken": "RuntimeError: not on this card"}
    assert list(found["rows"]) == ["RSGDM", nesterov]
    assert found["rows"]["RSGDM"]["ratios"].keys() == {nesterov}


def test_what_is_late_is_not_begun():
    found = measured(by_name["RSGDM"], seconds=-1.0)
    assert found["missing"] == {"RSGDM": "the time was used up"} and not found["rows"]


def test_optimizers_that_share_states_step_on():
    """The benchmark gives all the same moments, whatever else they keep."""
    field = Field(StepScenario("miniature", (PLAIN, GRAD_8BIT)), "cpu", time.monotonic() + 60)
    for way in (PLAIN, GRAD_8BIT):
        field.enter(way)
    kept = [entry.opt.state[entry.params[0]] for entry in field.entries]
    assert kept[0]["exp_avg"] is kept[1]["exp_avg"]
    assert kept[1]["prev_grad"].dtype == torch.uint8


def test_a_model_that_does_not_fit_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 20 * 2**30)
    monkeypatch.setattr(steps, "tensors_of", lambda *_: pytest.fail("memory was taken"))
    found = measure_steps(StepScenario("llama_1b", (PLAIN,)), "cpu", None, time.monotonic() + 9)
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
    assert import_failure("needs_a_card") == "OSError: libcuda.so.1 is missing"
    assert import_failure(None) is None and import_failure("math") is None


def test_miniatures_leave_out_what_compiles():
    for suite in ("optimizers", "scale", "gloss"):
        small = [scenario.miniature() for scenario in scenarios_of(suite, "cpu")]
        assert not any(c.compiles for scenario in small for c in scenario.contenders)
