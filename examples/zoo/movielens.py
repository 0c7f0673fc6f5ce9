"""MovieLens' tables, and the graph of its films."""

import csv
import io
from collections.abc import Iterable

import torch
from torch import Tensor


def rows_of(table: bytes) -> list[list[str]]:
    lines = io.StringIO(table.decode())
    return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]


def numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def shared_entities(
    triples: list[list[str]], entity_films: dict[str, int], films: int
) -> tuple[Tensor, int]:
    """The rarest entity that two films share, (films, films), and how many there are.

    Entities are numbered from 1 on, the commonest first; 0 stands for none.
    """
    sharing: dict[str, set[int]] = {}
    for head, relation, tail in triples:
        if head in entity_films and relation.startswith("film.film."):
            sharing.setdefault(tail, set()).add(entity_films[head])
    useful = [own for own in sharing.values() if 1 < len(own) < films / 10]
    via = torch.zeros(films, films, dtype=torch.long)
    for number, own in enumerate(sorted(useful, key=len, reverse=True), start=1):
        both = torch.tensor(sorted(own))
        via[both.unsqueeze(1), both] = number
    return via, 1 + len(useful)
