"""Drop-in optimizers that update every parameter of every group in one launch (AdamP: three)."""

from friction_kernels import lists, targets, tasks
from friction_kernels.graph import gaussian_sigma, label_propagation
from friction_kernels.guidance import GradientGuidance
from friction_kernels.launches import LaunchCounts, count_launches
from friction_kernels.lora import lora_param_groups
from friction_kernels.losses import GLoss, GLossStats, GraphMemory
from friction_kernels.losses.attention_alignment import AttentionAlignment
from friction_kernels.losses.distillation import DistillationLoss
from friction_kernels.losses.feature_alignment import FeatureAlignment
from friction_kernels.losses.infonce import InfoNCELoss
from friction_kernels.losses.linear_cross_entropy import LinearCrossEntropyLoss
from friction_kernels.losses.retrieval import RetrievalLoss
from friction_kernels.losses.row_softmax import RowSoftmaxStats, row_softmax_loss
from friction_kernels.losses.supcon import SupConLoss
from friction_kernels.optim import (
    OPTIMIZERS,
    RSGDM,
    SGD,
    Adam,
    AdamP,
    AdamW,
    DiffGrad,
    DiffGradW,
    DirectionStats,
    FrictionAdamW,
    FrictionStats,
    SigSignAdamP,
    SigSignAdamW,
    SigSignGrad,
    TanhSignAdamP,
    TanhSignAdamW,
    TanhSignGrad,
    clip_grad_norm_,
    direction_stats,
    friction_stats,
    release_gradients,
)
from friction_kernels.version import __version__

__all__ = [
    "OPTIMIZERS",
    "RSGDM",
    "SGD",
    "Adam",
    "AdamP",
    "AdamW",
    "AttentionAlignment",
    "DiffGrad",
    "DiffGradW",
    "DirectionStats",
    "DistillationLoss",
    "FeatureAlignment",
    "FrictionAdamW",
    "FrictionStats",
    "GLoss",
    "GLossStats",
    "GradientGuidance",
    "GraphMemory",
    "InfoNCELoss",
    "LaunchCounts",
    "LinearCrossEntropyLoss",
    "RetrievalLoss",
    "RowSoftmaxStats",
    "SigSignAdamP",
    "SigSignAdamW",
    "SigSignGrad",
    "SupConLoss",
    "TanhSignAdamP",
    "TanhSignAdamW",
    "TanhSignGrad",
    "__version__",
    "clip_grad_norm_",
    "count_launches",
    "direction_stats",
    "friction_stats",
    "gaussian_sigma",
    "label_propagation",
    "lists",
    "lora_param_groups",
    "release_gradients",
    "row_softmax_loss",
    "targets",
    "tasks",
]
