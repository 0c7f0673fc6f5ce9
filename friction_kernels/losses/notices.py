"""Warnings that GLoss gives once: batches from which little can be learnt."""

from __future__ import annotations

from friction_kernels.graph.nodes import Nodes
from friction_kernels.warn import warn


def warn_of_one_document() -> None:
    warn(
        "GLoss was given one document, of which nothing can be recovered: its loss is zero, here "
        "and wherever that happens (loss_fn.num_skipped counts); set drop_last=True in the "
        "DataLoader to leave out what remains at the end of an epoch (said once)"
    )


def warn_without_ids(capacity: int) -> None:
    warn(
        "GLoss with a memory was given documents without ids: one whose older row is in the "
        "memory meets that row, which is labelled and gives its hidden label away, so that the loss "
        f"teaches nothing (of all documents, where the memory's capacity, {capacity}, is that of "
        "the data set); pass ids=, an integer for each document such as its place in the data set, or "
        "keep the capacity far below their number (said once)"
    )


def warn_of_rows_without_ids() -> None:
    warn(
        "GraphMemory.add was given rows without ids: a document that comes again is not recognised, and "
        "meets its own row, which is labelled and gives its hidden label away; pass ids=, an integer for "
        "each document such as its place in the data set (said once)"
    )


def warn_of_missing_classes(nodes: Nodes) -> None:
    present = nodes.labels[: nodes.num_labelled]
    wanted = nodes.labels[nodes.num_labelled : nodes.num_known]
    missing = sorted(set(wanted.tolist()) - set(present.tolist()))
    warn(
        f"no labelled node has class {', '.join(map(str, missing))}, which unlabelled nodes have: "
        "they cannot be recovered; use larger or stratified batches, a larger gamma, or a "
        "GraphMemory (said once)"
    )
