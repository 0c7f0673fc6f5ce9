"""The Triton passes of row softmax losses, by both of their routes, against plain torch in float64.

Without a GPU the kernels are interpreted on the CPU; see test_triton_scores.py.
"""

import math
import os
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreter import require_interpreter
from row_softmax_cases import SIZES, problems, random
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    already = "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"
    assert not already, "Triton was imported for a GPU: set TRITON_INTERPRET=1 in conftest.py"
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")
if DEVICE == "cpu":
    require_interpreter()

from friction_triton import row_softmax as on_gpu  # noqa: E402
from friction_triton.launches import counts  # noqa: E402

from friction_kernels import row_softmax_loss  # noqa: E402
from friction_kernels.scores import route  # noqa: E402
from friction_kernels.targets import Distilled, Index, SameLabel, Scores, TopK  # noqa: E402

pytestmark = pytest.mark.deep

ROUTES = ("tiles", "fused_chunks")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(params=ROUTES)
def way(request, monkeypatch):
    """Each route, whatever d is."""
    return use(request.param, monkeypatch)


def use(name, monkeypatch):
    monkeypatch.setattr(route, "TILES_DIM", {"tiles": 1 << 30, "fused_chunks": 0}[name])
    return name


def moved(target, convert):
    """A target whose tensors are converted, wherever they are."""
    if isinstance(target, Distilled):
        return replace(target, labels=convert(target.labels), soft=moved(target.soft, convert))
    fields = {k: convert(v) for k, v in vars(target).items() if isinstance(v, Tensor)}
    return replace(target, **fields)


def results(x, w, target, options, dtype, device="cpu", rounded=None, **how):
    """Loss, lse, entropy and gradients, weighted where there are several losses, in float64.

    rounded: a dtype that inputs are rounded to first.
    """

    def convert(t):
        if not isinstance(t, Tensor) or not t.is_floating_point():
            return t.to(device) if isinstance(t, Tensor) else t
        return t.to(rounded or dtype).to(dtype).to(device)

    options = {key: convert(value) for key, value in options.items()}
    inputs = [convert(x), convert(w), torch.tensor(options["scale"]).to(convert(x)).float()]
    if dtype == torch.float64:
        inputs[2] = inputs[2].double()
    bias = options.get("bias")
    inputs += [] if bias is None else [bias]
    inputs = [t.detach().requires_grad_() for t in inputs]
    options |= {"scale": inputs[2], "bias": inputs[3] if bias is not None else None}
    found = row_softmax_loss(
        inputs[0], inputs[1], moved(target, convert), statistics=True, **options, **how
    )
    weights = torch.arange(1.0, 1 + found.loss.numel()).view(found.loss.shape).to(found.loss)
    (found.loss * weights).sum().backward()
    gradients = [t.grad for t in inputs]
    tensors = [found.loss.detach(), found.lse, found.entropy, *gradients]
    return found, [t.double().cpu() for t in tensors]


def error(found: Tensor, exact: Tensor) -> float:
    """Relative to the largest number there is; infinities and NaN must be the same."""
    odd = ~exact.isfinite()
    torch.testing.assert_close(found[odd], exact[odd], equal_nan=True)
    apart = (found - exact)[~odd].abs()
    return float(apart.max() / exact[~odd].abs().max().clamp_min(1)) if apart.numel() else 0.0


def assert_as_plain_torch(problem, dtype, name):
    """Errors are at most those of plain torch in the same dtype, and a tolerance."""
    x, w, target, options = problem
    _, exact = results(x, w, target, options, torch.float64, rounded=dtype, backend="chunked")
    _, plain = results(x, w, target, options, dtype, backend="chunked")
    ours, found = results(x, w, target, options, dtype, DEVICE, backend="triton")
    assert ours.route.name == name
    for mine, theirs, truth in zip(found, plain, exact, strict=True):
        assert mine.shape == truth.shape
        assert error(mine, truth) <= error(theirs, truth) + TOLERANCE[dtype]


