"""What an optimizer keeps for a tensor beside its parameter, gradient and states."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from friction_kernels import OPTIMIZERS

pytestmark = pytest.mark.deep

ROOT = Path(__file__).parents[1]
MEASURE = """
import json
from bench import plan_memory
plan_memory.TENSORS = 4_000
plan_memory.main()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc's allocator")
def test_a_plan_takes_less_than_a_kilobyte_a_tensor():
    found = subprocess.run(
        [sys.executable, "-c", MEASURE],
        env={**os.environ, "PYTHONMALLOC": "malloc", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    sizes = json.loads(found.stdout)
    assert sizes.keys() == OPTIMIZERS.keys()
    assert all(100 < size < 1024 for size in sizes.values()), sizes
