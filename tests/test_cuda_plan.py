"""What plans send a GPU, with the host for a GPU: the library is built with FRICTION_CUDA=host, which runs
every launch by the kernels' own functions on the host, and the tests of the processor are run on it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent
# A GPU takes a launch for each list of types, and does not let the host wait. torch would have to make the
# sums for max_grad_norm on it: scale_checks does without.
OTHERWISE_ON_A_GPU = (
    "not test_a_step_is_one_launch and not test_step_runs_without_the_gil and not max_grad_norm"
)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with a copy of the package whose library sends to the host what is meant for a GPU."""
    build, folder = tmp_path_factory.mktemp("build"), tmp_path_factory.mktemp("packages")
    package = folder / "friction_kernels"
    shutil.copytree(ROOT / "friction_kernels", package, ignore=shutil.ignore_patterns("_native*"))
    configure = [
        *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DFRICTION_CUDA=host"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}",
    ]
    for command in (configure, ["cmake", "--build", build]):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    return folder


def run_tests(packages: Path, *arguments: str | Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{packages}:{TESTS / 'host_gpu'}:{TESTS}:{ROOT}"}
    environment.pop("CI", None)  # fewer hypothesis examples: the mathematics has its own tests
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "host_gpu_plugin",
        "-p",
        "no:cacheprovider",
    ]
    # In another folder: Python looks first into the one it runs in, and the project has the package.
    where = {"cwd": packages, "env": environment}
    run = subprocess.run(
        [*command, "-c", ROOT / "pyproject.toml", *arguments],
        **where,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize("checks", ["plan_checks", "scale_checks"])
def test_launches_memory_and_capture(packages, checks):
    run_tests(packages, TESTS / "host_gpu" / f"{checks}.py")


@pytest.mark.parametrize(
    "file", ["test_native", "test_raw_addresses", "test_state", "test_behaviours"]
)
def test_tests_of_the_processor_pass(packages, file):
    run_tests(packages, TESTS / f"{file}.py", "-k", f"native and {OTHERWISE_ON_A_GPU}")


@pytest.mark.parametrize("file", ["test_low_precision", "test_stochastic_rounding", "test_storage"])
def test_tests_of_few_bits_pass(packages, file):
    run_tests(packages, TESTS / f"{file}.py")
