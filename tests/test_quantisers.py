"""The comparison of 8-bit maps: that what it calls the best is what the optimizers do, and that it runs."""

import sys
from dataclasses import replace

import pytest
import torch

from bench import quantisers
from bench.quantiser_maps import BEST, SIGNED, UNSIGNED, Scheme
from friction_kernels import RSGDM, SigSignAdamW
from friction_kernels.optim.packed import pack, threshold_of, unpack


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize("name", ["exp_avg", "exp_avg_sq", "prev_grad"])
def test_the_best_scheme_is_that_of_the_optimizers(name, step):
    torch.manual_seed(0)
    x = torch.randn(50, 100).exp() * torch.randn(50, 100).sign()
    signed = name != "exp_avg_sq"
    x = x if signed else x.square()
    threshold = 0.5 if name == "prev_grad" else threshold_of(step)
    packed = pack(x.flatten(), signed=signed, threshold=threshold)
    expected = unpack(packed, x.numel(), signed=signed).view_as(x)
    found = BEST.round_trip(name, x, step)
    same = (found - expected).abs() <= 1e-6 * expected.abs()
    assert same.double().mean() > 0.999  # the rest stands between two codes


@pytest.mark.parametrize("maps", [SIGNED, UNSIGNED])
def test_every_map_keeps_zero_and_the_largest_and_never_falls(maps):
    for name, each in maps.items():
        scheme = Scheme(name, name)
        x = torch.linspace(0, 3, 256)
        copy = scheme.round_trip("exp_avg" if maps is SIGNED else "exp_avg_sq", x)
        assert copy[0] == 0 and copy[-1] == pytest.approx(3, rel=1e-6), name
        assert (copy.diff() >= 0).all(), name
        assert each.encode(torch.ones(1)).item() == pytest.approx(each.levels, abs=0.01), name


def test_averages_freeze_when_rounded_to_nearest_and_follow_by_step():
    """As the last table has it, in short: an average that decays by a thousandth each step."""
    beta2, start = 0.999, torch.rand(256) + 0.5
    exact, copies = start, {rounding: start for rounding in ("nearest", "by step")}
    start[0] = 10.0  # the scale stays
    for step in range(1, 1001):
        exact = torch.cat([exact[:1], beta2 * exact[1:]])
        for rounding, copy in copies.items():
            new = torch.cat([exact[:1], beta2 * copy[1:]])
            copies[rounding] = replace(BEST, rounding=rounding).round_trip("exp_avg_sq", new, step)
    ratios = {name: (copy / exact)[1:].sqrt() for name, copy in copies.items()}
    assert ratios["nearest"].median() > 1.5
    assert ratios["by step"].min() > 0.85 and ratios["by step"].max() < 1.15


def test_every_table_is_printed(monkeypatch, capsys):
    few = [BEST, Scheme("linear", "linear")]
    monkeypatch.setattr(quantisers, "COMPARED", few)
    monkeypatch.setattr(quantisers, "FOLLOWED", few)
    monkeypatch.setattr(quantisers, "TRAINED", {SigSignAdamW: few, RSGDM: few})
    monkeypatch.setattr(quantisers, "QUICK", (6, 1, 1))
    monkeypatch.setattr(sys, "argv", ["quantisers", "--quick"])
    quantisers.main()
    printed = capsys.readouterr().out
    assert printed.count("| direction ") == 2 and printed.count("## ") == 3
    for table in ("exp_avg_sq", "momentum_buffer", "SigSignAdamW", "RSGDM", "root of exp_avg_sq"):
        assert f"| {table} " in printed
    assert "nan" not in printed
