"""The optimizers' pages: equations that compute what the classes do; arguments, defaults and bytes."""

import ast
import inspect

import pytest
import torch
from markdown_pages import ROOT, blocks_of, tables_of
from optimizer_cases import ADAMS, FRICTION, MEASURED, PROJECTED

from friction_kernels import OPTIMIZERS

FOLDER = ROOT / "docs/optimizers"
INPUTS = {"product": {}, "normalized": {"# x = ": "x = "}}


PAGES = {
    "friction-adam": ("SigSignGrad", "TanhSignGrad", "SigSignAdamW", "TanhSignAdamW"),
    "friction-adamp": ("SigSignAdamP", "TanhSignAdamP"),
    "diffgrad": ("DiffGrad", "DiffGradW"),
    "rsgdm": ("RSGDM",),
    "bases": ("Adam", "AdamW", "AdamP", "SGD"),
}


def page_of(name):
    return FOLDER / f"{next(page for page, names in PAGES.items() if name in names)}.md"


def equations_of(name):
    """The update that a page shows for an optimizer; of two forms of S, the second is commented out."""
    blocks = [b for b in blocks_of(page_of(name)) if name in (b.equations or "").split(", ")]
    assert len(blocks) == 1
    return blocks[0].text.replace("# S = ", "S = ") if name.startswith("Tanh") else blocks[0].text


def projection():
    text = next(b.text for b in blocks_of(page_of("SigSignAdamP")) if b.equations == "project")
    names = {"torch": torch}
    exec(text, names)
    return names["project"]


def assert_equations_are_those_of(name, equations, options):
    cls = OPTIMIZERS[name]
    torch.manual_seed(0)
    for shape in ((6, 5), (7,), (4, 3, 2)):
        theirs = torch.randn(shape, dtype=torch.float64)
        ours = theirs.clone().requires_grad_()
        opt = cls([ours], **options)
        names = {**opt.defaults, "torch": torch, "project": projection(), "p": theirs}
        names.update(zip(("beta1", "beta2"), opt.defaults.get("betas", ()), strict=False))
        names.update({state: torch.zeros_like(theirs) for state in cls.rule.states})
        for step in range(1, 5):
            gradient = torch.randn(shape, dtype=torch.float64)
            ours.grad = gradient
            opt.step()
            names.update(g=gradient.clone(), t=step)
            exec(equations, names)
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "friction_input"),
    [
        (name, friction_input)
        for name in ADAMS
        for friction_input in (INPUTS if name in FRICTION else [None])
    ],
)
def test_a_pages_equations_are_those_of_its_class(name, friction_input):
    equations, options = equations_of(name), {"weight_decay": 0.1}
    if name in MEASURED:
        options["beta3"] = 0.7
    if name in FRICTION:
        options["friction_input"] = friction_input
        for commented, alone in INPUTS[friction_input].items():
            assert commented in equations
            equations = equations.replace(commented, alone)
    if name in PROJECTED:  # rows that pass the test are rare: most pass this one
        for delta, nesterov in ((0.1, False), (2.0, True)):
            options |= {"delta": delta, "nesterov": nesterov}
            assert_equations_are_those_of(name, equations, options)
    assert_equations_are_those_of(name, equations, options)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.5, "nesterov": True}]
)
def test_the_pages_equations_are_those_of_sgd(options):
    assert_equations_are_those_of("SGD", equations_of("SGD"), options)


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_pages_equations_are_those_of_rsgdm(decoupled):
    options = {"weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    assert_equations_are_those_of("RSGDM", equations_of("RSGDM"), options)


def default_in(row, name):
    own = (value for column, value in row.items() if name in column.split(", "))
    return next(own, "") or row.get("default")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_arguments_and_defaults_are_those_of_the_class(name):
    tables = [*tables_of(page_of(name)), *tables_of(FOLDER / "options.md")]
    # A page of several classes has a column of defaults for each, or for several, empty where a class has no
    # such argument.
    rows = [(row, default_in(row, name)) for table in tables for row in table]
    shown = {
        next(iter(row.values())).strip("`"): ast.literal_eval(default.strip("`"))
        for row, default in rows
        if default
    }
    parameters = dict(inspect.signature(OPTIMIZERS[name]).parameters)
    del parameters["params"]
    assert shown == {option: parameter.default for option, parameter in parameters.items()}


def rows_of_costs():
    tables = zip(("SigSignAdamW", "AdamW", "SGD"), tables_of(FOLDER / "cost.md"), strict=False)
    return [(name, row) for name, rows in tables for row in rows]


@pytest.mark.parametrize(("name", "row"), rows_of_costs())
def test_bytes_are_what_is_kept_and_moved(name, row):
    option, states = row["`master` or `rounding`"].strip("`"), row["`state_dtype`"].strip("`")
    options = {"state_dtype": ast.literal_eval(states) if states else None}
    if option:
        value = ast.literal_eval(option)
        options["rounding" if value == "stochastic" else "master"] = value
    param = torch.zeros(512, 512, dtype=getattr(torch, row["parameter"])).requires_grad_()
    opt = OPTIMIZERS[name]([param], **options)
    param.grad = torch.zeros_like(param)
    opt.step()
    kept = opt.memory_report().bytes_per_parameter
    assert float(row["kept"]) == pytest.approx(kept, abs=5e-3)
    assert float(row["moved"]) == pytest.approx(2 * kept + param.element_size(), abs=5e-3)
