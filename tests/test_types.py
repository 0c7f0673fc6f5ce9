"""The public API as a strict type checker sees it, and the extension as its stub describes it."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from friction_kernels import (
    OPTIMIZERS,
    _native,
    backends,
    gaussian_sigma,
    label_propagation,
    losses,
    optim,
    row_softmax_loss,
)
from friction_kernels.graph import route, sigma
from friction_kernels.losses import recovery, row_softmax
from friction_kernels.optim import adam_rule, options
from friction_kernels.scores import chunked, targets

ROOT = Path(__file__).parents[1]
STUB = ast.parse((ROOT / "friction_kernels" / "_native.pyi").read_text())


@pytest.mark.deep
def test_a_users_program_passes_a_strict_type_checker():
    """And what that program imports of the package does."""
    pytest.importorskip("mypy", reason="mypy is not installed: types are not checked")
    mypy = [sys.executable, "-m", "mypy", "tests/support/typed_program.py"]
    found = subprocess.run(mypy, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_optimizer_is_exported_by_name():
    assert set(OPTIMIZERS) < set(optim.__all__)  # spelled out there: a type checker reads no table


def parameters(function):
    return [argument.arg for argument in function.args.args]


def parameters_in_docstring(function):
    """pybind11 says in the first line what a function takes."""
    signature = re.match(r"\w+\((.*)\) -> ", function.__doc__)[1]
    return re.findall(r"(\w+): ", signature)


def stub_members(name):
    """Of a class and its bases: attributes, properties and functions by name."""
    (node,) = (n for n in STUB.body if isinstance(n, ast.ClassDef) and n.name == name)
    members = {}
    for base in node.bases:
        members |= stub_members(base.id)
    for member in node.body:
        if isinstance(member, ast.AnnAssign):
            members[member.target.id] = member
        elif isinstance(member, ast.FunctionDef):
            members[member.name] = member
    return members


def test_the_stub_has_what_the_extension_has():
    described = {
        node.target.id if isinstance(node, ast.AnnAssign) else node.name
        for node in STUB.body
        if isinstance(node, (ast.AnnAssign, ast.FunctionDef, ast.ClassDef))
    }
    present = {name for name in dir(_native) if not name.startswith("_")}
    assert {name for name in described if not name.startswith("_")} == present


@pytest.mark.parametrize(
    "node", [n for n in STUB.body if isinstance(n, ast.FunctionDef)], ids=lambda n: n.name
)
def test_the_stubs_functions_take_what_the_extensions_take(node):
    assert parameters(node) == parameters_in_docstring(getattr(_native, node.name))


@pytest.mark.parametrize("name", [n for n in vars(_native) if inspect.isclass(getattr(_native, n))])
def test_the_stubs_classes_have_what_the_extensions_have(name):
    native, members = getattr(_native, name), stub_members(name)
    public = {member for member in dir(native) if not member.startswith("_")}
    assert public == {member for member in members if not member.startswith("_")}
    functions = {n: m for n, m in members.items() if isinstance(m, ast.FunctionDef)}
    for member, function in functions.items():
        attribute = getattr(native, member)
        if callable(attribute):
            assert parameters(function) == parameters_in_docstring(attribute), member


# What a type checker refuses as a name, the call refuses, too: both read one list.
NAMES = [
    (optim.SigSignAdamW, "friction_input", adam_rule.FRICTION_INPUTS),
    (optim.FrictionAdamW, "friction_input", adam_rule.FRICTION_INPUTS),
    (optim.FrictionAdamW, "friction", adam_rule.FRICTIONS),
    (optim.SigSignAdamW, "master", options.MASTERS),
    (optim.TanhSignGrad, "rounding", options.ROUNDINGS),
    (optim.SigSignAdamP, "backend", backends.BACKENDS),
    (optim.RSGDM, "state_dtype", options.STATE_DTYPES),
    (losses.GLoss, "form", recovery.FORMS),
    (losses.GLoss, "reduction", row_softmax.REDUCTIONS),
    (losses.GLoss, "solver", route.SOLVERS),
    (losses.GLoss, "precision", chunked.PRECISIONS),
    (losses.GLoss, "backend", route.GRAPH_BACKENDS),
    (losses.GLoss, "sigma", ("learnable", *sigma.RULES)),
    (row_softmax_loss, "kind", targets.KINDS),
    (row_softmax_loss, "statistics", (False, True, "without entropy")),
    (label_propagation, "solver", route.SOLVERS),
    (gaussian_sigma, "rule", sigma.RULES),
]


def names_in(annotation):
    """The names that a type admits."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*map(names_in, get_args(annotation)))


@pytest.mark.parametrize(("function", "option", "choices"), NAMES)
def test_names_that_are_typed_are_those_that_are_taken(function, option, choices):
    annotation = get_type_hints(function.__init__ if inspect.isclass(function) else function)[
        option
    ]
    assert names_in(annotation) == {choice for choice in choices if choice is not None}
