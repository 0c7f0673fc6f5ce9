"""The documents of `finetune_text.py`: CSV files of texts and labels, or embeddings in an NPZ file."""

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from command_line import InputError
from sklearn.model_selection import train_test_split
from torch import Tensor

TEST_FRACTION = 0.25
SMALLEST_CLASS = 4  # of which a quarter is still a whole test document
COLUMNS = "a header line with the columns text and label; others are left alone"
ARRAYS = "embeddings (N, d) and labels (N,)"
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # long documents are not errors


@dataclass(frozen=True)
class Part:
    """Documents to train or to test on: texts (a list) or embeddings (N, d), and labels (N,)."""

    documents: list[str] | Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, index: Tensor) -> list[str] | Tensor:
        if isinstance(self.documents, Tensor):
            return self.documents[index]
        return [self.documents[i] for i in index.tolist()]

    def sample(self, most: int | None) -> "Part":
        """At most so many documents, drawn at random and the same at every call."""
        if most is None or most >= len(self):
            return self
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:most]
        return Part(self.rows(chosen), self.labels[chosen])


@dataclass(frozen=True)
class TextSet:
    name: str
    classes: list[str]
    train: Part
    test: Part

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(self.train)} documents to train on and {len(self.test)} to test "
            f"on, {len(self.classes)} classes"
        )


def read_csv(files: list[Path], test_file: Path | None, drop_rare: bool = False) -> TextSet:
    """Texts of CSV files, or of a folder's train.csv and test.csv; a quarter is split off for testing
    where no file is given for that, if need be without rare classes."""
    if len(files) == 1 and files[0].is_dir():
        folder = files[0]
        files, test_file = [folder / "train.csv"], test_file or folder / "test.csv"
    texts, names = [], []
    for file in files:
        new_texts, new_names = read_columns(file)
        texts += new_texts
        names += new_names
    classes = sorted(set(names), key=natural)
    if len(classes) < 2:
        raise InputError(f"{files[0]} has one class only, {names[0]!r}: at least 2 are needed")
    number = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([number[name] for name in names])
    if test_file is None:
        return split(files[0], classes, Part(texts, labels), drop_rare)
    check_nothing_is_dropped(drop_rare, test_file)
    test_texts, test_names = read_columns(test_file)
    unknown = sorted(set(test_names) - set(classes))
    if unknown:
        raise InputError(
            f"{test_file} has the label {unknown[0]!r}, which no training document has: "
            "add such documents to --data or take them out"
        )
    test = Part(test_texts, torch.tensor([number[name] for name in test_names]))
    return TextSet(str(files[0].parent), classes, Part(texts, labels), test)


def natural(name: str) -> tuple:
    """Numbers in the order of numbers, before words."""
    return (0, int(name), name) if name.isascii() and name.isdigit() else (1, 0, name)


def read_columns(file: Path) -> tuple[list[str], list[str]]:
    """The texts and the labels' names of one CSV file."""
    texts, names = [], []
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, strict=True)
            found = reader.fieldnames or []
            if "text" not in found or "label" not in found:
                shown = ", ".join(repr(name) for name in found) or "none"
                raise InputError(f"{file} has the columns {shown}: it needs {COLUMNS}")
            for row in reader:
                text, name = row["text"], row["label"]
                if not (text or "").strip() or not (name or "").strip():
                    empty = "label" if (text or "").strip() else "text"
                    raise InputError(
                        f"{file}, line {reader.line_num}: {empty} is empty: fill or remove the row"
                    )
                texts.append(text)
                names.append(name.strip())
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a CSV file in UTF-8 ({error}): it needs {COLUMNS}") from (
            error
        )
    except OSError as error:
        raise InputError(f"cannot read {file} ({error.strerror}): give a CSV file") from error
    if not texts:
        raise InputError(f"{file} has no documents below its header line")
    return texts, names


