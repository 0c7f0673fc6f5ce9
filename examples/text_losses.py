"""The losses of `finetune_text.py`, each a module of (embeddings, scores, labels, ids)."""

import argparse
import importlib.util

import torch
from command_line import InputError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from friction_kernels import GLoss, GraphMemory

LOSSES = ("ce", "gloss", "ce+gloss", "supcon")
FORMS = ("official", "log")
SUPCON_LIBRARY = "pytorch_metric_learning"


class Loss(nn.Module):
    """Cross-entropy, a loss of the embeddings, or their sum: (1 - share) CE + share * of_embeddings."""

    def __init__(self, of_embeddings: nn.Module | None, share: float) -> None:
        super().__init__()
        self.of_embeddings, self.share = of_embeddings, share

    def forward(self, embeddings: Tensor, scores: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """ids: the documents' places in the data set, by which a memory knows them again."""
        total = scores.new_zeros(())
        if self.share < 1:
            total = total + (1 - self.share) * cross_entropy(scores, labels)
        if self.of_embeddings is not None:
            options = {"ids": ids} if isinstance(self.of_embeddings, GLoss) else {}
            total = total + self.share * self.of_embeddings(embeddings, labels, **options)
        return total

    @property
    def trains_classifier(self) -> bool:
        return self.share < 1


def make_loss(
    name: str, form: str, num_classes: int, dim: int, args: argparse.Namespace, seed: int
) -> Loss:
    """form: of the G-Loss in it; seed: of G-Loss's draws."""
    if name == "ce":
        return Loss(None, 0.0)
    if name == "supcon":
        check_library()
        from pytorch_metric_learning.losses import SupConLoss

        return Loss(SupConLoss(temperature=args.temperature), 1.0)
    gloss = GLoss(
        num_classes,
        sigma=args.sigma,
        gamma=args.gamma,
        form=form,
        memory=GraphMemory(args.memory, dim) if args.memory else None,
        generator=torch.Generator().manual_seed(seed),
    )
    return Loss(gloss, 1.0 if name == "gloss" else args.weight)


def check_library() -> None:
    if importlib.util.find_spec(SUPCON_LIBRARY) is None:
        raise InputError(
            "--loss supcon is that of pytorch-metric-learning: pip install pytorch-metric-learning "
            "(or 'friction-kernels[text]')"
        )
