"""Which route computes a row softmax loss, that it is said, and that the page says the same."""

from pathlib import Path
from unittest import mock

import pytest
import torch

from friction_kernels import row_softmax_loss
from friction_kernels.scores import route
from friction_kernels.targets import Distilled, Index, Scores, TopK

PAGE = Path(__file__).parents[1] / "docs" / "score-losses.md"
LABELS = Index(torch.zeros(3, dtype=torch.long))
TOP_K = TopK(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1))


class OnGpu:
    """What a route depends on of a tensor."""

    def __init__(self, dim=64, dtype=torch.bfloat16, device="cuda"):
        self.shape, self.dtype, self.device = (3, dim), dtype, torch.device(device)


def choose(target=LABELS, triton=True, backend="auto", w=None, **options):
    def reason(device, dtype):
        assert dtype in (torch.float32, torch.float64)
        return None if triton and dtype != torch.float64 else "it is not here"

    x = OnGpu(**options)
    with mock.patch.object(route, "triton_unavailable_reason", reason):
        return route.choose_route(x, w or x, target, backend)


def teacher(dim=64, dtype=torch.bfloat16):
    return Scores(*[OnGpu(dim, dtype)] * 2)


@pytest.mark.parametrize(
    ("name", "options"),
    (
        ("tiles", {"dim": 256}),
        ("tiles", {"target": teacher(256)}),
        ("tiles", {"dtype": torch.float32, "target": teacher(dtype=torch.float32)}),
        ("tiles", {"device": "cpu", "backend": "triton"}),  # interpreted
        ("fused_chunks", {"dim": 257}),
        ("fused_chunks", {"target": teacher(257)}),
        ("fused_chunks", {"target": teacher(dtype=torch.float32)}),
        ("fused_chunks", {"target": TOP_K}),
        ("fused_chunks", {"target": Distilled(LABELS.labels, TOP_K)}),
        ("chunked", {"device": "cpu"}),
        ("chunked", {"triton": False}),
        ("chunked", {"dtype": torch.float64}),
        ("chunked", {"w": OnGpu(dtype=torch.float64)}),
        ("chunked", {"target": teacher(dtype=torch.float64)}),
        ("chunked", {"backend": "chunked"}),
    ),
)
def test_the_first_route_of_the_table_that_serves(name, options):
    chosen = choose(**options)
    assert chosen.name == name
    assert chosen.reason == route.ROUTES[name].when


def test_only_auto_falls_back_and_says_so():
    with pytest.raises(RuntimeError, match="backend='triton' cannot serve: it is not here"):
        choose(triton=False, backend="triton")
    for options in ({}, {"backend": "chunked", "triton": False}, {"device": "cpu"}):
        assert choose(**options).fallback_reason is None
    with pytest.warns(UserWarning, match="it is not here. Plain torch computes the same"):
        route.warn_of_fallback(choose(triton=False))
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'chunked'"):
        row_softmax_loss(torch.ones(3, 2), torch.ones(4, 2), LABELS, backend="dense")


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    (
        (("bfloat16", "bfloat16"), "bfloat16"),
        (("bfloat16", "float16"), "float32"),
        (("bfloat16", "float32"), "float32"),
        (("float16", "float64"), "float64"),
    ),
)
def test_dtype_of_products(dtypes, expected):
    tensors = [torch.ones(1, dtype=getattr(torch, name)) for name in dtypes]
    assert route.product_dtype(*tensors) == getattr(torch, expected)


def test_statistics_say_the_route():
    found = row_softmax_loss(torch.ones(3, 2), torch.ones(4, 2), LABELS, statistics=True)
    assert (found.route.name, found.route.reason) == ("chunked", route.ROUTES["chunked"].when)


def test_the_page_has_the_table():
    rows = [f"| `{name}` | {row.when} | {row.how} |" for name, row in route.ROUTES.items()]
    assert "\n".join(["| route | when | how |", "|---|---|---|", *rows, ""]) in PAGE.read_text()
