"""Gradients of tasks, one after another, and weightings of them."""

import gc
import math
from importlib.util import find_spec

import pytest
import task_parts
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from friction_kernels import count_launches, release_gradients
from friction_kernels.optim import SGD
from friction_kernels.tasks import MultiTask, weightings

WEIGHTINGS = {
    "mean": weightings.mean,
    "cosine": weightings.cosine,
    "pcgrad": weightings.pcgrad,
    "mgda_two": weightings.mgda_two,
    "own": lambda: lambda gramian: 1 / gramian.diagonal().sqrt(),
}
by_weighting = pytest.mark.parametrize("weighting", WEIGHTINGS)


class Model(nn.Module):
    """A trunk that tasks share, with a head for each."""

    def __init__(self, tasks=2, dtype=torch.float32, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 8)).to(dtype)
        self.heads = nn.ModuleList(nn.Linear(8, 3, dtype=dtype) for _ in range(tasks))
        self.x = torch.randn(11, 6, dtype=dtype)
        self.y = torch.randn(tasks, 11, 3, dtype=dtype)

    def loss(self, task):
        return (self.heads[task](self.trunk(self.x)) - self.y[task]).square().mean()

    @property
    def shared(self):
        return list(self.trunk.parameters())


def gradients_of(model, task):
    return list(torch.autograd.grad(model.loss(task), model.shared))


def run(tasks, model, order=(0, 1)):
    for number in order:
        with tasks.task(number):
            model.loss(number).backward()
    tasks.combine()
    return [parameter.grad for parameter in model.shared]


def flat(tensors):
    return torch.cat([tensor.flatten().double() for tensor in tensors])


def by_hand(gradients, weighting):
    """The combination and the Gram matrix in float64."""
    rows = torch.stack([flat(one) for one in gradients])
    gramian = rows @ rows.T
    return weighting(gramian) @ rows, gramian


def distance(found, expected):
    return ((flat(found) - expected).norm() / expected.norm()).item()


# The combination.


@by_weighting
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_are_the_combination_by_hand(weighting, dtype):
    model = Model(dtype=dtype)
    expected, gramian = by_hand([gradients_of(model, i) for i in range(2)], WEIGHTINGS[weighting]())
    tasks = MultiTask(model.shared, WEIGHTINGS[weighting]())
    assert tasks.gramian is None and tasks.weights is None and tasks.cosines is None
    found = run(tasks, model)
    assert distance(found, expected) < (1e-6 if dtype == torch.float32 else 1e-12)
    assert all(grad.dtype == dtype for grad in found)
    torch.testing.assert_close(tasks.gramian, gramian, rtol=1e-6, atol=0)
    torch.testing.assert_close(tasks.cosines, weightings.cosines(gramian), rtol=1e-5, atol=0)
    assert torch.equal(tasks.weights, WEIGHTINGS[weighting]()(tasks.gramian))
    seen = (tasks.gramian, tasks.weights, tasks.cosines)
    assert not any(tensor.requires_grad for tensor in seen)


def test_heads_gather_the_gradients_of_their_tasks():
    model = Model()
    run(MultiTask(model.shared, weightings.mean()), model)
    for number, head in enumerate(model.heads):
        expected = torch.autograd.grad(model.loss(number), head.parameters())
        torch.testing.assert_close([p.grad for p in head.parameters()], list(expected))


BOUNDS = {"dtype": 1e-6, "bfloat16": 2**-8, "8bit": 0.04}  # of the norm of what is combined


