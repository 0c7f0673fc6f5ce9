"""GLoss: its value and gradient, its draw, its errors and warnings, and what it works together with."""

import math
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from graph_cases import GOLDEN, clusters, read_golden, relative
from interpreter import require_interpreter
from torch.autograd import forward_ad
from torch.nn.functional import cross_entropy, nll_loss

from friction_kernels.graph import dense, gaussian_sigma, label_propagation
from friction_kernels.losses import GLoss, GraphMemory


def batch(num_nodes=60, dim=8, num_classes=3, dtype=torch.float32):
    e, labels = clusters(num_nodes, dim, num_classes)
    return e.to(dtype).requires_grad_(), labels, torch.arange(num_nodes) % 3 > 0


@pytest.mark.parametrize("backend", ("chunked", "dense"))
@pytest.mark.parametrize(
    ("dtype", "precision", "of_loss", "of_grad"),
    (
        (torch.float64, "fp32", 1e-10, 1e-10),
        (torch.float32, "fp32", 1e-5, 5e-5),
        (torch.float32, "bf16", 1e-2, 1e-2),
    ),
)
@pytest.mark.parametrize("name", GOLDEN)
def test_equals_the_authors_code(golden_dir, name, dtype, precision, of_loss, of_grad, backend):
    golden = read_golden(golden_dir, name)
    loss_fn = GLoss(
        golden.num_classes,
        sigma=golden.sigma,
        class_weight=golden.class_weight,
        precision=precision,
        backend=backend,
        tol=1e-13 if dtype == torch.float64 else 1e-5,
    )
    e = golden.embeddings.to(dtype).requires_grad_()
    loss = loss_fn(e, golden.labels, labelled=golden.labelled)
    loss.backward()
    assert loss.dtype == dtype
    assert loss.item() == pytest.approx(golden.loss, rel=of_loss)
    assert relative(e.grad, golden.grad) <= of_grad
    right = golden.propagated.argmax(dim=1) == golden.labels[golden.num_labelled :]
    assert loss_fn.last.accuracy.item() == pytest.approx(right.double().mean().item(), abs=0.02)
    assert loss_fn.last.num_labelled == golden.num_labelled
    assert loss_fn.last.num_scored == len(golden.labels) - golden.num_labelled
    assert loss_fn.last.residual < 1e-5


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("form", ("official", "log"))
def test_is_the_torch_code_that_it_says_it_equals(form, weighted, reduction):
    e, labels, labelled = batch(dtype=torch.float64)
    labels[[4, 5, 30]] = -100
    labelled &= labels >= 0
    weight = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64) if weighted else None
    loss_fn = GLoss(3, form=form, class_weight=weight, reduction=reduction, tol=1e-13)
    ours = loss_fn(e, labels, labelled=labelled)
    f = label_propagation(e, labels, 3, labelled=labelled, tol=1e-13)
    expected_labels = labels.masked_fill(labelled, -100)  # torch leaves these out of its mean
    if form == "official":
        expected = cross_entropy(f, expected_labels, weight, reduction=reduction)
    else:
        expected = nll_loss(f.clamp_min(1e-6).log(), expected_labels, weight, reduction=reduction)
    assert ours.shape == expected.shape
    assert torch.allclose(ours, expected, rtol=1e-10)
    of_ours, of_expected = (torch.autograd.grad(x.sum(), e)[0] for x in (ours, expected))
    assert relative(of_ours, of_expected) < 1e-9


def test_log_form_of_a_class_that_cannot_be_recovered_is_finite():
    e, labels, labelled = batch()
    labels = torch.where(labelled, labels % 2, 2)
    with pytest.warns(UserWarning, match="no labelled node has class 2"):
        loss = GLoss(3, form="log")(e, labels, labelled=labelled)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-6), rel=1e-4)
    assert e.grad.isfinite().all()


