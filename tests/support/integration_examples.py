"""What tests of the examples in examples/integrations share."""

import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import torch

FOLDER = Path(__file__).parents[2] / "examples" / "integrations"


def example(name):
    """The module of an example, without running it."""
    _let_it_find_its_data()
    return importlib.import_module(name)


def run_here(name, *arguments):
    """Run an example as from the command line, but in this process; its variables afterwards."""
    _let_it_find_its_data()
    with patch.object(sys, "argv", [name, *map(str, arguments)]):
        return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def _let_it_find_its_data():
    if str(FOLDER) not in sys.path:
        sys.path.insert(0, str(FOLDER))


def run(*command):
    """What a command prints, run by this Python with one thread for each process."""
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def accuracy_in(output):
    return float(re.search(r"test accuracy (\d\.\d+)", output).group(1))


def assert_same_bits(found, expected):
    """Of two state_dicts, or nests of dicts and lists of tensors and numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same_bits(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same_bits(one, other)
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected
