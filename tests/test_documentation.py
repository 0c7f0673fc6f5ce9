"""Docstrings of everything public: each argument with its shape or unit and its default, what comes back,
what is raised, and the source."""

import ast
import inspect
import re

import pytest
from markdown_pages import ROOT
from torch.optim import Optimizer

import friction_kernels
from friction_kernels import (
    OPTIMIZERS,
    AttentionAlignment,
    DistillationLoss,
    FeatureAlignment,
    GLoss,
    GradientGuidance,
    GraphMemory,
    InfoNCELoss,
    LinearCrossEntropyLoss,
    RetrievalLoss,
    SupConLoss,
)
from friction_kernels.optim import GradientRelease
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.memory import MemoryReport

REFERENCE = sorted((ROOT / "docs/reference").glob("*.md"))
OBJECTS = {
    name: getattr(friction_kernels, name)
    for name in friction_kernels.__all__
    if callable(getattr(friction_kernels, name))
}
# Those that are called with arguments by users; the others are given to them, or take none.
CALLED = {
    name: thing
    for name, thing in OBJECTS.items()
    if name
    not in (
        "GLossStats",
        "FrictionStats",
        "DirectionStats",
        "RowSoftmaxStats",
        "LaunchCounts",
        "count_launches",
    )
}
METHODS = {
    f"{cls.__name__}.{name}": method
    for cls in (
        PlannedOptimizer,
        GLoss,
        GraphMemory,
        GradientGuidance,
        SupConLoss,
        InfoNCELoss,
        RetrievalLoss,
        LinearCrossEntropyLoss,
        DistillationLoss,
        AttentionAlignment,
        FeatureAlignment,
        GradientRelease,
        MemoryReport,
    )
    for name, method in vars(cls).items()
    if not name.startswith("_")
    and (callable(method) or isinstance(method, (property, classmethod)))
}
SHAPE = re.compile(  # (N, d), (N,), (..., d), (), or in words
    r"\(((\.\.\.|\w+)(, \w+)*,?)?\)|scalar|one[- ]element|any dense layout|any shape|parameters' shapes"
)


def parameters_of(thing) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(thing).parameters)
    found.pop("self", None)
    return found


def arguments_in(doc: str) -> dict[str, str]:
    """What stands under Args, by name."""
    section = re.search(r"\nArgs:\n(.*?)(?:\n\n|\Z)", inspect.cleandoc(doc), re.DOTALL)
    entries = re.split(r"\n {4}(?=\w+: )", "\n" + section.group(1)) if section else [""]
    pairs = (" ".join(entry.split()).split(": ", 1) for entry in entries[1:])
    return dict(pairs)


def default_of(description: str):
    """The value after "default" at the end of an argument's description, or Parameter.empty."""
    found = re.search(r"\(default (.*)\)\.$", description)
    return ast.literal_eval(found.group(1)) if found else inspect.Parameter.empty


@pytest.mark.parametrize("name", CALLED)
def test_docstring_has_every_argument_with_its_default(name):
    described = arguments_in(CALLED[name].__doc__)
    parameters = parameters_of(CALLED[name])
    assert {argument: default_of(text) for argument, text in described.items()} == {
        argument: parameter.default for argument, parameter in parameters.items()
    }


@pytest.mark.parametrize("name", CALLED)
def test_docstring_says_the_shapes_of_tensors(name):
    described = arguments_in(CALLED[name].__doc__)
    of_all_numbers = "like the numbers below it may be a one-element tensor" in described.get(
        "lr", ""
    )
    for argument, parameter in parameters_of(CALLED[name]).items():
        is_number = "float | Tensor" in str(parameter.annotation)
        if "Tensor" in str(parameter.annotation) and not (is_number and of_all_numbers):
            said = described[argument].partition(" (default")[0]
            assert SHAPE.search(said), (argument, said)


@pytest.mark.parametrize("name", CALLED)
def test_docstring_says_what_is_raised(name):
    doc = inspect.cleandoc(CALLED[name].__doc__)
    raised = doc.partition("\nRaises:\n")[2]
    assert re.findall(r"^ {4}(\w+Error(?:, \w+Error)*): ", raised, re.MULTILINE)


@pytest.mark.parametrize("name", [name for name in CALLED if not inspect.isclass(CALLED[name])])
def test_docstring_says_what_comes_back(name):
    assert "\nReturns:\n" in inspect.cleandoc(CALLED[name].__doc__)


@pytest.mark.parametrize(
    "name",
    [
        *OPTIMIZERS,
        *("GLoss", "GraphMemory", "label_propagation", "gaussian_sigma"),
        *("SupConLoss", "InfoNCELoss", "RetrievalLoss"),
        *("GradientGuidance", "lora_param_groups", "LinearCrossEntropyLoss"),
        *("DistillationLoss", "AttentionAlignment", "FeatureAlignment"),
    ],
)
def test_docstring_names_its_source(name):
    source = re.search(r"\nSource: .*?\n\n", inspect.cleandoc(OBJECTS[name].__doc__), re.DOTALL)
    assert re.search(r"arXiv \d{4}\.\d{4,5}|ICML 2013", source.group())


@pytest.mark.parametrize("name", METHODS)
def test_methods_say_what_they_do_and_take(name):
    method = METHODS[name]
    doc = inspect.getdoc(method)
    assert doc
    function = method.__func__ if isinstance(method, classmethod) else method
    if isinstance(method, property):
        return
    for argument, parameter in parameters_of(function).items():
        if "Tensor" in str(parameter.annotation):
            described = re.search(rf"^ *{argument}: (.*)$|{argument}: ([^;]*)", doc, re.MULTILINE)
            said = described.group() if described else doc
            assert SHAPE.search(said), (argument, said)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_docstring_names_every_state(name):
    doc = OPTIMIZERS[name].__doc__
    for state in ("step", *OPTIMIZERS[name].rule.states, "residual", "master"):
        assert f"`{state}`" in doc


def test_everything_public_is_in_the_reference():
    pages = "".join(page.read_text() for page in REFERENCE)
    shown = set(re.findall(r"^::: friction_kernels\.(\w+)$", pages, re.MULTILINE))
    assert shown == set(OBJECTS)
    for name in set(friction_kernels.__all__) - set(OBJECTS):
        assert f"friction_kernels.{name}`" in pages
    adds = {
        name
        for name, value in vars(PlannedOptimizer).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }
    first = pages.partition("::: friction_kernels.SigSignGrad\n")[2].partition(":::")[0]
    assert set(re.search(r"members: \[(.*)\]", first).group(1).split(", ")) == adds
    assert adds - set(vars(Optimizer)) == {"grad_norm", "memory_report"}
