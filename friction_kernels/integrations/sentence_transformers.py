"""Losses as sentence-transformers calls them, for use with its Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from friction_kernels import losses
from friction_kernels.losses.distributed import is_distributed
from friction_kernels.losses.infonce import InfoNCELoss

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CITATION = """
@inproceedings{sharma2025gloss,
    title = {G-Loss: Graph-Guided Fine-Tuning of Language Models},
    author = {Sharma, Aditya and Agarwal, Vinti and Kumar, Rajesh},
    booktitle = {Learning on Graphs Conference},
    year = {2025},
    eprint = {2604.25853},
    archivePrefix = {arXiv},
    primaryClass = {cs.CL}
}
"""

INFONCE_CITATION = """
@misc{oord2019representation,
    title = {Representation Learning with Contrastive Predictive Coding},
    author = {van den Oord, Aaron and Li, Yazhe and Vinyals, Oriol},
    year = {2019},
    eprint = {1807.03748},
    archivePrefix = {arXiv},
    primaryClass = {cs.LG}
}
"""
SIMILARITIES = ("cos_sim", "dot_score")


class GLoss(nn.Module):
    """G-Loss of the sentence embeddings of a batch and their classes.

    Equals, with the embeddings that `model` computes from the dataset's single text column:

        friction_kernels.GLoss(num_classes, **options)(embeddings, labels)

    Call: loss = loss_fn(sentence_features, labels), as the Trainer does; see `forward`. `loss_fn.last` holds
    statistics of the last call.

    Source: Sharma, Agarwal, Kumar, "G-Loss: Graph-Guided Fine-Tuning of Language Models", LoG 2025,
    arXiv 2604.25853. Ours: this calling convention.

    Args:
        model: a SentenceTransformer, the first argument of every loss in sentence-transformers.
        num_classes: C, at least 2; the dataset's column `label` holds integers from 0 to C - 1.
        options: of `friction_kernels.GLoss`: sigma, gamma, form, class_weight, memory and the others.

    A batch should contain several texts of each of several classes. `BatchSamplers.GROUP_BY_LABEL` ensures
    this; `memory=GraphMemory(capacity, dim)` adds past embeddings to small batches. The Trainer treats every
    column except the label as text, so documents are identified by their tokens: texts with equal tokens are
    one document. If a model reads no tokens, the memory has no ids, and a warning explains the consequences.
    The memory follows the model's mode: evaluation adds nothing to it.

    A trained sigma is in `loss_fn.parameters()` but not among the model's parameters, which are all that an
    optimizer from `optimizer_cls_and_kwargs` receives. The Trainer's checkpoints contain neither memory nor
    sigma: save `loss_fn.graph_loss.state_dict()` along with them.

    Raises:
        ValueError, TypeError: options that `friction_kernels.GLoss` rejects, from the constructor; more
            than one text column, no labels, or labels out of range, from the call.
    """

    def __init__(self, model: SentenceTransformer, num_classes: int, **options: Any) -> None:
        super().__init__()
        self.model = model  # the Trainer replaces this attribute with its wrapped model
        self.graph_loss = losses.GLoss(num_classes, **options)

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: one dict of model inputs for N texts.
            labels: (N,) or (N, 1), integers.

        Returns:
            A scalar, or (N,) for reduction="none", in float32, or float64 if the embeddings are.
        """
        columns = list(sentence_features)
        if len(columns) != 1:
            raise ValueError(
                f"GLoss embeds one text column, and the dataset has {len(columns)}; keep one with "
                "dataset.select_columns([text, 'label'])"
            )
        if labels is None:
            raise ValueError(
                "GLoss needs each text's class; give the dataset a column 'label' of integers from 0 to "
                f"{self.graph_loss.num_classes - 1}"
            )
        self.graph_loss.train(self.model.training)
        ids = None if self.graph_loss.memory is None else text_ids(columns[0])
        embeddings = self.model(columns[0])["sentence_embedding"]
        return self.graph_loss(embeddings, labels.flatten(), ids=ids)

    @property
    def last(self) -> losses.GLossStats | None:
        """Statistics of the last call, or None before the first."""
        return self.graph_loss.last

    def get_config_dict(self) -> dict[str, Any]:
        """The configuration of this loss for a model card."""
        loss = self.graph_loss
        sigma = loss.sigma.item() if isinstance(loss.sigma, Tensor) else loss.sigma
        return {
            "num_classes": loss.num_classes,
            "sigma": sigma,
            "gamma": loss.gamma,
            "form": loss.form,
            "solver": loss.solver,
            "memory": None if loss.memory is None else loss.memory.capacity,
        }

    @property
    def citation(self) -> str:
        """The paper's BibTeX entry."""
        return CITATION


