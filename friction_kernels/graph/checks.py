"""Validate a graph's input before anything is changed; errors name the input and the remedy."""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor

NAMED_AT_MOST = 10  # invalid rows listed in an error
INTEGERS = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
)


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):  # numpy integers are allowed
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if high is not None and int(value) > high:
        raise ValueError(f"{name} must be at most {high}, got {value}")


def check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value < 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")


def check_ignore_index(ignore_index: object) -> None:
    check_integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)


def check_sigma(sigma: object) -> None:
    """Accept a float or a tensor of one element, whose value is checked when it is used."""
    if not isinstance(sigma, Tensor):
        check_positive("sigma", sigma)
    elif sigma.numel() != 1 or not sigma.is_floating_point():
        raise ValueError(
            f"sigma as a tensor must be one floating-point number, got {sigma.dtype} of shape "
            f"{tuple(sigma.shape)}"
        )


def check_embeddings(embeddings: Tensor) -> None:
    if not isinstance(embeddings, Tensor) or not embeddings.is_floating_point():
        got = embeddings.dtype if isinstance(embeddings, Tensor) else type(embeddings).__name__
        raise TypeError(f"embeddings must be a floating-point tensor, got {got}")
    if embeddings.dim() != 2 or embeddings.shape[1] == 0:
        raise ValueError(
            f"embeddings must have shape (N, d), got {tuple(embeddings.shape)}; "
            "flatten or pool what comes before"
        )


def check_batch(
    embeddings: Tensor, labels: Tensor, labelled: Tensor | None, ids: Tensor | None = None
) -> None:
    """Check types, shapes and devices, without reading values."""
    check_embeddings(embeddings)
    _check_integers("labels", "class indices", labels)
    _check_one_per_row("labels", labels, embeddings)
    if ids is not None:
        _check_integers("ids", "one number a document", ids)
        _check_one_per_row("ids", ids, embeddings)
    if labelled is not None:
        if not isinstance(labelled, Tensor) or labelled.dtype != torch.bool:
            got = labelled.dtype if isinstance(labelled, Tensor) else type(labelled).__name__
            raise TypeError(f"labelled must be a bool tensor, got {got}")
        _check_one_per_row("labelled", labelled, embeddings)


def _check_integers(name: str, what: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or tensor.dtype not in INTEGERS:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be an integer tensor of {what}, got {got}")


def int64_labels(labels: Tensor) -> Tensor:
    """The labels as int64, so that they can be compared with any ignore_index."""
    wide = labels.long()
    if labels.dtype == torch.uint64:  # too large for int64: no class, but must not turn negative
        wide = wide.where(wide >= 0, torch.iinfo(torch.int64).max)
    return wide


def raise_for_ids(outside: Tensor) -> None:
    """outside: bool (N,), true where an id is out of range."""
    raise ValueError(
        f"ids must be above -2^63 and below 2^63, and are not in {rows_at_fault(outside)}; number the "
        "documents otherwise, such as by their places in the data set"
    )


def _check_one_per_row(name: str, tensor: Tensor, embeddings: Tensor) -> None:
    if tensor.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{name} must have shape ({len(embeddings)},), one entry a row of embeddings, got "
            f"{tuple(tensor.shape)}"
        )
    if tensor.device != embeddings.device:
        raise ValueError(
            f"{name} is on {tensor.device} and embeddings on {embeddings.device}; move one of them"
        )


def check_class_weight(class_weight: Tensor | None, num_classes: int) -> None:
    if class_weight is None:
        return
    if not isinstance(class_weight, Tensor) or not class_weight.is_floating_point():
        raise TypeError(f"class_weight must be a floating-point tensor, got {class_weight!r}")
    if class_weight.shape != (num_classes,):
        raise ValueError(
            f"class_weight must have shape ({num_classes},), one weight a class, got "
            f"{tuple(class_weight.shape)}"
        )
    if not bool((class_weight >= 0).all() & class_weight.isfinite().all()):
        raise ValueError(f"class_weight must be finite and not negative, got {class_weight}")


def rows_at_fault(faulty: Tensor) -> str:
    """List the rows where a bool tensor (N,) is true, abbreviated."""
    rows = faulty.nonzero()[:, 0].tolist()
    more = f" and {len(rows) - NAMED_AT_MOST} more" if len(rows) > NAMED_AT_MOST else ""
    return (
        f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:NAMED_AT_MOST]))}{more}"
    )
