"""What every model of the zoo offers to the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from examples.command_line import InputError
from examples.zoo import fetch

NAMES = (
    "encoder_gpt",
    "entities",
    "graph_t5",
    "sentiment",
    "stocks",
    "summaries",
    "comments",
    "paths",
)
Batch = Any  # what `batches` yields and `loss` takes


class Workload(ABC):
    """A small model of the zoo: its data, its loss, and what it is measured by.

    A module NAME.py has one subclass, called Workload, too. Its constructor loads the data; it raises
    InputError, which says what to run, where a package was not fetched.
    """

    title: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()  # names in fetch.PACKAGES
    variants: ClassVar[tuple[str, ...]] = ()  # given as NAME:VARIANT; the first is the default
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]
    lr: ClassVar[float]  # of AdamW: the best of a small search
    sgd_lr: ClassVar[float]  # of SGD with Nesterov momentum of 0.9, likewise
    steps: ClassVar[int]  # of a whole training: some 15 seconds on two cores

    def __init__(self, folder: Path, *, miniature: bool = False, variant: str = "") -> None:
        """miniature: little data and small sizes, for tests."""
        self.folder, self.miniature = folder, miniature
        self.variant = variant or next(iter(self.variants), "")

    @property
    def module(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def name(self) -> str:
        """As on the command line."""
        is_default = self.variant in ("", *self.variants[:1])
        return self.module if is_default else f"{self.module}:{self.variant}"

    def read(self, package: str, pattern: str) -> dict[str, bytes]:
        """The members of a package whose paths match, by path."""
        return fetch.read(self.folder, package, pattern, needed_by=self.module)

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model, with weights drawn from torch's global generator."""

    @abstractmethod
    def batches(self, seed: int) -> Iterator[Batch]:
        """Batches without end, the same ones for the same seed."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor: ...

    def backward(self, model: nn.Module, batch: Batch) -> Tensor:
        """Leave the gradients of a batch, and return its loss."""
        loss = self.loss(model, batch)
        loss.backward()
        return loss

    @abstractmethod
    def evaluate(self, model: nn.Module) -> float:
        """The metric on held-out data; the model is in eval mode and no gradient is kept."""

    def details(self, model: nn.Module) -> dict[str, float]:
        """Further figures of the same kind, by name; none by default."""
        return {}

    @abstractmethod
    def baselines(self) -> dict[str, float]:
        """The metric of what needs no such model, by name."""


def workload_class(name: str) -> type[Workload]:
    """Of a module's name, with a variant or without."""
    module, colon, variant = name.partition(":")
    if module not in NAMES:
        raise InputError(f"unknown model {module!r}: choose of {', '.join(NAMES)}")
    found: type[Workload] = import_module(f"examples.zoo.{module}").Workload
    if colon and variant not in found.variants:
        known = ", ".join(found.variants) or "none"
        raise InputError(f"{module} has no variant {variant!r}: it has {known}")
    return found


def load(name: str, folder: Path, *, miniature: bool = False) -> Workload:
    return workload_class(name)(folder, miniature=miniature, variant=name.partition(":")[2])
