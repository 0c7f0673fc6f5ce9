"""A clone in which nothing is built, an installation of another Python, and what they say."""

import os
import re
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import friction_kernels
from bench import __main__ as bench
from bench.records import ROOT
from friction_kernels import backends

ERROR = ImportError("undefined symbol")


def run_in(folder, *command):
    """As `python -m ...`, without the import hooks (-S) of an editable installation."""
    paths = os.pathsep.join((str(folder), str(Path(torch.__file__).parents[1])))
    return subprocess.run(
        [sys.executable, "-S", "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The folders of a clone that matter, as git leaves them."""
    folder = tmp_path_factory.mktemp("clone")
    no_build = shutil.ignore_patterns("_native.*.so", "__pycache__", "results")
    package = Path(friction_kernels.__file__).parent
    shutil.copytree(package, folder / "friction_kernels", ignore=no_build)
    shutil.copytree(ROOT / "bench", folder / "bench", ignore=no_build)
    (folder / "csrc").mkdir()
    (folder / "csrc" / "bindings.cpp").touch()
    return folder


def assert_says_what_to_do(text, folder):
    assert f"{folder} is the source tree, and nothing is built in it" in text
    assert "start Python elsewhere" in text and "`pip install --editable .`" in text
    assert "circular" not in text and "Traceback" not in text


def test_the_source_tree_says_that_it_is_one(clone):
    described = run_in(clone, "friction_kernels")
    assert described.returncode == 0, described.stderr
    (why,) = re.findall(r"^backend native, CPU +inactive: (.*)$", described.stdout, re.MULTILINE)
    assert_says_what_to_do(why, clone)


def test_benchmarks_refuse_to_compare_plain_torch_with_itself(clone):
    refused = run_in(clone, "bench", "run", "--quick")
    assert refused.returncode == 2 and refused.stdout == ""
    assert_says_what_to_do(refused.stderr, clone)
    assert not (clone / "build").exists()


@pytest.mark.parametrize("command", [["run"], ["run", "gloss"], ["list"]], ids=" ".join)
def test_no_measuring_command_begins_without_kernels(command, monkeypatch, capsys):
    monkeypatch.setattr(backends, "native_unavailable_reason", lambda: "the reason")
    with pytest.raises(SystemExit) as exit_info:
        bench.main(command)
    assert exit_info.value.code == 2
    assert "there are no native kernels to measure: the reason" in capsys.readouterr().err


def test_an_extension_of_another_python_is_named(tmp_path):
    other = "_native.cpython-301-x86_64-linux-gnu.so"
    (tmp_path / other).touch()
    why = backends.import_failure(tmp_path, ERROR)
    assert f"{other} was built for another Python" in why and "`pip install .`" in why


def test_a_package_without_its_extension_is_not_taken_for_the_source_tree(tmp_path):
    (tmp_path / "_native.pyi").touch()
    why = backends.import_failure(tmp_path, ERROR)
    assert "it was not built" in why and "source tree" not in why and "`pip install .`" in why


def test_an_extension_that_does_not_load_says_why(tmp_path):
    (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").touch()
    assert "undefined symbol" in backends.import_failure(tmp_path, ERROR)
