"""What `row_softmax_loss` compares rows with."""

from friction_kernels.scores.targets import Index, SameLabel, Scores, TopK

__all__ = ["Index", "SameLabel", "Scores", "TopK"]
