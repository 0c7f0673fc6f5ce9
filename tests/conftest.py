"""Shared by all tests: hypothesis profiles, thread and instruction-set hygiene, the shared reference data."""

import itertools
import os
import signal
import sys
from pathlib import Path

import torch

# bench is a folder, and not installed; last, because tests may run with another build of the library.
sys.path.append(str(Path(__file__).parents[1]))

if not torch.cuda.is_available():  # before anything imports triton
    os.environ.setdefault("TRITON_INTERPRET", "1")

import host_launch
import pytest
from hypothesis import HealthCheck, settings
from processes import Processes

from friction_kernels import _native

# Workers share the cores: threads that wait for each other would take longer than the work.
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))

EXAMPLES = os.environ.get("EXAMPLES") or ("2000" if os.environ.get("CI") else "200")
settings.register_profile(
    "ours",
    max_examples=int(EXAMPLES),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ours")

DEEP = """what needs compilers, Triton's interpreter, torch.compile, several processes or a training, the
programs of the documents, the benchmark suite, and long searches; `make test-deep` runs it"""


def pytest_terminal_summary(terminalreporter, config):
    if config.option.markexpr == "not deep":
        terminalreporter.write_line(f"LEFT OUT: {DEEP}")


@pytest.fixture(autouse=True)
def leave_global_settings_alone():
    threads, instruction_set = torch.get_num_threads(), _native.instruction_set()
    grad_enabled = torch.is_grad_enabled()
    yield
    torch.set_grad_enabled(
        grad_enabled
    )  # torch.compile leaves no_grad on where something raises in it
    torch.set_num_threads(threads)
    _native.use_instruction_set(instruction_set)


@pytest.fixture
def interruptible():
    """What is started hears Ctrl-C, also where the tests run in a shell's background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupt_after(monkeypatch):
    """Ctrl-C after so many steps of a progress bar of tqdm."""

    def after(steps):
        bar = pytest.importorskip("tqdm").tqdm
        update, counted = bar.update, itertools.count(1)

        def interrupted(self, n=1):
            if self.unit == "step" and next(counted) == steps:
                signal.raise_signal(signal.SIGINT)
            return update(self, n)

        monkeypatch.setattr(bar, "update", interrupted)

    return after


@pytest.fixture
def one_thread():
    """For small tensors: on a busy machine, threads that wait for each other take longer than the work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", params=host_launch.COMPILERS)
def host(request):
    """The CUDA launches on the host, compiled by g++ and by nvcc."""
    if not host_launch.is_here(request.param):
        pytest.skip(f"{request.param} is not on this machine: its host code is not checked")
    return host_launch.compile_with(request.param)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory):
    """Two and four gloo processes, each started when a test first has work for them."""
    folder = tmp_path_factory.mktemp("processes")
    found = {count: Processes(count, folder) for count in (2, 4)}
    yield found
    for processes in found.values():
        processes.stop()


@pytest.fixture(params=[2, 4])
def processes(request, worlds):
    return worlds[request.param]


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Reference values made by other programs; they lie beside the project where there are any."""
    path = Path(__file__).parents[2] / "shared" / "golden"
    if not path.is_dir():
        pytest.skip(
            f"no golden values at {path}: the equations are checked against free oracles only"
        )
    return path