@by_weighting
@pytest.mark.parametrize("keep", BOUNDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_fewer_bits_cost_what_is_said(weighting, keep, dtype):
    model = Model(dtype=dtype)
    found = run(tasks := MultiTask(model.shared, WEIGHTINGS[weighting](), keep=keep), model)
    gradients = [gradients_of(model, i) for i in range(2)]
    rows = torch.stack([flat(one) for one in gradients])
    bound = max(BOUNDS[keep], torch.finfo(dtype).eps)
    lengths = (tasks.weights.abs() * rows.norm(dim=1)).sum()
    assert (flat(found) - tasks.weights @ rows).norm() <= bound * lengths
    norms = rows.norm(dim=1)
    wrong = (tasks.gramian - rows @ rows.T).abs() / (norms[:, None] * norms)
    assert wrong.max() <= 2.1 * bound
    assert all(grad.dtype == dtype for grad in found)


def test_kept_gradients_take_the_bytes_that_are_said():
    model = Model()
    for keep, bytes_each in (("dtype", 4.0), ("bfloat16", 2.0), ("8bit", 1 + 4 / 256)):
        tasks = MultiTask([model.trunk[2].weight], weightings.mean(), keep=keep)
        with tasks.task(0):
            model.loss(0).backward()
        assert model.trunk[2].weight.grad is None
        (kept,) = tasks._kept[0]
        assert kept.nbytes == pytest.approx(bytes_each * 8 * 40, abs=16)  # scales, padded


def test_gradients_are_moved_and_combined_in_two_launches():
    model = Model()
    tasks = MultiTask(model.shared, weightings.pcgrad())
    addresses = []
    for number in range(2):
        with tasks.task(number):
            model.loss(number).backward()
            addresses.append([parameter.grad.data_ptr() for parameter in model.shared])
        assert all(parameter.grad is None for parameter in model.shared)
    assert [[g.data_ptr() for g in tasks._kept[number]] for number in range(2)] == addresses
    with count_launches() as launches:
        tasks.combine()
    assert dict(launches) == {"gram": 1, "combine": 1}
    assert [parameter.grad.data_ptr() for parameter in model.shared] == addresses[1]
    assert not tasks._kept


def test_tasks_run_in_any_order_any_subset_and_repeatedly():
    model = Model(tasks=8)
    tasks = MultiTask(model.shared, weightings.cosine(2.0))
    for order in [(0, 1), (5, 2, 7), tuple(reversed(range(8))), (3,)]:
        model.zero_grad()
        found = run(tasks, model, order)
        given_gradients = [gradients_of(model, i) for i in sorted(order)]
        expected, _ = by_hand(given_gradients, weightings.cosine(2.0))
        assert distance(found, expected) < 1e-6
        assert tasks.weights.shape == (len(order),)


def test_several_backwards_in_a_task_add_up():
    model, other = Model(), Model()
    other.x = torch.randn(11, 6)
    other.trunk = model.trunk
    tasks = MultiTask(model.shared, weightings.mean())
    with tasks.task(0):
        model.loss(0).backward()
        other.loss(0).backward()
    tasks.combine()
    pairs = zip(gradients_of(model, 0), gradients_of(other, 0), strict=True)
    expected = flat([a + b for a, b in pairs])
    assert distance([parameter.grad for parameter in model.shared], expected) < 1e-6


@pytest.mark.parametrize("keep", BOUNDS)
def test_a_gradient_that_is_missing_counts_as_zeros(keep):
    a, b, c, d = (nn.Parameter(torch.randn(300)) for _ in range(4))
    tasks = MultiTask([a, b, c, d], weightings.mean(), keep=keep)
    with tasks.task(0):
        (a.sum() + b.sum()).backward()
    with tasks.task(1):
        (3 * b.sum() + 3 * c.sum()).backward()
    tasks.combine()
    torch.testing.assert_close(tasks.gramian, torch.tensor([[600.0, 900], [900, 5400]]).double())
    for parameter, value in ((a, 0.5), (b, 2.0), (c, 1.5)):
        torch.testing.assert_close(parameter.grad, torch.full((300,), value))
    assert d.grad is None


def test_an_optimizer_trains_by_it():
    model = Model()
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    tasks = MultiTask(model.shared, weightings.pcgrad())
    before = model.loss(0) + model.loss(1)
    for _ in range(50):
        opt.zero_grad()
        run(tasks, model)
        opt.step()
    assert model.loss(0) + model.loss(1) < 0.7 * before


def test_complex_and_strided_parameters():
    a = nn.Parameter(torch.randn(5, 7, dtype=torch.complex64))
    b = nn.Parameter(torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last))
    tasks = MultiTask([a, b], weightings.mean())
    for number in range(2):
        with tasks.task(number):
            (a.abs().square().sum() + (number + 1) * b.square().sum()).backward()
    tasks.combine()
    torch.testing.assert_close(a.grad, 2 * a.detach())
    torch.testing.assert_close(b.grad, 3 * b.detach())
    assert b.grad.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="shared parameter 1 is complex, and keep='8bit'"):
        MultiTask([b, a], weightings.mean(), keep="8bit")


