"""Imports run one way, those for type checkers too: as docs/design.md draws them, and in no circle."""

import ast
import re
from graphlib import TopologicalSorter

import pytest
from markdown_pages import ROOT

PACKAGE = ROOT / "friction_kernels"
# What everything may import: how this package looks at tensors, processes and itself.
COMMON = {"backends", "choices", "flattened", "launches", "shards", "version", "warn", "_native"}


def name_of(path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(module: str) -> set[str]:
    """The package's modules that a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & FILES.keys()
            found |= modules or {node.module or ""}
    return (found & FILES.keys()) - {module}


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def drawn_arrows() -> dict[str, set[str]]:
    page = (ROOT / "docs/design.md").read_text()
    lines = re.findall(r"^(\w+) +-> +([\w, ]+)$", page, re.MULTILINE)
    return {part: set(others.split(", ")) for part, others in lines}


def test_no_module_imports_itself_by_way_of_others():
    # A package's __init__ is what its users import; nothing inside imports it.
    tuple(TopologicalSorter({module: imports_of(module) for module in FILES}).static_order())


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_what_is_drawn(module):
    mine = part_of(module)
    if mine in ("", "__main__"):
        return  # the package itself, which shows what users import
    others = {part_of(other) for other in imports_of(module)} - {mine, *COMMON, ""}
    assert others <= drawn_arrows().get(mine, set())
    if mine in COMMON:
        assert not others


def test_every_arrow_is_there():
    seen: dict[str, set[str]] = {}
    for module in FILES:
        seen.setdefault(part_of(module), set()).update(map(part_of, imports_of(module)))
    for part, others in drawn_arrows().items():
        assert others <= seen[part], f"{part} does not import {others - seen[part]}"
