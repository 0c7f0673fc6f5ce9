"""First lines of docstrings from what follows them: sliding-window encoder, small decoder that may copy."""

import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn
from torch.nn.functional import nll_loss, pad, scaled_dot_product_attention

from examples.zoo.docstrings import Pair, docstrings, lead, rouge_l
from examples.zoo.workload import Workload as Base

PACKAGES = ("numpy", "scipy", "sklearn")  # and the standard library
SPECIAL = ("<pad>", "<begin>", "<end>", "<unknown>")
PAD, BEGIN, _, UNKNOWN = range(len(SPECIAL))
VOCABULARY, SOURCE, SUMMARY, WINDOW = 2000, 128, 16, 16  # words, and words
WIDTH, HEADS, LAYERS, BATCH = 64, 4, 2, 16
TESTED = 200


class WindowLayer(nn.Module):
    """A transformer layer in which a word sees those at most WINDOW away."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, N, width), seen (B, 1, N / WINDOW, WINDOW, 3 WINDOW)"""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3 * HEADS, -1)).transpose(1, 2).chunk(3, 1)
        q = q.unflatten(2, (-1, WINDOW))  # (B, HEADS, chunks, WINDOW, width / HEADS)
        k, v = (
            pad(t, (0, 0, WINDOW, WINDOW)).unfold(2, 3 * WINDOW, WINDOW).transpose(-1, -2)
            for t in (k, v)
        )
        attended = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.out(attended.flatten(2, 3).transpose(1, 2).flatten(2))
        return x + self.mlp(self.mlp_norm(x))


def window_mask(kept: Tensor) -> Tensor:
    """What a word sees: itself, and what is no padding in its window."""
    distance = torch.arange(3 * WINDOW) - WINDOW - torch.arange(WINDOW)[:, None]
    keys = pad(kept, (WINDOW, WINDOW)).unfold(1, 3 * WINDOW, WINDOW)[:, None, :, None]
    return (keys & (distance.abs() <= WINDOW)) | (distance == 0)


class Summariser(nn.Module):
    """Log-probabilities of each next word of a summary; a word is written, or copied from the source."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(0.02 * torch.randn(SOURCE, width))
        self.encoder = nn.ModuleList(WindowLayer(width) for _ in range(LAYERS))
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.decoder = nn.TransformerDecoderLayer(width, HEADS, 4 * width, **options)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.copy = nn.Linear(width, width)

    def forward(self, source: Tensor, shown: Tensor) -> Tensor:
        """source (B, SOURCE) and shown (B, S) -> (B, S, vocabulary)"""
        return self.decode(source, self.encode(source), shown)

    def encode(self, source: Tensor) -> Tensor:
        seen = window_mask(source != PAD)
        x = self.words(source) + self.positions
        for layer in self.encoder:
            x = layer(x, seen)
        return x

    def decode(self, source: Tensor, memory: Tensor, shown: Tensor) -> Tensor:
        kept, length = source != PAD, shown.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        x = self.words(shown) + self.positions[:length]
        x = self.decoder(
            x, memory, tgt_mask=causal, tgt_is_causal=True, memory_key_padding_mask=~kept
        )
        x = self.norm(x)
        copied = self.copy(x) @ memory.transpose(1, 2) / memory.shape[-1] ** 0.5
        copied = copied.masked_fill(~kept[:, None], -torch.inf)
        written = self.head(x)
        chances = torch.cat([written, copied], dim=-1).softmax(dim=-1)
        written, copied = chances.split([written.shape[-1], source.shape[1]], dim=-1)
        own = source[:, None].expand_as(copied)
        return written.scatter_add(2, own, copied).clamp_min(1e-10).log()


class Workload(Base):
    title = "Sliding-window summaries of docstrings"
    metric = "ROUGE-L"
    higher_is_better = True
    lr = 3e-3
    sgd_lr = 0.1
    steps = 100

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        train, test = [], []
        for root, pattern in self.sources():
            found = docstrings(root, pattern, SUMMARY)
            train += found[0]
            test += found[1]
        self.train, self.test = train, test[:: len(test) // (8 if self.miniature else TESTED)]
        counts = Counter(word for pair in train for part in pair for word in part)
        common = counts.most_common(100 if self.miniature else VOCABULARY)
        self.words = [*SPECIAL, *(word for word, _ in common)]
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def sources(self) -> Iterator[tuple[Path, str]]:
        yield Path(sysconfig.get_path("stdlib")), "*.py"
        if not self.miniature:
            for name in PACKAGES:
                yield Path(torch.__file__).parents[1] / name, "**/*.py"

    def ids(self, texts: list[list[str]], length: int) -> Tensor:
        rows = [[self.numbers.get(word, UNKNOWN) for word in text[:length]] for text in texts]
        return torch.tensor([row + [PAD] * (length - len(row)) for row in rows])

    def model(self) -> nn.Module:
        return Summariser(len(self.words), 16 if self.miniature else WIDTH)

    def batches(self, seed: int) -> Iterator[list[Pair]]:
        random = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(self.train), (BATCH,), generator=random)
            yield [self.train[row] for row in chosen.tolist()]

    def loss(self, model: nn.Module, batch: list[Pair]) -> Tensor:
        source = self.ids([body for body, _ in batch], SOURCE)
        summary = self.ids([["<begin>", *head, "<end>"] for _, head in batch], SUMMARY + 2)
        logits = model(source, summary[:, :-1]).flatten(0, 1)
        return nll_loss(logits, summary[:, 1:].flatten(), ignore_index=PAD)

    def evaluate(self, model: nn.Module) -> float:
        source = self.ids([body for body, _ in self.test], SOURCE)
        memory, written = model.encode(source), torch.full((len(source), 1), BEGIN)
        for _ in range(SUMMARY):
            chances = model.decode(source, memory, written)[:, -1]
            chances[:, [PAD, BEGIN, UNKNOWN]] = -torch.inf
            written = torch.cat([written, chances.argmax(dim=1, keepdim=True)], dim=1)
        texts = [[self.words[number] for number in row] for row in written[:, 1:].tolist()]
        return self.rouge(
            [text[: text.index("<end>")] if "<end>" in text else text for text in texts]
        )

    def rouge(self, texts: list[list[str]]) -> float:
        pairs = zip(texts, self.test, strict=True)
        return sum(rouge_l(text, head) for text, (_, head) in pairs) / len(self.test)

    def baselines(self) -> dict[str, float]:
        vectors = TfidfVectorizer(analyzer=list)
        known = vectors.fit_transform(body for body, _ in self.train)
        near = (vectors.transform(body for body, _ in self.test) @ known.T).argmax(axis=1)
        return {
            "the lead sentence": self.rouge([lead(body, SUMMARY) for body, _ in self.test]),
            "first line of the nearest text": self.rouge([self.train[row][1] for row in near.flat]),
        }