def test_ignored_documents_are_nodes_but_are_not_scored():
    e, labels, labelled = batch()
    labels[0] = labels[3] = -100
    labelled[[0, 3]] = False
    loss_fn = GLoss(3, tol=1e-6)
    loss = loss_fn(e, labels, labelled=labelled)
    assert loss_fn.last.num_scored == int((~labelled).sum()) - 2
    assert loss_fn.last.num_nodes == 60
    (grad,) = torch.autograd.grad(loss, e)
    assert grad[[0, 3]].abs().min() > 0  # they carry labels on to others
    keep = labels >= 0
    without = loss_fn(e[keep], labels[keep], labelled=labelled[keep])
    assert (loss - without).abs() > 1e-6
    assert GLoss(3, ignore_index=7)(
        e, labels.where(keep, 7), labelled=labelled
    ).item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("gamma", "expected"), ((0.7, 35), (0.0, 1), (0.999, 49), (0.01, 1), (0.61, 31))
)
def test_draws_a_rounded_up_share_of_the_known_labels(gamma, expected):
    e, labels, _ = batch()
    labels[:10] = -100
    loss_fn = GLoss(3, gamma=gamma)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss_fn(e, labels)
    assert loss_fn.last.num_labelled == expected
    assert loss_fn.last.num_scored == 50 - expected


