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


# What a split of the columns knows of a row. Softmaxes are a maximum and three sums of exponentials below it:
# of themselves, and times what is compared.
STUDENT: tl.constexpr = tl.constexpr(0)  # z, with sums of z and of what its softmax is compared with
SOFT: tl.constexpr = tl.constexpr(4)  # z / temperature, likewise; only if tempered
TEACHER: tl.constexpr = tl.constexpr(8)  # with the sum of what its softmax is compared with
OTHERS: tl.constexpr = tl.constexpr(12)  # columns that no probability is stored of
CHOSEN: tl.constexpr = tl.constexpr(16)  # scores of the label or of the positives, added up
NUMBER: tl.constexpr = tl.constexpr(17)  # of positives; or all scores, added up
SUMS: tl.constexpr = tl.constexpr(18)

# What is known of a row when all its columns are.
LOSS: tl.constexpr = tl.constexpr(0)
LSE: tl.constexpr = tl.constexpr(1)
ENTROPY: tl.constexpr = tl.constexpr(2)
COUNTED: tl.constexpr = tl.constexpr(3)  # 1 or 0
SOFT_LSE: tl.constexpr = tl.constexpr(4)  # of z / temperature
TEACHER_LSE: tl.constexpr = tl.constexpr(5)
OTHERS_LSE: tl.constexpr = tl.constexpr(6)
OWN: tl.constexpr = tl.constexpr(7)  # 1 / positives; the mean that "reverse_kl" and "jsd" subtract
FOUND: tl.constexpr = tl.constexpr(8)
