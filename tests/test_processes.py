"""Worker processes that die or hang cost one test, and none outlives the tests."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import processes
import torch.distributed as dist

pytestmark = pytest.mark.deep

SESSION = """
import sys
import processes, test_processes
from pathlib import Path
processes.PRELOAD = ["processes", "test_processes"]
folder = Path(sys.argv[1])
processes.Processes(1, folder).run(test_processes.hangs, folder / "pids")
"""


def rank():
    return dist.get_rank()


def dies(by):
    """The last of them, while the others wait for it."""
    if rank() == dist.get_world_size() - 1:
        by, argument = by
        by(argument)
    dist.barrier()


def dies_when_done():
    if rank() == 0:
        signal.setitimer(signal.ITIMER_REAL, 0.05)


def raises():
    if rank() == 0:
        raise ValueError("these words")
    dist.barrier()


def hangs(pids=None):
    if pids is not None:
        pids.with_suffix(".new").write_text(f"{os.getpid()} {os.getppid()}")
        pids.with_suffix(".new").rename(pids)
    while True:
        time.sleep(1)


@pytest.fixture
def pair(tmp_path):
    found = processes.Processes(2, tmp_path)
    yield found
    found.stop()


def failure_of(pair, *work):
    with pytest.raises(pytest.fail.Exception) as failure:
        pair.run(*work)
    return str(failure.value)


@pytest.mark.parametrize(
    "by, how",
    [
        ((signal.raise_signal, signal.SIGSEGV), "was killed by SIGSEGV\nFatal Python error"),
        ((signal.raise_signal, signal.SIGKILL), "was killed by SIGKILL"),
        ((os._exit, 3), "exited with status 3"),
    ],
)
def test_a_worker_that_dies_costs_one_test(pair, by, how):
    started = time.monotonic()
    message = failure_of(pair, dies, by)
    found = message.partition("process 1: ")[2]
    assert found.startswith(f"it {how}")
    assert ("in dies" in found) == ("SIGSEGV" in how)  # faulthandler knows the place
    assert pair.run(rank) == [0, 1]
    assert time.monotonic() - started < processes.SECONDS


def test_a_worker_that_dies_between_tests_costs_the_next_one(pair):
    pair.run(dies_when_done)
    pair._workers[0]._process.join()
    assert "process 0: it was killed by SIGALRM" in failure_of(pair, rank)
    assert pair.run(rank) == [0, 1]


def test_an_error_is_told_and_those_that_wait_for_its_process_are_not_waited_for(pair, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.1)
    message = failure_of(pair, raises)
    assert "ValueError: these words" in message.split("process 1")[0]
    assert pair.run(rank) == [0, 1]


def test_a_worker_that_hangs_says_where(pair, monkeypatch):
    pair.run(rank)
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    message = failure_of(pair, hangs)
    for each in (0, 1):
        assert f"process {each}: it does not answer" in message
    assert message.count("in hangs") == 2
    monkeypatch.undo()
    assert pair.run(rank) == [0, 1]


def test_workers_of_tests_that_are_killed_die_with_them(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    session = subprocess.Popen([sys.executable, "-c", SESSION, tmp_path], env=environment)
    try:
        wait_for((tmp_path / "pids").exists, 120)
    finally:
        session.kill()
        session.wait()
    for pid in (tmp_path / "pids").read_text().split():
        wait_for(lambda pid=pid: is_gone(pid), 30)


def is_gone(pid):
    """A zombie is: who adopts it may take its time."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
