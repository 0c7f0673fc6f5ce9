"""Films for a user along paths user, film, person, film: a GRU reads the paths, attention weighs them."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

from examples.zoo.movielens import numbered, rows_of, shared_entities
from examples.zoo.workload import Workload as Base

PATHS, HISTORY = 4, 100  # of a user and a film; a user's latest films, with which paths begin
OTHERS, RIVALS = 7, 99  # films beside the seen one, in training and in the test
HITS = 10  # places at the top
BATCH, READ = 512, 48  # users with a film each, and those of them whose paths are read
WIDTH = 32
Batch = tuple[Tensor, Tensor]  # users (B,) and films (B, 1 + OTHERS), the seen one first
Paths = tuple[Tensor, Tensor, Tensor]  # films, ratings, entities or 0 for none; (B, N, PATHS) each


class PathNetwork(nn.Module):
    """How well a film suits a user: their product, and what the paths between them say."""

    def __init__(self, users: int, films: int, entities: int, width: int) -> None:
        """entities: those that the paths go through; none for the product alone."""
        super().__init__()
        self.user, self.film = table(users, width), table(films, width)
        self.popularity = table(films, 1)
        if entities:
            self.entity, self.rating = table(entities, width), table(6, width)
            self.gru = nn.GRU(width, width, batch_first=True)
            self.no_path = nn.Parameter(torch.zeros(width))
            self.query, self.score = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, users: Tensor, films: Tensor, paths: Paths | None) -> Tensor:
        """Scores (B, N) of users (B,) and films (B, N)."""
        user = self.user(users).unsqueeze(1).expand(*films.shape, -1)
        product = user * self.film(films)
        score = product.sum(dim=2) + self.popularity(films).squeeze(2)
        if paths is None:
            return score
        read = self.read(user, films, *paths)
        weights = (read @ self.query(product).unsqueeze(3)).softmax(dim=2)
        return score + self.score((weights * read).sum(dim=2)).squeeze(2)

    def read(
        self, user: Tensor, films: Tensor, known: Tensor, rated: Tensor, via: Tensor
    ) -> Tensor:
        """Each path (B, N, PATHS, width): from the user to a film, to an entity, to the other film."""
        film = self.film(films).unsqueeze(2).expand(*via.shape, -1)
        steps = torch.stack([self.film(known) + self.rating(rated), self.entity(via), film], dim=3)
        start = user.unsqueeze(2).expand_as(film).flatten(0, 2).unsqueeze(0).contiguous()
        _, last = self.gru(steps.flatten(0, 2), start)
        return torch.where(via.unsqueeze(3) > 0, last.view_as(film), self.no_path)


def table(rows: int, width: int) -> nn.Embedding:
    embedding = nn.Embedding(rows, width)
    nn.init.normal_(embedding.weight, std=0.1)
    return embedding


class Workload(Base):
    title = "Films along paths of a knowledge graph: GRU and attention"
    packages = ("recbole",)
    variants = ("paths", "no-paths")
    metric = f"HR@{HITS}"
    higher_is_better = True
    lr = 2e-2
    sgd_lr = 10.0
    steps = 500

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        files = self.read("recbole", "*/ml-100k.*")
        tables = {name.rpartition(".")[2]: rows_of(file) for name, file in files.items()}
        views = sorted(tables["inter"], key=lambda row: float(row[3]))  # by time
        users = numbered(user for user, *_ in views)
        films = numbered(film for _, film, *_ in views)
        self.films = len(films)
        entity_films = {entity: films[film] for film, entity in tables["link"] if film in films}
        self.via, self.entities = shared_entities(tables["kg"], entity_films, self.films)
        seen: list[list[tuple[int, int]]] = [[] for _ in users]
        for user, film, rating, _ in views:
            seen[users[user]].append((films[film], round(float(rating))))
        last = torch.tensor([own.pop()[0] for own in seen])
        self.train = torch.tensor(
            [(user, film) for user, own in enumerate(seen) for film, _ in own]
        )
        self.history = pad_sequence(  # (users, HISTORY, 2): film and rating
            [torch.tensor(own[-HISTORY:]) for own in seen], batch_first=True, padding_value=-1
        )
        self.seen = torch.zeros(len(users), self.films)
        self.seen[self.train[:, 0], self.train[:, 1]] = 1
        unseen = 1 - self.seen
        unseen[torch.arange(len(users)), last] = 0
        rivals = unseen.multinomial(RIVALS, generator=torch.Generator().manual_seed(0))
        self.test = torch.arange(len(users)), torch.cat([last.unsqueeze(1), rivals], dim=1)

    def model(self) -> PathNetwork:
        width = 8 if self.miniature else WIDTH
        entities = self.entities if self.variant == "paths" else 0
        return PathNetwork(len(self.seen), self.films, entities, width)

    def batches(self, seed: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(self.train), (BATCH,), generator=random)
            users, seen = self.train[chosen].unbind(1)
            others = torch.randint(self.films, (BATCH, OTHERS), generator=random)
            yield users, torch.cat([seen.unsqueeze(1), others], dim=1)

    def paths(self, users: Tensor, films: Tensor) -> Paths:
        """From a user's latest films those that share the rarest entities with a film."""
        known, rated = self.history[users].unsqueeze(1).unbind(3)  # (B, 1, HISTORY)
        via = self.via[known, films.unsqueeze(2)]
        via = torch.where((known >= 0) & (known != films.unsqueeze(2)), via, 0)
        via, which = via.topk(PATHS, dim=2)
        known, rated = (
            each.expand(-1, films.shape[1], -1).gather(2, which).clamp(min=0)
            for each in (known, rated)
        )
        return known, rated, via

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of the seen film among others. All users teach the product, and a few of them the paths, too."""
        users, films = batch
        scores = model(users, films, None)
        if self.variant == "paths":
            few = users[:READ], films[:READ]
            scores = torch.cat([model(*few, self.paths(*few)), scores[READ:]])
        return cross_entropy(scores, torch.zeros_like(users))

    def evaluate(self, model: nn.Module) -> float:
        tensors = self.test if self.variant == "no-paths" else (*self.test, *self.test_paths)
        parts = zip(*(each.split(64) for each in tensors), strict=True)
        return hit_rate(torch.cat([model(*part[:2], part[2:] or None) for part in parts]))

    @cached_property
    def test_paths(self) -> Paths:
        users, films = (each.split(64) for each in self.test)
        found = map(self.paths, users, films)
        return tuple(map(torch.cat, zip(*found, strict=True)))

    def baselines(self) -> dict[str, float]:
        of_film = normalize(self.seen, dim=0)
        alike = self.seen @ (of_film.T @ of_film)
        popularity = self.seen.sum(dim=0).expand_as(self.seen)
        return {
            "chance": HITS / (1 + RIVALS),
            "popularity": hit_rate(popularity.gather(1, self.test[1])),
            "seen by the same users": hit_rate(alike.gather(1, self.test[1])),
        }


def hit_rate(scores: Tensor) -> float:
    """How often fewer than HITS rivals beat the seen film, which is the first; a tie is half a win."""
    seen, rivals = scores[:, :1], scores[:, 1:]
    wins = (rivals > seen).sum(dim=1) + 0.5 * (rivals == seen).sum(dim=1)
    return (wins < HITS).float().mean().item()
