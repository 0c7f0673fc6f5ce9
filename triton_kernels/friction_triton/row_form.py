"""The form of a row softmax loss: what of it is known when its kernels are compiled."""

from __future__ import annotations

from dataclasses import dataclass

import triton.language as tl


@dataclass(frozen=True)
class Form:
    """A constexpr of every kernel, so that each is compiled for what a loss needs."""

    hard: str = "none"  # or "index", "labels": the columns that are compared with a row
    soft: str = "none"  # or "ce", "kl", "reverse_kl", "jsd": how a teacher is compared with
    rest: str = "scores"  # of a teacher; of stored probabilities "drop", "renormalise" or "bucket"
    tempered: bool = False  # whether the teacher is compared with softmax(z / temperature)
    smoothed: bool = False  # labels
    entropy: bool = False  # whether it is asked for
    kl: bool = False  # of labels: with the entropy of their distribution
    mask: str = "none"  # or "causal", "diagonal", "stored"
    excludes_diagonal: bool = False


# What a split of the columns knows of a row. Of each softmax: a maximum, and three sums of the exponentials
# below it, of which the last has what the softmax is compared with.
STUDENT: tl.constexpr = tl.constexpr(0)
SOFT: tl.constexpr = tl.constexpr(4)  # of z / temperature; only if tempered
TEACHER: tl.constexpr = tl.constexpr(8)
OTHERS: tl.constexpr = tl.constexpr(12)  # of columns that no probability is stored of
CHOSEN: tl.constexpr = tl.constexpr(16)  # scores of the label or of the positives, added up
NUMBER: tl.constexpr = tl.constexpr(17)  # of positives; or all scores, added up
SUMS: tl.constexpr = tl.constexpr(18)

# What is known of a row when all its columns are. Of each softmax: its maximum, and the logarithm of the sum
# of the exponentials below it, which together have more digits than the logarithm of the whole sum.
LOSS: tl.constexpr = tl.constexpr(0)
LSE: tl.constexpr = tl.constexpr(1)
ENTROPY: tl.constexpr = tl.constexpr(2)
COUNTED: tl.constexpr = tl.constexpr(3)  # 1 or 0
OWN: tl.constexpr = tl.constexpr(4)  # 1 / positives; the mean that "reverse_kl" and "jsd" subtract
OF_STUDENT: tl.constexpr = tl.constexpr(5)
OF_SOFT: tl.constexpr = tl.constexpr(7)
OF_TEACHER: tl.constexpr = tl.constexpr(9)
OF_OTHERS: tl.constexpr = tl.constexpr(11)
FOUND: tl.constexpr = tl.constexpr(13)
