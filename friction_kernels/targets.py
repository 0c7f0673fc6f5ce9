"""What `row_softmax_loss` compares rows with."""

from friction_kernels.scores.targets import Distilled, Index, SameLabel, Scores, TopK

__all__ = ["Distilled", "Index", "SameLabel", "Scores", "TopK"]
