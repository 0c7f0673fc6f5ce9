"""Every option is documented: by its name, and with the default that it has."""

import ast
import inspect
import re

import pytest

from friction_kernels import OPTIMIZERS, clip_grad_norm_

DOCUMENTED = {**OPTIMIZERS, "clip_grad_norm_": clip_grad_norm_}


def defaults_in_docstring(documented):
    """What stands under Args, by name: the value after "default", or Parameter.empty."""
    args = re.search(r"\n    Args:(\n.*?)\n\n", documented.__doc__, re.DOTALL).group(1)
    found = {}
    for entry in re.split(r"\n {8}(?=\w+: )", args)[1:]:
        name, text = " ".join(entry.split()).split(": ", 1)
        default = re.search(r"\(default (.*)\)\.$", text)
        found[name] = ast.literal_eval(default.group(1)) if default else inspect.Parameter.empty
    return found


@pytest.mark.parametrize("name", DOCUMENTED)
def test_docstring_has_every_option_with_its_default(name):
    shown = inspect.signature(DOCUMENTED[name]).parameters
    assert defaults_in_docstring(DOCUMENTED[name]) == {
        option: parameter.default for option, parameter in shown.items()
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_docstring_names_every_state(name):
    doc = DOCUMENTED[name].__doc__
    for state in ("step", *OPTIMIZERS[name].state_lists, "residual", "master"):
        assert f"`{state}`" in doc
