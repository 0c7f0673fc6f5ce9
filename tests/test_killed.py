"""A run that is killed and resumed has the bits of one that never was."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import killed_run
import pytest
import torch
from optimizer_cases import assert_same_bits, assert_same_states

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]


def start(folder, steps):
    return subprocess.Popen(
        [sys.executable, killed_run.__file__, str(folder), str(steps)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_bits(tmp_path: Path):
    with start(tmp_path, -1) as process:  # would run for ever
        for line in process.stdout:
            if int(line) >= 5:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    checkpoint = tmp_path / "checkpoint.pt"
    killed_after = torch.load(checkpoint, weights_only=True)["steps"]
    assert killed_after >= 5
    steps = killed_after + 4
    with start(tmp_path, steps) as process:
        printed = process.communicate()[0]
    assert process.returncode == 0
    assert [int(line) for line in printed.split()] == list(range(killed_after + 1, steps + 1))

    resumed, unbroken = killed_run.make_runs(), killed_run.make_runs()
    assert killed_run.load(resumed, checkpoint) == steps
    for number in range(steps):
        killed_run.step(unbroken, number)
    # One step more, so that nothing that matters later was left out.
    for runs in (resumed, unbroken):
        killed_run.step(runs, steps)
    for (params, opt), (twins, twin_opt) in zip(resumed, unbroken, strict=True):
        assert_same_bits(params, twins)
        assert_same_states(opt, params, twin_opt, twins)