@pytest.mark.deep
def test_a_compiled_model_has_the_same_gradients():
    model = Model()
    expected = [grad.clone() for grad in run(MultiTask(model.shared, weightings.pcgrad()), model)]
    model.zero_grad()
    forward = torch.compile(model.trunk, backend="aot_eager")
    tasks = MultiTask(forward.parameters(), weightings.pcgrad())
    for number, head in enumerate(model.heads):
        with tasks.task(number):
            (head(forward(model.x)) - model.y[number]).square().mean().backward()
    tasks.combine()
    torch.testing.assert_close([parameter.grad for parameter in model.shared], expected)


# What is not finite.


@by_weighting
@pytest.mark.parametrize("keep", BOUNDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_stays_so(weighting, keep, bad, where):
    parameters = [nn.Parameter(torch.ones(300)), nn.Parameter(torch.ones(5))]
    tasks = MultiTask(parameters, WEIGHTINGS[weighting](), keep=keep)
    for number in range(2):
        factor = torch.ones(300)
        factor[7] = bad if number == where else 1
        with tasks.task(number):
            ((factor * parameters[0]).sum() + parameters[1].sum()).backward()
    tasks.combine()
    assert not tasks.gramian.isfinite().all()
    assert all(parameter.grad.isnan().all() for parameter in parameters)


def test_a_weighting_never_sees_what_is_not_finite():
    model, seen = Model(), []
    tasks = MultiTask(model.shared, lambda gramian: seen.append(gramian) or gramian[0])
    model.y[0, 0] = math.nan
    assert all(grad.isnan().all() for grad in run(tasks, model))
    assert torch.equal(seen[0], torch.eye(2).double()) and tasks.weights.isnan().all()


@by_weighting
def test_no_number_is_read_back(weighting):
    """A meta tensor has none to read."""
    tasks = MultiTask([torch.ones(1)], WEIGHTINGS[weighting]())
    products = torch.empty(2, 2, dtype=torch.float64, device="meta")
    assert tasks._weights_of(products).is_meta and weightings.cosines(products).is_meta


# Weightings, as functions of vectors.

vectors = st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(0, 10**6))


def drawn(count, size, seed, zero=None):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, size, dtype=torch.float64, generator=generator)
    if zero is not None:
        rows[zero % count] = 0
    return rows


def projected_sum(gradients, generator):
    """PCGrad as it is published, on the gradients themselves."""
    total = torch.zeros_like(gradients[0])
    for i, own in enumerate(gradients):
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            dot = own @ gradients[j]
            if j != i and dot < 0:
                own = own - dot / (gradients[j] @ gradients[j]) * gradients[j]
        total = total + own
    return total


@given(vectors, st.none() | st.integers(0, 7))
def test_pcgrad_is_that_of_the_gradients(which, zero):
    rows = drawn(*which, zero)
    seeded = [torch.Generator().manual_seed(which[2]) for _ in range(2)]
    found = weightings.pcgrad(seeded[0])(rows @ rows.T) @ rows
    expected = projected_sum(list(rows), seeded[1])
    # A dot product of about zero may have another sign by way of G; projecting or not, it is about zero.
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_pcgrad_without_conflict_is_the_sum_and_draws_the_same_orders_everywhere():
    assert torch.equal(weightings.pcgrad()(torch.ones(3, 3).double()), torch.ones(3).double())
    rows = drawn(6, 4, 1)
    one, two = weightings.pcgrad(), weightings.pcgrad()
    torch.manual_seed(0)
    first = one(rows @ rows.T)
    torch.manual_seed(1)
    assert torch.equal(first, two(rows @ rows.T))
    assert not torch.equal(first, one(rows @ rows.T))  # another order


@given(st.integers(1, 12), st.integers(0, 10**6), st.floats(-3, 3))
def test_mgda_two_is_the_shortest_of_all_convex_combinations(size, seed, scale):
    rows = drawn(2, size, seed)
    rows[1] += scale * rows[0]
    weights = weightings.mgda_two()(rows @ rows.T)
    shares = torch.linspace(0, 1, 101, dtype=torch.float64)[:, None]
    every = (shares * rows[0] + (1 - shares) * rows[1]).norm(dim=1)
    assert (weights @ rows).norm() <= every.min() + 1e-9
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()


