"""Texts for the examples of this folder: what stands in the sources of Python's standard library."""

import ast
import random
import sysconfig
import tokenize
from pathlib import Path

import ending  # noqa: F401 - before what takes seconds to load

CLASSES = ("comment", "docstring of a class", "docstring of a function", "message of an error")
SHORTEST = 30  # characters


def load(trained: int = 64, tested: int = 60) -> tuple[dict[str, list], dict[str, list]]:
    """Columns `text` and `label`, an index into CLASSES: so many of each class to train and to test on."""
    found = set()
    for file in Path(sysconfig.get_path("stdlib")).glob("*.py"):
        found.update(comments(file), docstrings_and_messages(file))
    parts = {"text": [], "label": []}, {"text": [], "label": []}
    for label in range(len(CLASSES)):
        texts = sorted(text for kind, text in found if kind == label and len(text) > SHORTEST)
        chosen = random.Random(0).sample(texts, trained + tested)
        for part, own in zip(parts, (chosen[:trained], chosen[trained:]), strict=True):
            part["text"] += own
            part["label"] += [label] * len(own)
    return parts


def comments(file: Path) -> set[tuple[int, str]]:
    with tokenize.open(file) as source:
        tokens = list(tokenize.generate_tokens(source.readline))
    return {(0, token.string.strip("# ")) for token in tokens if token.type == tokenize.COMMENT}


def docstrings_and_messages(file: Path) -> set[tuple[int, str]]:
    found = set()
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            found.add((1 if isinstance(node, ast.ClassDef) else 2, text))
        elif isinstance(node, ast.Raise):
            constants = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
            found.update((3, value) for value in constants if isinstance(value, str))
    return found
