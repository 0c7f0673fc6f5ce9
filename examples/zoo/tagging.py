"""Heads that find the names in a sentence: a linear-chain CRF of tags, and a classifier of spans.

A word's tag is 0 outside names, 1 + 2 k at the beginning of a name of kind k, and 2 + 2 k further on in it.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

WIDEST = 6  # words of a span that the span head considers
Span = tuple[int, int, int]  # first word, word after the last, kind


def inside(lengths: Tensor, longest: int) -> Tensor:
    return torch.arange(longest) < lengths.unsqueeze(1)


def spans_of(tags: list[int]) -> set[Span]:
    """An I that does not continue its kind begins a name, as a B does."""
    spans, first = set(), 0
    for i, (before, tag) in enumerate(itertools.pairwise([0, *tags, 0])):
        if tag == 0 or tag % 2 == 1 or before not in (tag, tag - 1):
            if before:
                spans.add((first, i, (before - 1) // 2))
            first = i
    return spans


class ChainHead(nn.Module):
    """A linear-chain CRF: scores of each tag at each word, and of each pair of neighbouring tags."""

    def __init__(self, dim: int, kinds: int) -> None:
        super().__init__()
        tags = 1 + 2 * kinds
        self.emission = nn.Linear(dim, tags)
        self.transition = nn.Parameter(torch.zeros(tags, tags))

    def over_sequences(self, emissions: Tensor, lengths: Tensor, reduce: Callable) -> Tensor:
        """The logsumexp or the maximum of the scores of all tag sequences, (B,)."""
        total = emissions[:, 0]
        for t in range(1, emissions.shape[1]):
            longer = reduce(total.unsqueeze(2) + self.transition, dim=1) + emissions[:, t]
            total = torch.where((t < lengths).unsqueeze(1), longer, total)
        return reduce(total, dim=1)

    def loss(self, words: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        emissions, mask = self.emission(words), inside(lengths, tags.shape[1])
        score = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)[mask].sum()
        score = score + self.transition[tags[:, :-1], tags[:, 1:]][mask[:, 1:]].sum()
        normalizer = self.over_sequences(emissions, lengths, torch.logsumexp).sum()
        return (normalizer - score) / lengths.sum()

    @torch.enable_grad()
    def spans(self, words: Tensor, lengths: Tensor) -> list[set[Span]]:
        """The best sequence is where the best score has a gradient by the emissions."""
        emissions = self.emission(words).detach().requires_grad_()
        best = self.over_sequences(emissions, lengths, torch.amax).sum()
        tags = torch.autograd.grad(best, emissions)[0].argmax(dim=2)
        return [spans_of(row[:n]) for row, n in zip(tags.tolist(), lengths.tolist(), strict=True)]


class SpanHead(nn.Module):
    """A kind, or none, for every span of few words."""

    def __init__(self, dim: int, kinds: int) -> None:
        super().__init__()
        self.none = kinds  # the class of a span that is no name
        self.first, self.last = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.width = nn.Embedding(WIDEST, dim)
        self.kind = nn.Linear(dim, kinds + 1)

    def forward(self, words: Tensor) -> Tensor:
        """Scores (B, L, WIDEST, kinds + 1) of the spans that begin at each word."""
        ends = pad(self.last(words), (0, 0, 0, WIDEST - 1)).unfold(1, WIDEST, 1).transpose(2, 3)
        return self.kind(torch.relu(self.first(words).unsqueeze(2) + ends + self.width.weight))

    def loss(self, words: Tensor, tags: Tensor, lengths: Tensor) -> Tensor:
        labels = torch.full((*tags.shape, WIDEST), self.none)
        for i, row in enumerate(tags.tolist()):
            for first, end, kind in spans_of(row):
                if end - first <= WIDEST:
                    labels[i, first, end - first - 1] = kind
        exists = inside(lengths, tags.shape[1] + WIDEST).unfold(1, WIDEST, 1)[:, : tags.shape[1]]
        total = cross_entropy(self(words)[exists], labels[exists], reduction="sum")
        return total / lengths.sum()

    def spans(self, words: Tensor, lengths: Tensor) -> list[set[Span]]:
        """Spans that are likelier of a kind than of none, the likeliest first, without overlap."""
        chance, kind = self(words).softmax(dim=3).max(dim=3)
        likely = kind < self.none
        order = chance[likely].argsort(descending=True)
        chosen: list[set[Span]] = [set() for _ in words]
        for i, first, width in likely.nonzero()[order].tolist():
            end = first + width + 1
            if end <= lengths[i] and all(end <= a or b <= first for a, b, _ in chosen[i]):
                chosen[i].add((first, end, int(kind[i, first, width])))
        return chosen