def test_mgda_two_of_equal_gradients_is_their_mean():
    for gramian in (torch.ones(2, 2), torch.zeros(2, 2)):
        assert weightings.mgda_two()(gramian.double()).tolist() == [0.5, 0.5]
    with pytest.raises(ValueError, match="closed form for two tasks, got 3; use a solver"):
        weightings.mgda_two()(torch.eye(3))


@given(vectors, st.none() | st.integers(0, 7), st.floats(-4, 4))
def test_cosine_is_the_softmax_of_agreement(which, zero, strength):
    rows = drawn(*which, zero)
    count = len(rows)
    agreement = []
    for i in range(count):
        others = [
            torch.cosine_similarity(rows[i], rows[j], dim=0, eps=1e-30)
            for j in range(count)
            if j != i
        ]
        agreement.append(sum(others) / max(len(others), 1))
    expected = torch.softmax(strength * torch.tensor(agreement, dtype=torch.float64), 0)
    found = weightings.cosine(strength)(rows @ rows.T)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_cosines_of_zeros_are_zeros():
    found = weightings.cosines(torch.tensor([[4.0, 0], [0, 0]]))
    assert found.tolist() == [[1, 0], [0, 0]]
    with pytest.raises(ValueError, match="strength must be a finite number, got nan"):
        weightings.cosine(math.nan)


def test_torchjds_weightings_serve_as_they_are():
    if find_spec("torchjd") is None:
        pytest.skip("torchjd is not installed: its weightings are not tried")
    from torchjd import aggregation

    model = Model(tasks=3)
    gradients = [gradients_of(model, i) for i in range(3)]
    matrix = torch.stack([flat(one) for one in gradients])
    for name in ("MGDA", "IMTLG", "AlignedMTL", "UPGrad", "DualProj"):
        if name in ("UPGrad", "DualProj") and find_spec("quadprog") is None:
            continue  # their solver is an extra of torchjd
        tasks = MultiTask(model.shared, getattr(aggregation, f"{name}Weighting")())
        found = run(tasks, model, range(3))
        assert distance(found, getattr(aggregation, name)()(matrix)) < 1e-4, name
        model.zero_grad()
    torch.manual_seed(3)
    theirs = aggregation.PCGradWeighting()(matrix @ matrix.T)
    torch.manual_seed(3)
    ours = weightings.pcgrad(torch.default_generator)(matrix @ matrix.T)
    torch.testing.assert_close(ours, theirs)


# Errors.


def test_tasks_that_do_not_fit_are_named():
    model = Model(tasks=3)
    tasks = MultiTask(model.shared, weightings.mean())
    with pytest.raises(RuntimeError, match="no task was entered since the last combine"):
        tasks.combine()
    for wrong in (8, -1, "head", None):
        with pytest.raises(ValueError, match="tasks are numbered 0 to 7"), tasks.task(wrong):
            pass
    with tasks.task(1):
        model.loss(1).backward()
        with pytest.raises(RuntimeError, match="task 2 is entered within task 1"), tasks.task(2):
            pass
        with pytest.raises(RuntimeError, match=r"combine\(\) is called within task 1"):
            tasks.combine()
    with pytest.raises(RuntimeError, match="task 1 is entered twice"), tasks.task(1):
        pass
    with pytest.raises(RuntimeError, match="task 2 left no gradient"), tasks.task(2):
        model.loss(2)
    tasks.combine()
    assert tasks.weights.tolist() == [1]
    model.zero_grad()
    with tasks.task(1):
        model.loss(1).backward()
    tasks.clear()
    with pytest.raises(RuntimeError, match="no task was entered"):
        tasks.combine()


def test_a_gradient_of_no_task_is_refused():
    model = Model()
    tasks = MultiTask(model.shared, weightings.mean())
    run(tasks, model)
    combined = model.shared[0].grad
    message = (
        r"before task 0, shared parameter 0 has a gradient that is no task's; call zero_grad\("
    )
    with pytest.raises(RuntimeError, match=message), tasks.task(0):
        pass
    assert model.shared[0].grad is combined
    model.zero_grad()
    with tasks.task(0):
        model.loss(0).backward()
    model.loss(1).backward()
    with pytest.raises(
        RuntimeError, match=r"before combine\(\), shared parameter 0 has a gradient"
    ):
        tasks.combine()
    model.zero_grad()
    tasks.combine()
    torch.testing.assert_close([p.grad for p in model.shared], gradients_of(model, 0))


