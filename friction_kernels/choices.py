"""An option that is one of a few values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise ValueError unless value is one of the choices."""
    # Arrays are not hashable, and would compare element by element.
    if not isinstance(value, Hashable) or value not in set(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
