"""The Triton passes of row softmax losses, by both of their routes, against plain torch in float64.

Without a GPU the kernels are interpreted on the CPU; see test_triton_scores.py.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from interpreter import device_of_triton
from row_softmax_cases import SIZES, problems, random
from torch import Tensor

DEVICE = device_of_triton()

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
            patch.setattr(on_gpu, "CHUNK_BYTES", 1)
        name = "fused_chunks" if isinstance(soft, TopK) else name
        assert_as_plain_torch(problem, torch.float32, name)


# One of each form, at sizes that are no multiple of a tile.
N, M, D = 66, 129, 65


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


def test_rows_without_columns_and_scores_that_are_no_numbers(way):
    """They do not count, or show; and no other row is touched."""
    mask = torch.ones(4, 70, dtype=torch.bool)
    mask[1] = False
    bias = random(70, seed=5)
    bias[3] = -math.inf
    x, w = random(4, 6, seed=6), random(70, 6, seed=7)
    x[2] = math.nan
    for target, kind in (
        (Index(torch.tensor([0, 1, 2, -100])), "ce"),
        (SameLabel(torch.zeros(4, dtype=torch.long), torch.zeros(70, dtype=torch.long)), "ce"),
        *((replace(teacher_of(4, 70), bias=bias), kind) for kind in ("kl", "reverse_kl", "jsd")),
    ):
        options = {"scale": 1.0, "kind": kind, "bias": bias, "mask": mask, "reduction": "none"}
        how = {"validate": False}
        plain, exact = results(x, w, target, options, torch.float64, backend="chunked", **how)
        ours, found = results(x, w, target, options, torch.float32, DEVICE, backend="triton", **how)
        assert ours.route.name == way
        assert ours.counted.tolist() == plain.counted.tolist()
        assert not ours.counted[1] and ours.loss[1] == 0 and found[1][1] == -math.inf
        assert ours.loss[2].isnan() and found[3][2].isnan().all() and not found[3][1].any()
        for mine, truth in zip((*found[:2], found[3]), (*exact[:2], exact[3]), strict=True):
            assert error(mine, truth) <= 2e-6


def test_without_a_row_that_counts_loss_and_gradients_are_zero(way):
    x, w = (random(*shape).float().to(DEVICE).requires_grad_() for shape in ((3, 2), (5, 2)))
    labels = torch.full((3,), -100, device=DEVICE)
    loss = row_softmax_loss(x, w, Index(labels), backend="triton", validate=False)
    loss.backward()
    assert loss == 0 and not x.grad.any() and not w.grad.any()


def test_labels_that_a_loss_does_not_weigh_may_be_impossible(way):
    x, w, bias = random(6, 8), random(17, 8, seed=1), random(17, seed=2)
    bias[0] = -math.inf
    teacher = Scores(random(6, 8, seed=3), random(17, 8, seed=4), bias=bias)
    options = {"scale": 1.0, "bias": bias, "kind": "kl"}
    target = Distilled(torch.zeros(6, dtype=torch.long), teacher, alpha=1.0)
    found = results(x, w, target, options, torch.float32, DEVICE, backend="triton")[1]
    exact = results(x, w, target, options, torch.float64)[1]
    assert exact[0].isfinite()
    assert error(found[0], exact[0]) < 1e-6 and error(found[3], exact[3]) < 1e-6


def test_scores_of_any_size(way):
    """Nothing overflows that need not."""
    x, w = 200 * random(20, 6, seed=6), random(70, 6, seed=7)
    for target, kind in ((Index(labels_of(20, 70)), "ce"), (teacher_of(20, 70), "jsd")):
        problem = x, w, target, {"scale": 1.0, "kind": kind}
        assert_as_plain_torch(problem, torch.float32, way)
    far = TopK(torch.tensor([[0]]), torch.tensor([[-0.7]]).double(), "bucket")
    problem = torch.ones(1, 1), torch.tensor([[200.0], [0.0], [-1.0]]), far, {"scale": 1.0}
    assert_as_plain_torch(problem, torch.float32, "fused_chunks")


def test_a_large_vocabulary(monkeypatch):
    way, n, m = use("fused_chunks", monkeypatch), 3, 151_936
    x, w = random(n, 16, seed=6), random(m, 16, seed=7)
    problem = x, w, Index(torch.tensor([m - 1, 0, -100])), {"scale": 0.5, "softcap": 5.0}
    assert_as_plain_torch(problem, torch.bfloat16, way)


def test_any_strides(way):
    x, w = random(40, 20, seed=6).float().to(DEVICE), random(20, 70, seed=7).float().to(DEVICE)
    labels = torch.stack([labels_of(20, 70)] * 2, 1).to(DEVICE)
    mask = (random(70, 40) < 1).to(DEVICE)
    some, other = x[::2, ::2], w.T[:, ::2]
    assert not any(t.is_contiguous() for t in (some, other, labels[:, 0], mask.T[::2]))

    def loss(x, w, labels, mask):
        options = {"backend": "triton", "validate": False, "reduction": "none"}
        return row_softmax_loss(x, w, Index(labels), mask=mask, **options)

    given_ = some, other, labels[:, 0], mask.T[::2]
    expected = loss(*(t.contiguous() for t in given_))
    assert torch.equal(loss(*given_), expected) and expected.isfinite().any()


def step(n=300, m=200, dim=40, frozen=False, target=None, **options):
    x, w = (random(*shape).float().to(DEVICE).requires_grad_() for shape in ((n, dim), (m, dim)))
    w.requires_grad_(not frozen)
    target = target or Index(labels_of(n, m).to(DEVICE))
    options = {"backend": "triton", "validate": False} | options
    before = dict(counts)
    row_softmax_loss(x, w, target, **options).sum().backward()
    launched = {k: v - before.get(k, 0) for k, v in counts.items() if v > before.get(k, 0)}
    return launched, x.grad, w.grad


def test_the_same_inputs_give_the_same_bits(way):
    (_, *first), (_, *second) = step(), step()
    assert all(map(torch.equal, first, second))


def test_launches(way, monkeypatch):
    """Sums, losses and derivatives of each part; nothing is computed twice unless it must be."""
    once = {"row_sums_kernel": 1, "row_losses_kernel": 1, "row_derivatives_kernel": 1}
    assert step()[0] == once
    with torch.no_grad():
        assert step_without_gradients() == {k: v for k, v in once.items() if "deriv" not in k}
    teacher = moved(teacher_of(300, 200), lambda t: t.float().to(DEVICE))
    assert step(target=teacher, kind="jsd")[0] == once | {"row_mixture_kernel": 1}
    none = step(reduction="none")[0]  # forward, and again in backward
    assert none == once | {"row_sums_kernel": 2, "row_losses_kernel": 2}
    monkeypatch.setattr(on_gpu, "STRIPE_BYTES", 0)  # stripes of 128 rows
    assert step()[0] == dict.fromkeys(once, 3)


def step_without_gradients():
    before = dict(counts)
    x, w = random(300, 40).float().to(DEVICE), random(200, 40).float().to(DEVICE)
    row_softmax_loss(x, w, Index(labels_of(300, 200).to(DEVICE)), backend="triton", validate=False)
    return {k: v - before.get(k, 0) for k, v in counts.items() if v > before.get(k, 0)}


def test_a_frozen_matrix_costs_no_gradient(way, monkeypatch):
    shapes, multiply = [], on_gpu.product

    def record(a, b, out, *, add=False):
        shapes.append(tuple(out.shape))
        multiply(a, b, out, add=add)

    monkeypatch.setattr(on_gpu, "product", record)
    _, of_x, of_w = step(frozen=True)
    assert of_x is not None and of_w is None
    assert shapes == [(300, 200)] * (way == "fused_chunks") + [(300, 40)]


def test_factors_of_rows_beyond_float16(way):
    """As of a loss scale: dL/dz is stored without the largest of them."""
    x, w = 1e-3 * random(20, 40), random(30, 40, seed=1)
    x, w = x.half().to(DEVICE), w.half().to(DEVICE).requires_grad_()
    target, gradients = Index(labels_of(20, 30).to(DEVICE)), []
    for factor in (1.0, 2.0**17):
        loss = row_softmax_loss(x, w, target, backend="triton", reduction="none")
        gradients += torch.autograd.grad(loss.sum() * factor, w)
    torch.testing.assert_close(gradients[1], gradients[0] * 2.0**17, rtol=1e-2, atol=0.5)