class MultipleNegativesRankingLoss(nn.Module):
    """sentence-transformers' loss of that name, whose scores are never stored as a whole.

    Equals, with the embeddings that `model` computes of the dataset's columns anchor, positive and, if there
    are any, negatives:

        loss_fn = friction_kernels.InfoNCELoss(1 / scale, symmetric)
        loss_fn(anchors, positives, negatives)

    Call: loss = loss_fn(sentence_features, labels), as the Trainer does; see `forward`.

    Source: van den Oord et al., arXiv 1807.03748; Henderson et al., arXiv 1705.00652. Ours: that scores are
    not stored.

    Args:
        model: a SentenceTransformer, the first argument of every loss in sentence-transformers.
        scale: by which similarities are multiplied, above 0; 1 / temperature (default 20.0).
        similarity_fct: sentence-transformers' `cos_sim` or `dot_score`, or their names (default "cos_sim").
        gather_across_devices: each anchor meets the candidates of all ranks. Returned is the mean over the
            anchors of all ranks, where sentence-transformers returns that over its own; gradients that
            DistributedDataParallel has averaged are the same (default False).
        symmetric: the mean of both directions, which sentence-transformers calls
            directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction" (default False).

    Raises:
        ValueError, TypeError: options out of range, from the constructor; fewer than two text columns, from
            the call.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        scale: float = 20.0,
        similarity_fct: str | Callable[[Tensor, Tensor], Tensor] = "cos_sim",
        gather_across_devices: bool = False,
        symmetric: bool = False,
    ) -> None:
        super().__init__()
        if not scale > 0:
            raise ValueError(f"scale must be above 0, got {scale}")
        name = getattr(similarity_fct, "__name__", similarity_fct)
        if name not in SIMILARITIES:
            raise ValueError(f"similarity_fct must be cos_sim or dot_score, got {similarity_fct!r}")
        self.model = model  # the Trainer replaces this attribute with its wrapped model
        self.scale, self.similarity_fct = scale, name
        self.gather_across_devices = gather_across_devices
        self.contrastive_loss = InfoNCELoss(
            1 / scale, symmetric, normalize=name == "cos_sim", gather=gather_across_devices
        )

    def forward(
        self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None
    ) -> Tensor:
        """The loss of a batch.

        Args:
            sentence_features: for each column of N texts a dict of model inputs: anchors, positives, and any
                number of columns of negatives.
            labels: (N,), not used.

        Returns:
            A scalar, in float32, or float64 if the embeddings are.
        """
        embeddings = [self.model(column)["sentence_embedding"] for column in sentence_features]
        if len(embeddings) < 2:
            raise ValueError(
                "MultipleNegativesRankingLoss needs columns of anchors and positives, and the dataset has "
                f"{len(embeddings)}"
            )
        anchors, positives, *rest = embeddings
        loss = self.contrastive_loss(anchors, positives, torch.cat(rest) if rest else None)
        if not (self.gather_across_devices and is_distributed()):
            return loss
        # Averaging over ranks divides their rows' gradients, which are parts of one sum.
        return loss + (dist.get_world_size() - 1) * (loss - loss.detach())

    def get_config_dict(self) -> dict[str, Any]:
        """The configuration of this loss for a model card."""
        return {
            "scale": self.scale,
            "similarity_fct": self.similarity_fct,
            "gather_across_devices": self.gather_across_devices,
            "symmetric": self.contrastive_loss.symmetric,
        }

    @property
    def citation(self) -> str:
        """The paper's BibTeX entry."""
        return INFONCE_CITATION


def text_ids(features: dict[str, Tensor]) -> Tensor | None:
    """(N,) int64: a hash of each text's tokens, or None if the features have no row of tokens per text.

    Padding is ignored on either side.
    """
    tokens, mask = features.get("input_ids"), features.get("attention_mask")
    if not isinstance(tokens, Tensor) or tokens.dim() != 2:
        return None
    if not isinstance(mask, Tensor) or mask.shape != tokens.shape:
        return None
    counts = mask != 0
    place = counts.long().cumsum(dim=1)
    return _mixed(_mixed(tokens.long()) + place).masked_fill(~counts, 0).sum(dim=1)


def _mixed(numbers: Tensor) -> Tensor:
    """Mix the bits of int64 numbers bijectively, with wrapping products. (The finalizer of SplitMix64.)"""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        numbers = (numbers ^ _shifted(numbers, shift)) * factor
    return numbers ^ _shifted(numbers, 31)


def _shifted(numbers: Tensor, by: int) -> Tensor:
    """Logical right shift: fills with zeros from the left."""
    return torch.bitwise_and(numbers >> by, (1 << (64 - by)) - 1)
