"""What is released: version, contents, what importing loads; and what tracked files may not say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import friction_kernels

ROOT = Path(__file__).parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def tracked():
    """Contents of the tracked files, by name."""
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: which files are tracked is not known")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    names = listed.stdout.decode().split("\0")
    return {name: (ROOT / name).read_bytes() for name in names if (ROOT / name).is_file()}


# The version.


def test_the_version_stands_in_one_place():
    assert 'dynamic = ["version"]' in PYPROJECT
    assert 'version = { attr = "friction_kernels.version.__version__" }' in PYPROJECT
    assert not re.search(r'^version = "', PYPROJECT, re.MULTILINE)


def test_the_citation_and_the_changelog_are_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    (cited,) = re.findall(r"^version: [\"']?([\w.]+)[\"']?$", citation, re.MULTILINE)
    assert cited == friction_kernels.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## \[?v?(\d[\w.]*)", changelog, re.MULTILINE)[0]
    assert newest == friction_kernels.__version__


# The contents.


def test_every_package_is_listed():
    listed = re.search(r"^packages = \[(.*?)\]", PYPROJECT, re.MULTILINE | re.DOTALL)[1]
    roots = (ROOT, ROOT / "triton_kernels")
    present = {
        ".".join(init.parent.relative_to(root).parts)
        for root, name in zip(roots, ("friction_kernels", "friction_triton"), strict=True)
        for init in (root / name).rglob("__init__.py")
    }
    assert set(re.findall(r'"([\w.]+)"', listed)) == present


def test_formatters_have_one_version_everywhere():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    pinned = dict(re.findall(r'"([\w-]+)==([\w.]+)"', PYPROJECT))
    in_hooks = re.findall(r'"([\w-]+)==([\w.]+)"', hooks)
    assert {name for name, _ in in_hooks} == {"clang-format", "ruff"}
    assert all(pinned[name] == version for name, version in in_hooks)


def test_workflows_run_what_a_developer_runs():
    workflows = {path.name: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
    assert "run: bash .ci/run" in workflows["ci.yml"]
    assert "run: make gpu-report" in workflows["gpu.yml"]
    for text in workflows.values():
        actions = re.findall(r"uses: (.*)", text)
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions), actions
        assert "secrets." not in text


# What importing loads.

LOADED = """
import sys
import torch
before = set(sys.modules)
import friction_kernels
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
"""


def test_importing_loads_nothing_beyond_torch_and_the_standard_library():
    """So none of the optional packages: transformers, lightning, scikit-learn, triton, ..."""
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, encoding="utf-8"
    ).stdout.split()
    assert "friction_kernels" in loaded
    assert set(loaded) - {"friction_kernels"} <= sys.stdlib_module_names


# What tracked files may not say.

FORBIDDEN = {
    "a path of some machine": rb"(?<![\w.~-])/(?:work|root|home|opt|tmp)/",
    "the host of a package registry": (
        rb"\b(?:pypi|pythonhosted|npmjs|anaconda|conda|debian|ubuntu)\.(?:org|com|io)\b"
        rb"|\bdownload\.pytorch\b|\bpypi\.[a-z]+\.com\b"
    ),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_tracked_files_name_no(what, tracked):
    found = [
        f"{name}: {match[0].decode()}"
        for name, content in tracked.items()
        for match in re.finditer(FORBIDDEN[what], content)
        if not name.endswith(".png")
    ]
    assert found == []