def test_a_block_that_raises_can_be_entered_again():
    model = Model()
    tasks = MultiTask(model.shared, weightings.mean())
    with pytest.raises(ZeroDivisionError), tasks.task(0):
        model.loss(0).backward()
        raise ZeroDivisionError
    assert all(parameter.grad is None for parameter in model.shared)
    expected, _ = by_hand([gradients_of(model, i) for i in range(2)], weightings.mean())
    assert distance(run(tasks, model), expected) < 1e-6


@pytest.mark.parametrize(
    ("parameters", "options", "error", "message"),
    [
        ([], {}, ValueError, "there are no shared parameters"),
        ([torch.ones(2), "w"], {}, TypeError, "shared parameter 1 is 'w', and no tensor"),
        ([torch.ones(2)] * 2, {}, ValueError, "shared parameters 0 and 1 are the same tensor"),
        ([torch.ones(2)], {"keep": "4bit"}, ValueError, "keep must be one of 'dtype', 'bfloat16'"),
    ],
)
def test_what_cannot_be_shared_is_named(parameters, options, error, message):
    with pytest.raises(error, match=message):
        MultiTask(parameters, weightings.mean(), **options)


@pytest.mark.parametrize("wrong", [[0.5, 0.5], torch.ones(3), torch.ones(2) * 1j])
def test_weights_that_are_none_are_refused_and_nothing_is_lost(wrong):
    model = Model()
    answers = [wrong, torch.tensor([1, 0])]
    tasks = MultiTask(model.shared, lambda gramian: answers.pop(0))
    with pytest.raises(ValueError, match="the weighting must return a tensor of 2 real numbers"):
        run(tasks, model)
    tasks.combine()
    torch.testing.assert_close([p.grad for p in model.shared], gradients_of(model, 0))


def test_a_sparse_gradient_is_named():
    words = nn.Embedding(5, 3, sparse=True)
    tasks = MultiTask(words.parameters(), weightings.mean())
    message = "task 0's gradient of shared parameter 0 is not strided"
    with pytest.raises(TypeError, match=message), tasks.task(0):
        words(torch.tensor([1])).sum().backward()
    assert words.weight.grad is None


def test_released_gradients_are_not_taken_for_zeros():
    model = Model()
    release_gradients(model.trunk, SGD(model.shared, lr=0.1))
    tasks = MultiTask(model.shared, weightings.mean())
    with pytest.raises(RuntimeError, match="do not release gradients"), tasks.task(0):
        model.loss(0).backward()


@pytest.mark.parametrize("views", [False, True])
def test_gradients_of_tasks_that_share_memory_are_refused(views, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        share_memory(views)
    finally:
        gc.collect()  # a wrapper that outlived the processes' group could wait for its threads forever
        torch.distributed.destroy_process_group()


def share_memory(views):
    model = Model()
    expected, _ = by_hand([gradients_of(model, i) for i in range(2)], weightings.mean())
    trunk = nn.parallel.DistributedDataParallel(model.trunk, gradient_as_bucket_view=views)
    tasks = MultiTask(trunk.parameters(), weightings.mean())

    def step():
        model.zero_grad()
        for number, head in enumerate(model.heads):
            with tasks.task(number):
                (head(trunk(model.x)) - model.y[number]).square().mean().backward()
        tasks.combine()

    step()  # the first backward still has memory of its own
    assert distance([p.grad for p in model.shared], expected) < 1e-6
    if views:
        with pytest.raises(RuntimeError, match="parameter 0 is in the memory of task 0's"):
            step()
    else:
        step()
        assert distance([p.grad for p in model.shared], expected) < 1e-6


@pytest.mark.deep
@pytest.mark.parametrize("keep", BOUNDS)
def test_sharded_gradients_are_combined_as_whole_ones(processes, keep):
    for found, of_norms in processes.run(task_parts.combined, keep):
        assert found < BOUNDS[keep] and of_norms < 2.1 * BOUNDS[keep]
