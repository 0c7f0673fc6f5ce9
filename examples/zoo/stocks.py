"""Next month's winners and losers among 20 stocks: price encoder, correlation graph, sector level."""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.zoo.workload import Workload as Base

SECTORS = {
    "technology": ("AAPL", "AMD", "MSFT"),
    "finance": ("BAC", "JPM"),
    "retail": ("BBY", "HD"),
    "energy": ("CVX", "RRC", "XOM"),
    "industry": ("GE",),
    "health": ("JNJ", "LLY", "MRK", "PFE", "UNH"),
    "staples": ("KO", "PEP", "PG", "WMT"),
}
YEAR, MONTH, WEEK = 250, 21, 5  # trading days
TEST_YEARS = 8
WIDTH, BATCH = 32, 32
LOSER, MIDDLE, WINNER = range(3)


class GraphNetwork(nn.Module):
    """Each stock's year of weeks (B, S, weeks, 2), then its neighbours, then its sector."""

    def __init__(self, membership: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("membership", membership)  # (S, sectors), one-hot
        self.encoder = nn.GRU(2, width, batch_first=True)
        self.own, self.neighbours = nn.Linear(width, width), nn.Linear(width, width)
        self.warmth = nn.Parameter(torch.tensor(5.0))  # of the softmax over correlations
        self.sector = nn.Linear(width, width)
        self.head = nn.Sequential(nn.Linear(3 * width, width), nn.ReLU(), nn.Linear(width, 3))

    def forward(self, weeks: Tensor, correlations: Tensor) -> Tensor:
        _, state = self.encoder(weeks.flatten(0, 1))
        stocks = state[-1].unflatten(0, weeks.shape[:2])
        edges = (self.warmth * correlations).softmax(dim=-1)
        mixed = torch.relu(self.own(stocks) + self.neighbours(edges @ stocks))
        sectors = self.membership.T @ mixed / self.membership.sum(dim=0)[:, None]
        levels = [stocks, mixed, self.membership @ torch.relu(self.sector(sectors))]
        return self.head(torch.cat(levels, dim=-1))


class Workload(Base):
    title = "Hierarchical graph network over stocks"
    packages = ("skfolio",)
    metric = "accuracy"
    higher_is_better = True
    lr = 3e-3
    sgd_lr = 0.3
    steps = 150

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        (table,) = self.read("skfolio", "*/sp500_dataset.csv.gz").values()
        head, *lines = gzip.decompress(table).decode().splitlines()
        names = head.split(",")[1:]
        prices = np.array([line.split(",")[1:] for line in lines], dtype=np.float64)
        self.returns = torch.from_numpy(np.diff(np.log(prices), axis=0)).float()  # (days, S)
        rows = [[name in own for own in SECTORS.values()] for name in names]
        self.membership = torch.tensor(rows).float()
        days = torch.arange(YEAR, len(self.returns) - MONTH)  # the day after what is known
        test_days = min(TEST_YEARS * YEAR, len(days) // 4)
        # A month between the two, so that no return is in both.
        self.train_days, self.test_days = days[: -test_days - MONTH], days[-test_days::WEEK]

    def model(self) -> nn.Module:
        return GraphNetwork(self.membership, 8 if self.miniature else WIDTH)

    def batches(self, seed: int) -> Iterator[Tensor]:
        random = torch.Generator().manual_seed(seed)
        while True:
            yield self.train_days[torch.randint(len(self.train_days), (BATCH,), generator=random)]

    def inputs(self, days: Tensor) -> tuple[Tensor, Tensor]:
        """Weekly returns and their sizes, and correlations, of the year before each day."""
        year = self.returns[days[:, None] - YEAR + torch.arange(YEAR)]  # (B, YEAR, S)
        # One scale for all stocks, so that it can be seen which of them move most.
        weeks = (year / year.std(dim=(1, 2), keepdim=True)).unflatten(1, (-1, WEEK))
        scaled = (year - year.mean(dim=1, keepdim=True)) / year.std(dim=1, keepdim=True)
        features = torch.stack([weeks.sum(dim=2) / WEEK**0.5, weeks.abs().mean(dim=2)], dim=-1)
        return features.transpose(1, 2), scaled.transpose(1, 2) @ scaled / YEAR

    def classes(self, gains: Tensor) -> Tensor:
        """The lower three tenths of the stocks, the upper three tenths, and those between."""
        ranks = gains.argsort(dim=1).argsort(dim=1) / gains.shape[1]
        return torch.where(ranks < 0.3, LOSER, torch.where(ranks < 0.7, MIDDLE, WINNER))

    def labels(self, days: Tensor) -> Tensor:
        return self.classes(self.returns[days[:, None] + torch.arange(MONTH)].sum(dim=1))

    def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        return cross_entropy(model(*self.inputs(batch)).flatten(0, 1), self.labels(batch).flatten())

    def accuracy(self, predicted: Tensor) -> float:
        return (predicted == self.labels(self.test_days)).float().mean().item()

    def evaluate(self, model: nn.Module) -> float:
        return self.accuracy(model(*self.inputs(self.test_days)).argmax(dim=-1))

    def baselines(self) -> dict[str, float]:
        year = self.returns[self.test_days[:, None] - YEAR + torch.arange(YEAR)]
        labels = self.labels(self.train_days)
        commonest = torch.stack([column.bincount(minlength=3).argmax() for column in labels.T])
        return {
            "always the middle": self.accuracy(
                torch.full_like(self.labels(self.test_days), MIDDLE)
            ),
            "each stock's commonest class": self.accuracy(commonest),
            "momentum: as in the last year": self.accuracy(self.classes(year.sum(dim=1))),
            "reversal: opposite of last month": self.accuracy(
                self.classes(-year[:, -MONTH:].sum(dim=1))
            ),
        }
