"""The benchmark of row softmax losses: contenders compute the same, and every scenario can be measured."""

import time
from unittest import mock

import pytest
import torch

from bench import loss_contenders, losses, scenarios

NAMES = [scenario.model for scenario in scenarios.losses("cuda")]


@pytest.mark.parametrize("name", NAMES)
def test_contenders_compute_the_same(name):
    given = loss_contenders.Given.of(loss_contenders.MINIATURE, "cpu", torch.float32)
    results = []
    for loss in (loss_contenders.ours(name, given, "auto"), loss_contenders.stored(name, given)):
        results.append((loss.detach(), *torch.autograd.grad(loss, (given.x, given.w))))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("why", [None, "needs about 8 GiB, and 1 GiB are free"])
def test_a_scenario_in_miniature(why):
    (scenario,) = (s.miniature() for s in scenarios.losses("cpu") if s.model == "vocabulary")
    with mock.patch.object(losses, "why_too_large", lambda *_: why):
        found = losses.measure_losses(scenario, "cpu", 2, time.monotonic() + 20)
    assert found["rows"][loss_contenders.OURS]["seconds"] > 0
    assert found["missing"] == ({} if why is None else {loss_contenders.STORED: why})
    assert (loss_contenders.STORED in found["rows"]) == (why is None)


def test_many_rows_are_measured_of_supcon_alone():
    (scenario,) = (
        s.miniature() for s in scenarios.losses("cpu") if s.model == loss_contenders.MANY_ROWS
    )
    rows = losses.measure_losses(scenario, "cpu", 2, time.monotonic() + 20)["rows"]
    assert list(rows) == [loss_contenders.SUPCON] and rows[loss_contenders.SUPCON]["rounds"] == 1
