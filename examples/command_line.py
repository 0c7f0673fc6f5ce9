"""What the examples share: input that cannot be used, and options of their command lines."""

from __future__ import annotations

import argparse
import inspect
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.optim import Optimizer

from friction_kernels import OPTIMIZERS

TORCH_OPTIMIZERS = {
    name: member
    for name, member in vars(torch.optim).items()
    if inspect.isclass(member) and issubclass(member, Optimizer) and member is not Optimizer
}


class InputError(Exception):
    """Something the user gave that cannot be used; the message says what to do about it."""


def known_optimizer(name: str, of_torch: Iterable[str]) -> str:
    """The name as it is spelt, of ours or one of torch's."""
    names = {known.lower(): known for known in (*of_torch, *OPTIMIZERS)}
    if name.lower() not in names:
        raise InputError(
            f"unknown optimizer {name!r}: choose one of friction_kernels "
            f"({', '.join(OPTIMIZERS)}) or of torch.optim ({', '.join(of_torch)})"
        )
    return names[name.lower()]


def takes(name: str, option: str) -> bool:
    """Whether one of ours has an option."""
    return name in OPTIMIZERS and option in inspect.signature(OPTIMIZERS[name]).parameters


def writable_folder(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise InputError(
            f"cannot write to output folder {folder} ({error.strerror}): "
            "give a folder that you may write to with --output"
        ) from error


def options_given(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> set[str]:
    """The options that stand on the command line, also where they say what is the default."""
    blank = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([]))))
    parsed = vars(parser.parse_args(arguments, namespace=blank))
    return {name for name, value in parsed.items() if value is not None}


def refuse_without_effect(
    parser: argparse.ArgumentParser,
    conditions: dict[str, tuple[bool, str]],
    arguments: list[str] | None = None,
) -> None:
    """conditions: for an option whether it has an effect beside the others, and what it is for."""
    given = options_given(parser, arguments)
    for option, (has_effect, purpose) in conditions.items():
        if option in given and not has_effect:
            raise InputError(
                f"--{option.replace('_', '-')} would have no effect: it is {purpose}; leave it out"
            )


def at_least(minimum: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {minimum}")
        return value

    return whole_number
