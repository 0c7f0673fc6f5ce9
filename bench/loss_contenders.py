"""Who is compared in row softmax losses: ours by each backend, and plain torch with stored scores."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from bench.list_contenders import Entry
from bench.records import first_line
from friction_kernels import SupConLoss, row_softmax_loss
from friction_kernels.targets import Distilled, Index, SameLabel, Scores

OURS, CHUNKED, STORED = "row_softmax_loss", "row_softmax_loss in plain torch", "stored scores"
SUPCON, PEER = "SupConLoss", "pytorch_metric_learning SupConLoss"
MANY_ROWS = "contrastive_65536"  # minutes a step, and more scores than a machine has memory for
TEMPERATURE, ALPHA = 2.0, 0.5


class Sizes(NamedTuple):
    rows: int
    columns: int
    dim: int
    teacher_dim: int = 16


SIZES = {
    "cuda": {
        "vocabulary": Sizes(8192, 151_936, 2048),
        "distillation": Sizes(8192, 151_936, 2048, 4096),
        "contrastive": Sizes(65_536, 65_536, 768),
    },
    "cpu": {
        "vocabulary": Sizes(2048, 50_257, 768),
        "distillation": Sizes(2048, 50_257, 768, 768),
        "contrastive": Sizes(4096, 4096, 384),
        MANY_ROWS: Sizes(65_536, 65_536, 384),
    },
}
MINIATURE = Sizes(64, 96, 16)
STORED_COPIES = 8  # of the scores in float32, about, that plain torch has at once


class Given(NamedTuple):
    x: Tensor
    w: Tensor
    labels: Tensor
    teacher: Scores

    @classmethod
    def of(cls, sizes: Sizes, device: str, dtype: torch.dtype) -> "Given":
        torch.manual_seed(0)

        def pair(dim: int) -> list[Tensor]:
            shapes = ((rows, dim) for rows in (sizes.rows, sizes.columns))
            drawn = (torch.randn(shape, device=device) for shape in shapes)
            return [functional.normalize(matrix).to(dtype) for matrix in drawn]

        x, w = (matrix.requires_grad_() for matrix in pair(sizes.dim))
        labels = torch.randint(min(sizes.columns, 1000), (sizes.rows,), device=device)
        return cls(x, w, labels, Scores(*pair(sizes.teacher_dim), scale=20.0))


def ours(name: str, given: Given, backend: str) -> Tensor:
    target, options = Index(given.labels), {"scale": 20.0}
    if name == "distillation":
        target = Distilled(given.labels, given.teacher, ALPHA, TEMPERATURE)
        options["kind"] = "kl"
    elif name == "contrastive":
        target = SameLabel(given.labels, given.labels.repeat(2)[: len(given.w)])
    return row_softmax_loss(given.x, given.w, target, backend=backend, validate=False, **options)


def stored(name: str, given: Given) -> Tensor:
    z = (20.0 * (given.x @ given.w.T)).float()
    if name == "contrastive":
        positive = given.labels[:, None] == given.labels.repeat(2)[: len(given.w)]
        of_positives = (z.log_softmax(1) * positive).sum(1) / positive.sum(1)
        return -of_positives.mean()
    hard = functional.cross_entropy(z, given.labels)
    if name == "vocabulary":
        return hard
    with torch.no_grad():
        z_t = (given.teacher.scale * (given.teacher.x @ given.teacher.w.T)).float()
        q = (z_t / TEMPERATURE).log_softmax(1)
    soft = functional.kl_div(
        (z / TEMPERATURE).log_softmax(1), q, reduction="batchmean", log_target=True
    )
    return (1 - ALPHA) * hard + ALPHA * TEMPERATURE**2 * soft


def of_peer(given: Given) -> Callable[[], Tensor]:
    """Labels of few classes, which each have many positives; every row meets all others."""
    from pytorch_metric_learning.losses import SupConLoss as Peer

    loss_fn = Peer(temperature=1 / 20.0)
    return lambda: loss_fn(given.x, given.labels % 100)


def step_of(given: Given, loss: Callable[[], Tensor]) -> Callable[[], None]:
    def step() -> None:
        given.x.grad = given.w.grad = None
        loss().backward()

    return step


def entries_of(name: str, given: Given, device: str) -> tuple[list[Entry], dict[str, str]]:
    """Who is compared, and why who is missing is."""
    supcon = SupConLoss(temperature=1 / 20.0)
    step = step_of(given, lambda: supcon(given.x, given.labels % 100))
    if name == MANY_ROWS:
        return [Entry(SUPCON, step, True, slow=True)], {}
    found = [Entry(OURS, step_of(given, lambda: ours(name, given, "auto")), True, STORED)]
    if device == "cuda":
        chunked = step_of(given, lambda: ours(name, given, "chunked"))
        found.append(Entry(CHUNKED, chunked, True, STORED, slow=True))
    found.append(Entry(STORED, step_of(given, lambda: stored(name, given))))
    missing = {}
    if name == "contrastive":
        found.append(Entry(SUPCON, step, True, PEER))
        try:
            found.append(Entry(PEER, step_of(given, of_peer(given))))
        except ImportError as error:
            missing[PEER] = first_line(error)
    return found, missing