@pytest.mark.deep
def test_every_call_draws_anew_uniformly_and_as_the_generator_says():
    e, labels, _ = batch(num_nodes=12)
    scored = torch.zeros(12)
    loss_fn = GLoss(3, gamma=0.5, reduction="none", generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(400):
            scored += loss_fn(e, labels).detach() > 0
    assert scored.sum() == 400 * 6
    assert (scored - 200).abs().max() < 50  # five standard deviations

    def losses(seed):
        loss_fn = GLoss(3, generator=torch.Generator().manual_seed(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [loss_fn(e, labels).item() for _ in range(3)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
    assert len(set(losses(1))) == 3


def test_the_draw_does_not_depend_on_the_default_type():
    e, labels = clusters(600, 4, 3)
    ids, drawn = torch.arange(600), []
    for dtype in (torch.float32, torch.bfloat16):
        loss_fn = GLoss(3, gamma=0.5, reduction="none", generator=torch.Generator().manual_seed(0))
        torch.set_default_dtype(dtype)
        try:
            drawn.append(loss_fn(e, labels, ids=ids) != 0)
        finally:
            torch.set_default_dtype(torch.float32)
        assert loss_fn.last.num_scored == 300
    assert torch.equal(*drawn)


def test_sigma_learns():
    e, labels, labelled = batch()
    loss_fn = GLoss(3, sigma="learnable", form="log")
    assert loss_fn.sigma.item() == pytest.approx(0.5)
    optimizer = torch.optim.SGD(loss_fn.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = loss_fn(e.detach(), labels, labelled=labelled)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert loss_fn.sigma > 0


def test_sigma_may_be_a_tensor_a_parameter_or_a_rule():
    e, labels, labelled = batch()
    expected = GLoss(3, sigma=0.4)(e, labels, labelled=labelled).item()
    tensor = torch.tensor(0.4, requires_grad=True)
    loss = GLoss(3, sigma=tensor)(e, labels, labelled=labelled)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert tensor.grad.abs() > 0
    parameter = torch.nn.Parameter(torch.tensor([0.4]))
    assert next(GLoss(3, sigma=parameter).parameters()) is parameter
    for rule in ("root", "mst", "median"):
        by_rule = GLoss(3, sigma=rule)(e, labels, labelled=labelled)
        by_hand = GLoss(3, sigma=gaussian_sigma(e, labels, rule))(e, labels, labelled=labelled)
        assert torch.equal(by_rule, by_hand)


@pytest.mark.parametrize("form", ("official", "log"))
@pytest.mark.parametrize("backend", ("chunked", "dense"))
def test_gradcheck(form, backend):
    e, labels, labelled = batch(num_nodes=12, dim=4, dtype=torch.float64)

    def loss(e, sigma):
        return GLoss(3, sigma=sigma, form=form, backend=backend, tol=1e-14)(e, labels, labelled)

    sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes
        assert torch.autograd.gradcheck(loss, (e, sigma))


@pytest.mark.deep
def test_training_brings_classes_apart():
    torch.manual_seed(0)
    e, labels = clusters(90, 8, 3, spread=3.0)
    e = e.float()
    head = torch.nn.Linear(8, 8)
    loss_fn = GLoss(3, form="log", generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    accuracies = []
    for _ in range(60):
        optimizer.zero_grad()
        loss_fn(head(e), labels).backward()
        optimizer.step()
        accuracies.append(loss_fn.last.accuracy.item())
    assert sum(accuracies[-5:]) > sum(accuracies[:5]) + 0.5


def test_no_grad_and_inputs_without_gradient():
    e, labels, labelled = batch()
    loss_fn = GLoss(3)
    expected = loss_fn(e, labels, labelled=labelled)
    with torch.no_grad():
        assert torch.equal(loss_fn(e, labels, labelled=labelled), expected)
    assert not loss_fn(e.detach(), labels, labelled=labelled).requires_grad


def test_autocast_leaves_the_loss_in_float32():
    e, labels, labelled = batch()
    loss_fn = GLoss(3)
    expected = torch.autograd.grad(loss_fn(e, labels, labelled=labelled), e)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_fn(e, labels, labelled=labelled)
        assert loss.dtype == torch.float32
        assert torch.equal(torch.autograd.grad(loss, e)[0], expected)


@pytest.mark.deep
@pytest.mark.parametrize("solver", ("cg", "iterate"))
def test_compiled_training_step_equals_the_eager_one(solver):
    torch.manual_seed(0)
    e, labels, labelled = batch()
    head = torch.nn.Linear(8, 8)
    loss_fn = GLoss(3, solver=solver)

    def step(e, labels, labelled):
        loss = loss_fn(head(e).tanh(), labels, labelled=labelled)
        loss.backward()
        return loss

    eager = step(e, labels, labelled), head.weight.grad.clone()
    head.zero_grad()
    compiled_step = torch.compile(step, backend="aot_eager")
    for _ in range(2):
        head.zero_grad()
        compiled = compiled_step(e, labels, labelled), head.weight.grad.clone()
        for ours, expected in zip(compiled, eager, strict=True):
            assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_can_be_copied_and_saved():
    e, labels, labelled = batch()
    loss_fn = GLoss(3, sigma="learnable", class_weight=torch.tensor([1.0, 2.0, 3.0]))
    loss = loss_fn(e, labels, labelled=labelled)
    copy = pickle.loads(pickle.dumps(loss_fn))
    assert torch.equal(copy(e, labels, labelled=labelled), loss)
    other = GLoss(3, sigma="learnable")
    other.load_state_dict(loss_fn.state_dict())
    assert "class_weight" not in loss_fn.state_dict()
    assert "num_classes=3" in repr(loss_fn)


def faulty(e, row, value):
    e = e.detach().clone()
    e[row] = value
    return e


E, LABELS, LABELLED = batch()
NOBODY, EVERYBODY = torch.zeros(60, dtype=bool), torch.ones(60, dtype=bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((E[:0], LABELS[:0]), "at least two nodes"),
        ((E[:2], torch.tensor([0, -100])), "no node is labelled.*1 of 2 nodes have a label"),
        ((E, torch.full((60,), -100)), "no node is labelled"),
        ((E, LABELS, NOBODY), "no node is labelled"),
        ((E, LABELS, EVERYBODY), "no node is unlabelled"),
        ((E, LABELS.where(LABELLED, -100), LABELLED), "no unlabelled node has a known label"),
        ((E, LABELS.where(LABELS < 2, 3), LABELLED), r"labels lie outside \[0, 3\) in rows \d+"),
        ((E, LABELS.where(~LABELLED, -1), LABELLED), "num_classes.*ignore_index=-100"),
        (
            (E, LABELS.where(~LABELLED, -100), LABELLED),
            "labelled is true where the label is ignore",
        ),
        ((faulty(E, 7, math.nan), LABELS, LABELLED), "NaN, infinite or zero length in row 7 of 60"),
        ((faulty(E, [7, 9], 0.0), LABELS, LABELLED), "zero length in rows 7, 9 of 60"),
        ((faulty(E, slice(20), math.inf), LABELS, LABELLED), "8, 9 and 10 more of 60"),
        ((E, LABELS[:59], LABELLED), r"labels must have shape \(60,\)"),
        ((E, LABELS, LABELLED[:59]), r"labelled must have shape \(60,\)"),
        ((E[0], LABELS), r"embeddings must have shape \(N, d\)"),
        ((E[:, :0], LABELS), r"embeddings must have shape \(N, d\)"),
    ),
)
def test_input_without_meaning_raises(arguments, message):
    with pytest.raises(ValueError, match=message):
        GLoss(3)(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        ((E.detach().long(), LABELS), "embeddings must be a floating-point tensor"),
        ((E, LABELS.float()), "labels must be an integer tensor"),
        ((E, LABELS, LABELLED.long()), "labelled must be a bool tensor"),
    ),
)
def test_input_of_another_type_raises(arguments, message):
    with pytest.raises(TypeError, match=message):
        GLoss(3)(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    (
        ({"num_classes": 1}, "num_classes must be at least 2"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": math.nan}, "sigma must be positive"),
        ({"sigma": "wide"}, "sigma must be one of 'learnable', 'root'"),
        ({"sigma": torch.ones(2)}, "sigma as a tensor must be one"),
        ({"gamma": 1.0}, r"gamma must be a number in \[0, 1\)"),
        ({"form": "paper"}, "form must be one of 'official', 'log'"),
        ({"solver": "lu"}, "solver must be one of 'cg', 'iterate'"),
        ({"tol": 0.0}, "tol must be positive"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"precision": "fp16"}, "precision must be one of"),
        ({"reduction": "max"}, "reduction must be one of"),
        ({"backend": "native"}, "backend must be one of 'auto', 'triton', 'chunked', 'dense'"),
        ({"class_weight": torch.ones(4)}, r"class_weight must have shape \(3,\)"),
        ({"class_weight": -torch.ones(3)}, "class_weight must be finite and not negative"),
        ({"memory_budget": -1}, "memory_budget must be at least 0"),
        ({"ignore_index": 2**63}, "ignore_index must be at most"),
        ({"ignore_index": -(2**63) - 1}, "ignore_index must be at least"),
    ),
)
def test_settings_without_meaning_raise(options, message):
    with pytest.raises(ValueError, match=message):
        GLoss(**{"num_classes": 3, **options})


@pytest.mark.parametrize("value", (0.0, -1.0, math.nan, math.inf))
def test_a_tensor_sigma_without_meaning_raises_when_used(value):
    with pytest.raises(ValueError, match="sigma must be positive and finite"):
        GLoss(3, sigma=torch.tensor(value))(E, LABELS, LABELLED)


@pytest.mark.parametrize("labelled", (None, torch.tensor([True])))
@pytest.mark.parametrize("sigma", ("learnable", "root", 0.5))
@pytest.mark.parametrize("sign", (1, -1))
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_one_document_by_itself_costs_nothing_and_is_counted(reduction, sign, sigma, labelled):
    loss_fn = GLoss(3, sigma=sigma, reduction=reduction)
    e = (sign * E[:1].detach()).requires_grad_()
    with pytest.warns(UserWarning, match=r"one document.*loss is zero.*drop_last=True"):
        loss = loss_fn(e, LABELS[:1], labelled)
    assert loss.shape == (() if reduction == "mean" else (1,)) and loss.sum() == 0
    assert not loss.signbit().any()
    loss.sum().backward()
    assert torch.equal(e.grad, torch.zeros_like(e))
    for parameter in loss_fn.parameters():  # which DistributedDataParallel waits for
        assert parameter.grad == 0
    assert (loss_fn.last.num_nodes, loss_fn.last.num_scored) == (1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_fn(e, torch.tensor([-100]))
    assert loss_fn.num_skipped == 2
    with pytest.raises(ValueError, match="NaN, infinite or zero length in row 0 of 1"):
        loss_fn(faulty(e, 0, math.nan), LABELS[:1])
    with pytest.raises(ValueError, match="labels lie outside"):
        loss_fn(e, torch.tensor([3]))


UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


@pytest.mark.parametrize("dtype", (torch.int8, torch.int16, torch.int32, *UNSIGNED))
def test_labels_mean_the_same_in_every_integer_type(dtype):
    e, labels = clusters(120, 8, 40)
    labels = 3 * labels  # up to 117, on both sides of 256 - 100 when doubled
    classes = 128
    if dtype in UNSIGNED:
        labels, classes = 2 * labels, 256
    labelled = torch.arange(120) % 4 > 0
    narrow = labels.to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes
        expected = GLoss(classes)(e, labels, labelled)
        loss_fn = GLoss(classes)
        assert torch.equal(loss_fn(e, narrow, labelled), expected)
        assert loss_fn.last.num_scored == int((~labelled).sum())
        f = label_propagation(e, narrow, classes, labelled=labelled)
        assert torch.equal(f, label_propagation(e, labels, classes, labelled=labelled))
        assert gaussian_sigma(e, narrow, "mst") == gaussian_sigma(e, labels, "mst")
        unknown = labels.clone()
        unknown[::7] = 5
        mine, theirs = (
            GLoss(classes, ignore_index=5)(e, x, labelled & (unknown != 5))
            for x in (unknown.to(dtype), unknown)
        )
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_an_unsigned_label_is_never_ignored(dtype):
    wrapped = torch.iinfo(dtype).max - 99 if dtype != torch.uint64 else 2**64 - 100
    labels = torch.tensor([0, 1, 0, wrapped], dtype=dtype)
    with pytest.raises(ValueError, match=r"labels lie outside \[0, 2\) in row 3"):
        GLoss(2)(E[:4], labels)
    with pytest.raises(ValueError, match=r"labels lie outside \[0, 2\) in row 3"):
        label_propagation(E[:4], labels, 2)


@pytest.mark.parametrize("length", (1e-30, 1e20, 3e38))
@pytest.mark.parametrize("backend", ("chunked", "dense"))
def test_rows_of_any_length_have_a_direction(backend, length):
    e = torch.nn.functional.normalize(E.detach(), dim=1)
    grads = []
    for scale in (1.0, length):
        x = (e * scale).requires_grad_()
        loss = GLoss(3, backend=backend)(x, LABELS, LABELLED)
        loss.backward()
        grads.append(x.grad.double() * scale)
    assert relative(grads[1], grads[0]) < 1e-4
    assert gaussian_sigma(e * length) == pytest.approx(gaussian_sigma(e), rel=1e-6)
    as_it_is = gaussian_sigma(e * length, rule="median", normalize=False)
    assert as_it_is == pytest.approx(length * gaussian_sigma(e, rule="median"), rel=1e-6)
    root = gaussian_sigma(e * length, normalize=False)
    assert root == pytest.approx(length**0.5 * gaussian_sigma(e), rel=1e-6)


def test_the_log_form_is_never_below_zero():
    """Rounding leaves some F above one."""
    e = torch.eye(4)[torch.arange(400) % 4]
    e = e + 0.02 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    labels, labelled = torch.arange(400) % 4, torch.arange(400) < 200
    found = []
    for sigma in (0.1, 0.15, 0.3, 0.5):
        for backend in ("chunked", "dense"):
            options = {"sigma": sigma, "backend": backend}
            found.append(label_propagation(e, labels, 4, labelled=labelled, **options).max())
            losses = GLoss(4, form="log", reduction="none", **options)(e, labels, labelled)
            assert (losses >= 0).all()
    assert max(found) > 1  # else nothing was tested


def test_nodes_out_of_reach_are_not_the_solvers_fault():
    e, labels = clusters(300, 6, 3, spread=0.2)
    e[:, 0] += 30
    e[-5:, 0] -= 60
    labelled = torch.arange(300) < 150
    for backend in ("chunked", "dense"):
        loss_fn = GLoss(3, sigma=0.1, backend=backend)
        x = e.float().requires_grad_()
        with pytest.warns(UserWarning) as caught:
            loss_fn(x, labels, labelled).backward()
        (said,) = [str(w.message) for w in caught]
        assert said.startswith("5 of 150 unlabelled nodes are reached by no labelled node")
        assert loss_fn.last.num_unreached == 5 and loss_fn.last.residual <= 1e-5
        inner = slice(0, 295)
        y = e[inner].float().requires_grad_()
        GLoss(3, sigma=0.1, backend=backend)(y, labels[inner], labelled[inner]).backward()
        assert relative(x.grad[inner] * 150 / 145, y.grad) < 1e-3


@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpointing(use_reentrant):
    """The default generator's draw is made again; what is not restored is refused."""
    head = torch.nn.Linear(8, 8)
    e = E.detach().requires_grad_()

    def backward(loss_fn, checkpointed):
        torch.manual_seed(1)
        head.zero_grad()
        e.grad = None

        def loss(e):
            return loss_fn(head(e), LABELS)

        if checkpointed:
            value = torch.utils.checkpoint.checkpoint(loss, e, use_reentrant=use_reentrant)
        else:
            value = loss(e)
        torch.rand(3)  # the generators have gone on when backward() begins
        value.backward()
        return value.item(), head.weight.grad.clone()

    plain, again = (backward(GLoss(3), checkpointed) for checkpointed in (False, True))
    assert plain[0] == again[0] and torch.equal(plain[1], again[1])
    with pytest.raises(RuntimeError, match=r"GLoss .*checkpoint.*its generator draws anew"):
        backward(GLoss(3, generator=torch.Generator().manual_seed(0)), True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a memory without ids
        with pytest.raises(RuntimeError, match=r"GLoss .*checkpoint.*add to its memory"):
            backward(GLoss(3, memory=GraphMemory(100, 8)), True)
    memory = GraphMemory(100, 8)
    memory.add(E.detach().flip(1), LABELS, ids=torch.arange(60))
    reading = (GLoss(3, memory=memory).eval() for _ in range(2))
    plain, again = map(backward, reading, (False, True))
    assert plain[0] == again[0] and torch.equal(plain[1], again[1])
    drawing = GLoss(3, memory=memory, generator=torch.Generator()).eval()
    with pytest.raises(RuntimeError, match=r"GLoss .*checkpoint.*its generator draws anew"):
        backward(drawing, True)


def test_a_call_from_a_hook_is_refused_only_where_it_remembers():
    e, ids, memory = E.detach().requires_grad_(), torch.arange(60), GraphMemory(100, 8)
    loss_fn = GLoss(3, memory=memory)
    in_hook = []

    @e.register_hook
    def measure(grad):
        in_hook.append(loss_fn(E.detach(), LABELS, LABELLED, ids).item())

    e.sum().backward()
    assert in_hook == [GLoss(3)(E, LABELS, LABELLED).item()]
    with pytest.raises(RuntimeError, match=r"was called by backward\(\).*this call would add"):
        e.sum().backward(create_graph=True)
    assert len(memory) == 0


def test_transforms_of_torch_func_are_refused_by_name():
    loss_fn = GLoss(3, sigma="learnable")
    names = r"torch\.func transforms .*cannot go through GLoss"
    with pytest.raises(RuntimeError, match=names):
        torch.func.grad(lambda e: loss_fn(e, LABELS, LABELLED))(E.detach())
    with pytest.raises(RuntimeError, match=names):
        torch.func.vmap(lambda e: loss_fn(e, LABELS, LABELLED))(torch.stack((E, E)))
    with pytest.raises(RuntimeError, match="cannot go through label_propagation"):
        torch.func.jacrev(lambda e: label_propagation(e, LABELS, 3, labelled=LABELLED))(E.detach())
    with pytest.raises(RuntimeError, match=names):
        torch.func.linearize(lambda e: loss_fn(e, LABELS, LABELLED), E.detach())
    with pytest.raises(RuntimeError, match="cannot go through gaussian_sigma"):
        torch.func.grad(lambda e: e.sum() * gaussian_sigma(e))(E.detach())
    memory = GraphMemory(100, 8)
    with pytest.raises(RuntimeError, match=r"cannot go through GraphMemory\.add"):
        torch.func.vmap(lambda e: memory.add(e, LABELS))(torch.stack((E, E)))
    with forward_ad.dual_level():
        sigma = forward_ad.make_dual(torch.tensor(0.5), torch.tensor(1.0))
        with pytest.raises(RuntimeError, match=names):
            GLoss(3, sigma=sigma)(E, LABELS, LABELLED)
        GLoss(3)(E, LABELS, LABELLED)  # has no tangent
    parameters = {"log_sigma": torch.tensor(-1.0)}
    value = torch.func.functional_call(loss_fn, parameters, (E, LABELS, LABELLED))
    expected = GLoss(3, sigma=math.exp(-1.0))(E, LABELS, LABELLED)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_classes_without_a_labelled_node_are_said_once():
    loss_fn = GLoss(3)
    labelled = LABELS != 1
    with pytest.warns(UserWarning, match=r"no labelled node has class 1\b.*GraphMemory"):
        loss_fn(E, LABELS, labelled)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_fn(E, LABELS, labelled)


def test_a_solve_that_does_not_converge_warns_and_returns():
    e, labels = clusters(200, 3, 2)
    loss_fn = GLoss(2, sigma=0.2, backend="chunked", max_iter=2)
    with pytest.warns(UserWarning, match=r"did not converge: residual"):
        loss = loss_fn(e, labels, labelled=torch.arange(200) < 5)
    assert loss.isfinite()
    assert loss_fn.last.iterations == 2
    assert loss_fn.last.residual > 1e-5


def test_official_form_has_its_floor():
    """Perfectly recovered labels cost log(1 + (C - 1) / e), which the docs say."""
    labels = torch.arange(40) % 4
    e = torch.eye(4)[labels] + 1e-3 * torch.rand(40, 4, generator=torch.Generator().manual_seed(0))
    loss = GLoss(4, sigma=0.1)(e, labels, labelled=torch.arange(40) < 20)
    assert loss.item() == pytest.approx(math.log(1 + 3 / math.e), rel=1e-4)


def test_steps_of_the_published_iteration():
    e, labels, labelled = batch(dtype=torch.float64)
    order = (~labelled).long().argsort(stable=True)
    t = dense.log_transition(e[order], 0.5)
    n = int(labelled.sum())
    f = dense.iterate(t, labels[order][:n], 3, 2)
    expected = cross_entropy(f, labels[order][n:])
    loss_fn = GLoss(3, solver="iterate", num_iters=2)
    loss = loss_fn(e, labels, labelled=labelled)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss_fn.last.iterations == 2
    of_ours, of_expected = (torch.autograd.grad(x, e)[0] for x in (loss, expected))
    assert relative(of_ours, of_expected) < 1e-10


TRITON = """
import torch, warnings
from graph_cases import clusters, relative
from friction_kernels.losses import GLoss, GraphMemory

def run(backend, num_classes, form="official", sigma=0.5, **options):
    e, labels = clusters(24, 5, 3)
    e = e.float().requires_grad_()
    weight = torch.arange(num_classes) + 1.0
    sigma = torch.tensor(sigma, requires_grad=True)
    options = {"tol": 1e-6, "class_weight": weight, "backend": backend, **options}
    loss_fn = GLoss(num_classes, sigma=sigma, form=form, **options)
    loss = loss_fn(e, labels, labelled=torch.arange(24) % 3 > 0)
    (2 * loss).backward()
    return loss_fn, loss.detach(), e.grad, sigma.grad

for num_classes, form in ((3, "official"), (3, "log"), (65, "official")):  # 65: in passes
    loss_fn, *ours = run("triton", num_classes, form)
    expected_fn, *expected = run("dense", num_classes, form)
    for a, b in zip(ours, expected):
        assert relative(a, b) < 5e-5, (a, b)
    assert int(loss_fn.last.num_scored) == 8
    assert float(loss_fn.last.accuracy) == float(expected_fn.last.accuracy)
    assert float(loss_fn.last.residual) <= 1e-5
loss_fn, *unchecked = run("triton", 3, "log", validate=False)
for a, b in zip(unchecked, run("triton", 3, "log")[1:]):
    assert torch.equal(a, b)
loss_fn = GLoss(3, backend="triton", validate=False, gamma=0.6)
e, labels = clusters(24, 5, 3)
loss_fn(e.float(), labels)
assert (int(loss_fn.last.num_labelled), int(loss_fn.last.num_scored)) == (15, 9)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loss_fn, *_ = run("triton", 3, sigma=0.2, max_iter=1)
    assert not [w for w in caught if "did not converge" in str(w.message)]  # nobody has waited
    loss_fn(e.float(), labels)
assert [w for w in caught if "did not converge: residual" in str(w.message)]

def remembered(backend):
    loss_fn = GLoss(3, backend=backend, tol=1e-6, memory=GraphMemory(40, 5))
    e, labels = clusters(24, 5, 3)
    e, ids, labelled = e.float().requires_grad_(), torch.arange(24), torch.arange(24) % 3 > 0
    loss_fn(e[:18], labels[:18], labelled[:18], ids[:18])
    loss = loss_fn(e[6:], labels[6:], labelled[6:], ids[6:])  # the first six are past
    loss.backward()
    assert (loss_fn.last.num_nodes, int(loss_fn.last.num_labelled)) == (24, 18)
    assert loss_fn.memory.ids[:24].tolist() == ids.tolist()
    return loss.detach(), e.grad

for a, b in zip(remembered("triton"), remembered("dense")):
    assert relative(a, b) < 5e-5, (a, b)

e[:, 0] += 30
e[-4:, 0] -= 60
loss_fn = GLoss(3, sigma=0.1, backend="triton")
for _ in range(2):  # the second call tells of the first
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loss_fn(e.float(), labels, labelled=torch.arange(24) < 12)
said = [str(w.message) for w in caught if "label" in str(w.message)]
assert len(said) == 1 and said[0].startswith("4 of 12 unlabelled nodes are reached by no"), said
"""


@pytest.mark.deep
def test_triton_backend_equals_the_others():
    """In the interpreter, which must be chosen before Triton is imported."""
    pytest.importorskip("triton")
    require_interpreter()
    root = Path(__file__).parents[1]
    path = os.pathsep.join(map(str, (root / "tests/support", root / "triton_kernels")))
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    run = subprocess.run(
        [sys.executable, "-c", TRITON], capture_output=True, text=True, timeout=300, env=environment
    )
    assert run.returncode == 0, run.stderr
