"""docs/adding-an-optimizer.md is followed to the letter, in a copy of the tree: it builds, and the tests of
every optimizer hold for the new one. The library is built as in test_cuda_plan.py, with the host for a GPU.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import other_rule
import pybind11
import pytest
from markdown_pages import ROOT, blocks_of

PAGE = ROOT / "docs/adding-an-optimizer.md"
TESTS = ("test_native.py", "test_state.py", "test_scale_native.py", "test_checkpoints.py")
# SGD's states have the same name, so that one loads into the other.
NOT_OF_EVERY_RULE = "not test_a_state_of_another_class_is_refused"
ORACLE = """
import torch
from friction_kernels.optim.heavy_ball import HeavyBall

torch.manual_seed(0)
start, gradients = torch.randn(5000, dtype=torch.float64), torch.randn(20, 5000, dtype=torch.float64)
ours, sgd = start.clone().requires_grad_(), start.clone().requires_grad_()
opt = HeavyBall([ours], lr=0.1, momentum=0.9, weight_decay=0.01, backend="native")
reference = torch.optim.SGD([sgd], lr=0.1 * (1 - 0.9), momentum=0.9, weight_decay=0.01)
for gradient in gradients:
    ours.grad, sgd.grad = gradient.clone(), gradient.clone()
    opt.step()
    reference.step()
torch.testing.assert_close(ours, sgd, rtol=1e-12, atol=1e-12)
"""

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(
        os.environ.get("FRICTION_COMPILE") != "all",
        reason="FRICTION_COMPILE=all builds the optimizer that docs/adding-an-optimizer.md adds",
    ),
]


def changed(path: Path, shown: str) -> str:
    """A file's text with what the page says to change in it."""
    if not path.exists():
        return shown
    text = path.read_text()
    if path.name == "states.def":
        return f"{text}\n{shown}"
    if path.name == "equations.py":
        return f"{text}\n\n{shown}"
    if path.name == "rules.h":
        include, rules = shown.strip().split("\n\n")
        text = text.replace('#include "rules/sgd.h"', f'{include}\n#include "rules/sgd.h"')
        return re.sub(r"^using Rules = .*$", rules, text, flags=re.MULTILINE)
    assert path.name == "__init__.py"
    return text.replace("        SGD,\n    )", "        SGD,\n        HeavyBall,\n    )").replace(
        "from friction_kernels.optim.release", f"{shown}from friction_kernels.optim.release"
    )


def add_other_rule(tree: Path) -> None:
    """Beside the page's: one whose states have names that nothing else knows."""
    states, rules = tree / "friction_kernels/optim/states.def", tree / "csrc/rules.h"
    states.write_text(states.read_text() + other_rule.STATES)
    text = rules.read_text().replace("HeavyBall>;", "HeavyBall, Other>;")
    rules.write_text(text.replace("#include", '#include "rules/other.h"\n#include', 1))
    (tree / "csrc/rules/other.h").write_text(other_rule.HEADER)
    (tree / "friction_kernels/optim/other.py").write_text(other_rule.OPTIMIZER)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The project as it is after the page's six steps, its native library built."""
    tree = tmp_path_factory.mktemp("with_heavy_ball")
    for name in ("csrc", "friction_kernels", "triton_kernels", "tests"):
        shutil.copytree(
            ROOT / name, tree / name, ignore=shutil.ignore_patterns("_native*.so", "__pycache__")
        )
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tree)
    files = [(tree / block.file, block.text) for block in blocks_of(PAGE) if block.file]
    assert len(files) == 6
    for path, shown in files:
        path.write_text(changed(path, shown))
    add_other_rule(tree)
    configure = [
        *("cmake", "-S", tree, "-B", tree / "build", "-G", "Ninja", "-DFRICTION_CUDA=host"),
        *(f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"),
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={tree / 'friction_kernels'}",
    ]
    for command in (configure, ["cmake", "--build", tree / "build"]):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    return tree


def run_in(tree: Path, *arguments: str) -> str:
    folders = (tree, tree / "triton_kernels", tree / "tests/support", tree / "tests")
    environment = {**os.environ, "PYTHONPATH": ":".join(map(str, folders))}
    for name in ("CI", "FRICTION_COMPILE"):
        environment.pop(name, None)
    command = [sys.executable, *arguments]
    run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    return run.stdout


def test_the_new_optimizer_is_the_oracles(tree):
    run_in(tree, "-c", ORACLE)


@pytest.mark.parametrize("host_is", ["host", "GPU"])
def test_states_are_kept_as_the_table_says_whatever_their_names(tree, monkeypatch, host_is):
    if host_is == "host":
        monkeypatch.setenv("FRICTION_HOST_IS_HOST", "1")
    run_in(tree, "-c", other_rule.CHECK)


def test_the_tests_of_every_optimizer_hold_for_it(tree):
    tests = [f"tests/{name}" for name in TESTS]
    plugins = ("-p", "host_gpu_plugin", "-p", "no:cacheprovider")
    chosen = ("-k", f"HeavyBall and {NOT_OF_EVERY_RULE}")
    printed = run_in(tree, "-m", "pytest", "-q", *plugins, *chosen, *tests)
    assert int(re.search(r"(\d+) passed", printed)[1]) > 20
