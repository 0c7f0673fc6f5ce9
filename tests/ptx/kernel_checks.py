"""Run by tests/ptx/run.py where the library's PTX is executed: every case has the bits that the host's walk
of the same launches has, no access is out of bounds, and no two of them race."""

import json
import os
from pathlib import Path

import pytest
from cases import CASES, digest_of

EXPECTED = json.loads(Path(os.environ["FRICTION_PTX_EXPECTED"]).read_text())


@pytest.mark.parametrize("name", CASES)
def test_the_ptx_gives_the_bits_of_the_walk(name):
    assert digest_of(CASES[name]) == EXPECTED[name]