@st.composite
def distilled(draw):
    """Labels and a teacher; otherwise `problems` has everything."""
    n, m = (draw(st.sampled_from(SIZES)) for _ in range(2))
    seed, d = draw(st.integers(0, 99)), draw(st.sampled_from([1, 33]))
    labels = torch.randint(m, (n,), generator=torch.Generator().manual_seed(seed))
    labels[::3] = -100
    kind = draw(st.sampled_from(["ce", "kl", "reverse_kl", "jsd", "top k"]))
    if kind == "top k":
        logprobs, ids = random(n, m, seed=seed + 2).log_softmax(1).topk(min(m, 4))
        soft = TopK(ids, logprobs, "renormalise")
    else:
        soft = Scores(random(n, 7, seed=seed + 3), random(m, 7, seed=seed + 4), scale=0.5)
    target = Distilled(labels, soft, alpha=0.3, temperature=draw(st.sampled_from([1.0, 2.5])))
    options = {"scale": 0.7, "kind": "kl" if kind == "top k" else kind, "beta": 0.1}
    options["reduction"] = draw(st.sampled_from(["mean", "none"]))
    return random(n, d, seed=seed), random(m, d, seed=seed + 9), target, options


@settings(max_examples=30 if DEVICE == "cpu" else 300, phases=[Phase.generate], deadline=None)
@given(st.one_of(problems(), distilled()), st.sampled_from(ROUTES), st.booleans())
def test_losses_of_every_kind(problem, name, several_stripes):
    soft = getattr(problem[2], "soft", problem[2])
    with pytest.MonkeyPatch.context() as patch:
        use(name, patch)
        if several_stripes:
            patch.setattr(on_gpu, "STRIPE_BYTES", 0)
            patch.setattr(on_gpu, "CHUNK_BYTES", 0)
        name = "fused_chunks" if isinstance(soft, TopK) else name
        assert_as_plain_torch(problem, torch.float32, name)


# One of each form, at sizes that are no multiple of a tile.
N, M, D = 129, 257, 127


def labels_of(n, m, seed=0):
    labels = torch.randint(m, (n,), generator=torch.Generator().manual_seed(seed))
    labels[::7] = -100
    return labels


def teacher_of(n, m, dim=33):
    return Scores(random(n, dim, seed=3), random(m, dim, seed=4), scale=0.4)


def top_k(n, m, rest, k=5):
    logprobs, ids = random(n, m, seed=2).log_softmax(1).topk(k)
    return TopK(ids, logprobs, rest)


FORMS = {
    "labels": (Index(labels_of(N, M)), {"softcap": 2.0}),
    "smoothed": (Index(labels_of(N, M)), {"label_smoothing": 0.1, "kind": "kl"}),
    "contrastive": (
        SameLabel(labels_of(N, 5), labels_of(M, 5)),
        {"mask": "diagonal", "kind": "kl"},
    ),
    "kl": (teacher_of(N, M), {"kind": "kl", "mask": "causal"}),
    "ce": (teacher_of(N, M), {"kind": "ce", "mask": torch.arange(M) % 5 > 0}),
    "reverse_kl": (teacher_of(N, M), {"kind": "reverse_kl", "mask": random(N, M) < 0.5}),
    "jsd": (teacher_of(N, M), {"kind": "jsd", "beta": 0.2, "softcap": 3.0}),
    "bucket": (top_k(N, M, "bucket"), {"kind": "kl"}),
    "drop": (top_k(N, M, "drop"), {"kind": "ce"}),
    "distilled": (Distilled(labels_of(N, M), teacher_of(N, M)), {"kind": "jsd"}),
    "distilled top k": (Distilled(labels_of(N, M), top_k(N, M, "bucket")), {"kind": "kl"}),
}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_dtype(way, form, dtype):
    target, options = FORMS[form]
    options = {"scale": 0.3, "bias": random(M, seed=5), "reduction": "none"} | options
    x, w = random(N, D, seed=6), random(M, D, seed=7)
    assert_as_plain_torch((x, w, target, options), dtype, route_of(form, way))


def route_of(form, way):
    return "fused_chunks" if form in ("bucket", "drop", "distilled top k") else way


@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (2, 127, 2), (128, 2, 129), (257, 128, 257)])
def test_sizes_that_are_no_multiple_of_a_tile(way, n, m, d):
    x, w = random(n, d, seed=6), random(m, d, seed=7)
    problem = x, w, Index(labels_of(n, m)), {"scale": d**-0.5}
    assert_as_plain_torch(problem, torch.float32, way)
