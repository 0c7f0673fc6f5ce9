"""Documents whose sentences were rated by people, and what a linear model makes of them."""

import re
from itertools import pairwise
from typing import NamedTuple

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from torch import Tensor

TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|[:;=]-?[()dp]|[!?.]+|\d+|\S")
MOST = 12  # sentences of a document


class Document(NamedTuple):
    sentences: list[list[str]]
    ratings: Tensor  # (S,)


def words_and_pairs(words: list[str]) -> list[str]:
    return words + [" ".join(pair) for pair in pairwise(words)]


def ratings_of(documents: list[Document]) -> Tensor:
    return torch.cat([each.ratings for each in documents])


def documents_of(table: bytes) -> list[Document]:
    """Of lines with DOCUMENT_SENTENCE, or a number where each text stands alone, rating and text."""
    found: dict[str, list[tuple[float, list[str]]]] = {}
    for line in table.decode(errors="replace").splitlines():
        number, rating, text = line.split("\t", 2)
        own = found.setdefault(number.partition("_")[0], [])
        own.append((float(rating), TOKEN.findall(text.lower())))
    rated = [list(zip(*own[:MOST], strict=True)) for own in found.values()]
    return [Document(list(texts), torch.tensor(ratings)) for ratings, texts in rated]


def ridge(learned: list[Document], asked: list[Document]) -> Tensor:
    """Ratings by a ridge regression over TF-IDF of words and pairs of words."""
    features = TfidfVectorizer(analyzer=words_and_pairs, sublinear_tf=True, min_df=2)
    texts = [[own for each in part for own in each.sentences] for part in (learned, asked)]
    fitted = Ridge().fit(features.fit_transform(texts[0]), ratings_of(learned).numpy())
    return torch.from_numpy(fitted.predict(features.transform(texts[1]))).float()
