"""What plans send a GPU, with the host for a GPU: the library is built with FRICTION_CUDA=host, which runs
every launch by the kernels' own functions on the host, and the tests of the processor are run on it.

Checks of what only a GPU has (tests/host_gpu) are run by tests/sanitize.py, and by tests/ptx/run.py on PTX.
"""

from pathlib import Path

import pytest
from built_package import TESTS, host_for_gpu, run_pytest

pytestmark = pytest.mark.deep

# A GPU takes a launch for each list of types, and does not let the host wait. torch would have to make the
# sums for max_grad_norm and skip_nonfinite on it: scale_checks does without.
OTHERWISE_ON_A_GPU = (
    "not test_a_step_is_one_launch and not test_step_runs_without_the_gil and not max_grad_norm"
    " and not will_be_skipped"
)


@pytest.fixture(scope="module")
def packages() -> Path:
    return host_for_gpu()


def run_tests(packages: Path, *arguments: str | Path) -> None:
    # Fewer hypothesis examples, also in CI: the mathematics has its own tests.
    status, output = run_pytest(packages, "-p", "host_gpu_plugin", *arguments, EXAMPLES="50")
    assert status == 0, output[-8000:]
    assert " passed" in output


@pytest.mark.parametrize(
    "file", ["test_native", "test_raw_addresses", "test_state", "test_behaviours"]
)
def test_tests_of_the_processor_pass(packages, file):
    run_tests(packages, TESTS / f"{file}.py", "-k", f"native and {OTHERWISE_ON_A_GPU}")


@pytest.mark.parametrize(
    "file", ["test_lists", "test_low_precision", "test_stochastic_rounding", "test_state_formats"]
)
def test_tests_that_are_the_same_for_both_pass(packages, file):
    run_tests(packages, TESTS / f"{file}.py")
