"""How people rated sentences: a CNN reads the words of each, a GRU the sentences of a document."""

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.utils.rnn import pad_sequence

from examples.zoo.fetch import members
from examples.zoo.rated import Document, documents_of, ratings_of, ridge
from examples.zoo.workload import Workload as Base
from friction_kernels.tasks import MultiTask, weightings

PAD, RARE, FEWEST = 0, 1, 3  # a word is known that stands in so many places of the training data
LONGEST = 32  # words of a sentence
ALERT = -1.0  # a document whose mean rating is below; ratings are from -4 to 4
WIDTHS, CHANNELS, WIDTH, BATCH = (1, 2, 3), 24, 32, 64

WEIGHTINGS = {"pcgrad": weightings.pcgrad, "mgda": weightings.mgda_two}


class Batch(NamedTuple):
    words: Tensor  # (all S, LONGEST)
    sizes: list[int]  # sentences of each document
    ratings: Tensor  # (all S,)
    alerts: Tensor  # (D,)


class SentenceNetwork(nn.Module):
    def __init__(self, words: int, width: int, weighting: weightings.Weighting) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=PAD)
        nn.init.normal_(self.words.weight, std=0.1)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, CHANNELS, size) for size in WIDTHS)
        pooled = 2 * CHANNELS * len(WIDTHS)
        self.dropout = nn.Dropout(0.5)
        self.gru = nn.GRU(pooled, width, batch_first=True)
        self.tasks = MultiTask(self.parameters(), weighting)  # what both heads share
        self.rating, self.alert = nn.Linear(pooled + width, 1), nn.Linear(width, 1)

    def forward(self, words: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """A rating of each sentence (all S,) and the logit of each document's alert (D,)."""
        if self.training:
            words = words * (torch.rand(words.shape) > 0.3)
        embedded = self.words(words).transpose(1, 2)
        maps = [torch.relu(convolve(embedded)) for convolve in self.convolutions]
        pooled = [each for own in maps for each in (own.amax(dim=2), own.mean(dim=2))]
        sentences = self.dropout(torch.cat(pooled, dim=1))
        states, _ = self.gru(pad_sequence(sentences.split(sizes), batch_first=True))
        ends = torch.tensor(sizes).unsqueeze(1)
        before = states[torch.arange(states.shape[1]) < ends]  # and with the sentence itself
        ratings = self.rating(torch.cat([sentences, before], dim=1)).squeeze(1)
        last = states[torch.arange(len(sizes)), ends.squeeze(1) - 1]
        return ratings, self.alert(last).squeeze(1)


class Workload(Base):
    title = "Ratings of sentences: CNN over words, GRU over sentences"
    packages = ("vaderSentiment",)
    variants = ("sum", *WEIGHTINGS)  # of the two tasks' gradients
    metric = "R² of ratings"
    higher_is_better = True
    lr = 7e-3
    sgd_lr = 0.1
    steps = 500

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        (archive,) = self.read("vaderSentiment", "*/hutto_ICWSM_2014.tar.gz").values()
        tables = members(archive, "*_GroundTruth.txt")
        documents = [each for _, table in sorted(tables.items()) for each in documents_of(table)]
        order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(0)).tolist()
        held_out = len(documents) // 5
        test = [documents[i] for i in order[:held_out]]
        self.train = [documents[i] for i in order[held_out:]]
        words = Counter(word for each in self.train for own in each.sentences for word in own)
        known = (word for word, count in words.items() if count >= FEWEST)
        self.vocabulary = {word: number for number, word in enumerate(known, start=RARE + 1)}
        self.test, self.held_out = test, self.batch_of(test)

    def batch_of(self, documents: list[Document]) -> Batch:
        sentences = [own for each in documents for own in each.sentences]
        words = torch.full((len(sentences), LONGEST), PAD)
        for row, own in zip(words, sentences, strict=True):
            numbers = [self.vocabulary.get(word, RARE) for word in own[:LONGEST]]
            row[: len(numbers)] = torch.tensor(numbers)
        alerts = [float(each.ratings.mean() < ALERT) for each in documents]
        sizes = [len(each.sentences) for each in documents]
        return Batch(words, sizes, ratings_of(documents), torch.tensor(alerts))

    def model(self) -> SentenceNetwork:
        words, width = RARE + 1 + len(self.vocabulary), 8 if self.miniature else WIDTH
        return SentenceNetwork(words, width, WEIGHTINGS.get(self.variant, weightings.mean)())

    def batches(self, seed: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(self.train), (BATCH,), generator=random)
            yield self.batch_of([self.train[i] for i in chosen.tolist()])

    def losses(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        ratings, alerts = model(batch.words, batch.sizes)
        of_alerts = binary_cross_entropy_with_logits(alerts, batch.alerts)
        return mse_loss(ratings, batch.ratings), of_alerts

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return sum(self.losses(model, batch))

    def backward(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.variant == "sum":
            return super().backward(model, batch)
        losses = self.losses(model, batch)
        for number, loss in enumerate(losses):
            with model.tasks.task(number):
                loss.backward(retain_graph=number == 0)
        model.tasks.combine()
        return sum(losses)

    def evaluate(self, model: nn.Module) -> float:
        ratings, _ = model(self.held_out.words, self.held_out.sizes)
        return self.explained(ratings)

    def details(self, model: nn.Module) -> dict[str, float]:
        _, alerts = model(self.held_out.words, self.held_out.sizes)
        of_ridge = torch.stack([own.mean() for own in self.ridge.split(self.held_out.sizes)])
        return {"AUC of alerts": self.auc(alerts), "of the ridge": self.auc(-of_ridge)}

    def baselines(self) -> dict[str, float]:
        return {"mean rating": 0.0, "ridge over TF-IDF": self.explained(self.ridge)}

    def explained(self, ratings: Tensor) -> float:
        """The share of the ratings' variance."""
        truth = self.held_out.ratings
        return 1 - (mse_loss(ratings, truth) / truth.var(correction=0)).item()

    def auc(self, scores: Tensor) -> float:
        return float(roc_auc_score(self.held_out.alerts.numpy(), scores.detach().numpy()))

    @cached_property
    def ridge(self) -> Tensor:
        return ridge(self.train, self.test)