def split(file: Path, classes: list[str], part: Part, drop_rare: bool) -> TextSet:
    """Three quarters to train on and one to test on, of each class."""
    counts = torch.bincount(part.labels, minlength=len(classes))
    rare = [index for index, count in enumerate(counts.tolist()) if count < SMALLEST_CLASS]
    if rare and not drop_rare:
        found = ", ".join(f"class {classes[i]!r} has {int(counts[i])} documents" for i in rare)
        raise InputError(
            f"{file}: {found}: too few to split a test set off; add some until there are "
            f"{SMALLEST_CLASS} of each, leave such classes out with --drop-rare, or give test "
            "documents with --test"
        )
    if rare:
        classes, part = without(rare, classes, part)
        print(f"Left out {len(rare)} classes with {int(counts[rare].sum())} documents.")
    if len(classes) < 2:
        raise InputError(
            f"{file} has {len(classes)} classes of {SMALLEST_CLASS} documents: 2 are needed"
        )
    parts = train_test_split(
        torch.arange(len(part)).numpy(),
        test_size=TEST_FRACTION,
        stratify=part.labels.numpy(),
        random_state=0,
    )
    train, test = (torch.from_numpy(index) for index in parts)
    train, test = (Part(part.rows(index), part.labels[index]) for index in (train, test))
    return TextSet(str(file), classes, train, test)


def without(rare: list[int], classes: list[str], part: Part) -> tuple[list[str], Part]:
    """Without the documents of some classes; the others are numbered anew."""
    kept = [index for index in range(len(classes)) if index not in set(rare)]
    number = torch.full((len(classes),), -1)
    number[kept] = torch.arange(len(kept))
    labels = number[part.labels]
    rows = (labels >= 0).nonzero().flatten()
    return [classes[index] for index in kept], Part(part.rows(rows), labels[rows])


def check_nothing_is_dropped(drop_rare: bool, test_file: Path) -> None:
    if drop_rare:
        raise InputError(
            "--drop-rare would have no effect: it is for test documents that are split off, and "
            f"{test_file} has some; leave it out"
        )


def read_embeddings(file: Path, test_file: Path | None, drop_rare: bool = False) -> TextSet:
    """Embeddings of an NPZ file; test documents are its own, those of another file, or split off."""
    arrays = read_arrays(file)
    part = checked(file, arrays.get("embeddings"), arrays.get("labels"))
    if test_file is not None:
        others = read_arrays(test_file)
        test = checked(test_file, others.get("embeddings"), others.get("labels"))
    elif "test_embeddings" in arrays:
        test = checked(file, arrays["test_embeddings"], arrays.get("test_labels"))
    else:
        test = None
    most = max(int(p.labels.max()) for p in (part, test) if p is not None) + 1
    classes = [str(name) for name in arrays.get("classes", range(most))]
    if len(classes) < max(most, 2):
        raise InputError(f"{file} has {len(classes)} classes and labels up to {most - 1}")
    if test is None:
        return split(file, classes, part, drop_rare)
    check_nothing_is_dropped(drop_rare, test_file or file)
    if part.documents.shape[1] != test.documents.shape[1]:
        raise InputError(
            f"{file} has embeddings of {part.documents.shape[1]} numbers and {test_file} of "
            f"{test.documents.shape[1]}: make both with one encoder"
        )
    return TextSet(str(file), classes, part, test)


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(
            f"cannot read {file} ({reason}): give an NPZ file with {ARRAYS}"
        ) from error
    except Exception as error:
        raise InputError(f"{file} is not an NPZ file: give one with {ARRAYS}") from error


def checked(file: Path, embeddings: np.ndarray | None, labels: np.ndarray | None) -> Part:
    if embeddings is None or labels is None:
        raise InputError(f"{file} lacks arrays: it needs {ARRAYS}")
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1] or not len(labels):
        raise InputError(
            f"{file} has embeddings {embeddings.shape} and labels {labels.shape}: it needs {ARRAYS}"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise InputError(f"{file}: labels must be whole numbers from 0 on")
    values = torch.from_numpy(embeddings.astype(np.float32))
    faulty = ~values.isfinite().all(dim=1) | (values.norm(dim=1) == 0)
    if faulty.any():
        raise InputError(f"{file}: embedding {int(faulty.nonzero()[0])} is zero or not finite")
    return Part(values, torch.from_numpy(labels.astype(np.int64)))


def save_embeddings(file: Path, texts: TextSet) -> None:
    """What `read_embeddings` reads, in half precision, which cosines of embeddings do not notice."""
    arrays = {
        "embeddings": texts.train.documents.half().numpy(),
        "labels": texts.train.labels.numpy(),
        "test_embeddings": texts.test.documents.half().numpy(),
        "test_labels": texts.test.labels.numpy(),
        "classes": np.array(texts.classes),
    }
    try:
        with file.open("wb") as opened:
            np.savez_compressed(opened, **arrays)
    except OSError as error:
        raise InputError(
            f"cannot write {file} ({error.strerror}): give another file with --save-embeddings"
        ) from error
