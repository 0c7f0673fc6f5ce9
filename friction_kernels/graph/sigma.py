"""gaussian_sigma: choose the width of a similarity graph from the distances between embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import reduce
from typing import Literal, get_args

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.graph import checks
from friction_kernels.graph.torch_modes import refuse_transforms
from friction_kernels.graph.unit_rows import unit_rows

Rule = Literal["root", "mst", "median"]
RULES = get_args(Rule)
ELEMENTS_AT_ONCE = 1 << 21  # of distances: 16 MiB in float64
SAME_POINT = 1e-13  # squared distance over squared length that rounding to float32 can cause


@torch.no_grad()
def gaussian_sigma(
    embeddings: Tensor,
    labels: Tensor | None = None,
    rule: Rule = "root",
    *,
    normalize: bool = True,
    ignore_index: int = -100,
) -> float:
    """A width for GLoss and label_propagation, computed without an N x N matrix. Equals:

        D = torch.cdist(z, z)  # z: the rows, see `normalize`
        "root":   sqrt(D.median() / 3)  # of all N^2 entries
        "mst":    D[(labels[:, None] != labels) & (D > 0)].min() / 3
                  # or, if there is no such pair, D[i < j].median() / 3
        "median": D[i < j].median()

    The median of an even number of values is the smaller middle one, as in torch. Distances are computed
    in float64, and a median's square is rounded to float32.

    Source: "root" and "mst" are from the authors' code of arXiv 2604.25853 ("mst" is its name for the rule;
    no spanning tree is built); "median" is the common median heuristic (arXiv 1707.07269). Ours:
    `normalize`, and for N = 2 "root" uses the only distance, where the published median would be 0.

    Args:
        embeddings: (N, d), floating-point, N at least 2.
        labels: (N,), integers of any type, required for "mst" (default None).
        rule: "root", "mst" or "median" (default "root").
        normalize: measure between rows of unit length, as the graph does; False uses the rows unchanged,
            as the authors' code does (default True).
        ignore_index: "mst" ignores pairs in which a row has this label (default -100).

    Returns:
        sigma, in units of distance between the rows.

    Raises:
        ValueError, TypeError: invalid embeddings or labels, or a rule without a positive result.
        RuntimeError: a transform of torch.func.
    """
    check_choice("rule", rule, RULES)
    checks.check_ignore_index(ignore_index)
    checks.check_embeddings(embeddings)
    refuse_transforms("gaussian_sigma", embeddings)
    if len(embeddings) < 2:
        raise ValueError(f"sigma needs at least two embeddings, got {len(embeddings)}")
    if rule == "mst" and labels is None:
        raise ValueError("rule 'mst' needs labels; pass them, or use rule 'root' or 'median'")
    if labels is not None:
        checks.check_batch(embeddings, labels, None)
        labels = checks.int64_labels(labels)
    z, scale = embeddings.double(), 1.0
    if normalize:
        z, usable = unit_rows(z)
    else:
        usable = z.isfinite().all(dim=1)
    if not bool(usable.all()):
        what = "NaN, infinite or zero length" if normalize else "NaN or infinity"
        raise ValueError(
            f"embeddings have {what} in {checks.rows_at_fault(~usable)}; leave these rows out"
        )
    if not normalize:  # exact scaling, so that squared distances are in float32's range
        scale = 2.0 ** (math.frexp(float(z.abs().max()))[1] - 1)
        z = z / scale
    sigma = _RULES[rule](z, labels, ignore_index)
    sigma *= math.sqrt(scale) if rule == "root" else scale
    if not 0 < sigma < math.inf:
        raise ValueError(
            f"rule {rule!r} gives sigma={sigma}, because most embeddings are the same point; "
            "choose sigma yourself"
        )
    return sigma


def _root(z: Tensor, labels: Tensor | None, ignore_index: int) -> float:
    n = len(z)
    middle = (n * n - 1) // 2  # sorted: n zeros of the diagonal, then each pair twice
    return math.sqrt(_ordered_distance(z, max(middle - n, 0) // 2) / 3)


def _median(z: Tensor, labels: Tensor | None, ignore_index: int) -> float:
    pairs = len(z) * (len(z) - 1) // 2
    return _ordered_distance(z, (pairs - 1) // 2)


def _mst(z: Tensor, labels: Tensor | None, ignore_index: int) -> float:
    assert labels is not None
    smallest = z.new_full((), math.inf)
    known = labels != ignore_index
    squared_length = (z * z).sum(dim=1)
    for rows, squared in _squared_distances(z):
        here, there = slice(rows.start, rows.stop), slice(rows.start, None)
        counts = (labels[here, None] != labels[there]) & known[here, None] & known[there]
        apart = squared > SAME_POINT * (squared_length[here, None] + squared_length[there])
        smallest = smallest.minimum(squared.masked_fill_(~(counts & apart), math.inf).min())
    if smallest.isfinite():
        return math.sqrt(smallest) / 3
    return _median(z, labels, ignore_index) / 3


_RULES = {"root": _root, "mst": _mst, "median": _median}


def _squared_distances(z: Tensor) -> Iterator[tuple[range, Tensor]]:
    """Yield (rows, squared distances to all nodes from the first of these rows on); inf where j <= i."""
    squared_length = (z * z).sum(dim=1)
    step = max(1, ELEMENTS_AT_ONCE // len(z))
    for start in range(0, len(z), step):
        rows = range(start, min(start + step, len(z)))
        squared = torch.addmm(squared_length[start:], z[start : rows.stop], z[start:].T, alpha=-2)
        squared.add_(squared_length[start : rows.stop, None]).clamp_min_(0)
        block = squared[:, : len(rows)]
        block.masked_fill_(torch.ones_like(block, dtype=torch.bool).tril_(), math.inf)
        yield rows, squared


def _ordered_distance(z: Tensor, k: int) -> float:
    """The k-th smallest distance (from 0) between pairs of rows, in two passes that only count.

    The bits of non-negative float32 numbers have the order of the numbers. The first pass counts their
    upper halves, the second the lower halves among those with the upper half found.
    """

    def find(count_of: Tensor, k: int) -> tuple[int, int]:
        up_to = count_of.cumsum(0)
        place = int(torch.searchsorted(up_to, k, right=True))
        return place, k - (int(up_to[place - 1]) if place else 0)

    upper, k = find(reduce(torch.add, (_histogram(bits >> 16) for bits in _distance_bits(z))), k)
    lower_bits = (bits[bits >> 16 == upper] & 0xFFFF for bits in _distance_bits(z))
    lower, _ = find(reduce(torch.add, map(_histogram, lower_bits)), k)
    bits = torch.tensor(upper << 16 | lower, dtype=torch.int32)
    return math.sqrt(bits.view(torch.float32))


def _distance_bits(z: Tensor) -> Iterator[Tensor]:
    for _, squared in _squared_distances(z):
        yield squared.float().view(torch.int32).flatten()


def _histogram(values: Tensor) -> Tensor:
    return torch.bincount(values, minlength=1 << 16)
