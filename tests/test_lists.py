"""Operations on lists of tensors."""

import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from friction_kernels import count_launches, lists
from friction_kernels.lists import products

few = settings(max_examples=min(200, settings().max_examples))  # each takes long

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64]
SHAPES = [(), (0,), (1,), (7,), (3, 5), (2048,), (2049,), (4, 3, 5, 6), (70, 130)]
LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1) if t.dim() > 1 else t,
    "gaps": lambda t: torch.stack([t, t + 1], dim=-1)[..., 0],
    "negated": lambda t: torch._neg_view(t),
    "conjugated": lambda t: t.conj(),
}


def tensor_of(shape, dtype, layout, seed):
    generator = torch.Generator().manual_seed(seed)
    return LAYOUTS[layout](torch.randn(shape, dtype=torch.complex64, generator=generator).to(dtype))


def reals(tensor):
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def without_tables(launches):
    """Where the host stands for a GPU, a launch may need a list that is sent to it."""
    return {name: count for name, count in launches.items() if name != "store_table"}


def exact_norm(tensors):
    return math.sqrt(math.fsum(reals(t).double().square().sum().item() for t in tensors))


kinds = st.tuples(
    st.sampled_from(SHAPES), st.sampled_from(DTYPES), st.sampled_from(sorted(LAYOUTS))
)


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@given(st.lists(kinds, max_size=6), st.integers(0, 99))
def test_norm_is_that_of_all_elements(kinds, seed):
    tensors = [tensor_of(*kind, seed + i) for i, kind in enumerate(kinds)]
    found = lists.norm(tensors)
    assert found.shape == ()
    wide = any(t.dtype == torch.float64 for t in tensors)
    assert found.dtype == (torch.float64 if wide else torch.float32)
    assert found.item() == pytest.approx(exact_norm(tensors), rel=1e-6)


def test_norm_is_one_launch_and_the_same_bits_for_any_threads():
    tensors = [torch.randn(300, 700), torch.randn(40_000), *torch.randn(50, 16)]
    found = set()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with count_launches() as launches:
            found.add(lists.norm(tensors).item())
        assert without_tables(launches) == {"squared_norm": 1}
    assert len(found) == 1


def test_norm_takes_one_tensor_a_generator_and_parameters():
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    assert lists.norm(parameter) == 5
    assert lists.norm(p for p in [parameter, parameter]).item() == pytest.approx(math.sqrt(50))
    assert not lists.norm([parameter]).requires_grad
    assert lists.norm([]) == 0


def test_norm_of_what_has_no_kernel_is_plain_torchs():
    class Odd(torch.Tensor):
        pass

    odd = torch.tensor([3.0, 4.0]).as_subclass(Odd)
    with count_launches() as launches:
        assert lists.norm([odd, torch.tensor(12.0)]).item() == 13
    assert launches.total == 1


def test_norm_of_large_numbers_does_not_overflow():
    assert lists.norm([torch.full((4,), 1e30)]).item() == pytest.approx(2e30)
    assert lists.norm([torch.full((2,), math.inf)]).isinf()
    assert lists.norm([torch.tensor([1.0, math.nan])]).isnan()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3.0, "tensor 1 is 3.0, and no tensor"),
        (None, "tensor 1 is None, and no tensor"),
        (torch.arange(3), "tensor 1 is torch.int64"),
        (torch.ones(3).to(torch.float8_e4m3fn), "tensor 1 is torch.float8_e4m3fn"),
        (torch.eye(3).to_sparse(), "tensor 1 is not strided"),
    ],
)
def test_norm_names_what_it_cannot_take(wrong, message):
    with pytest.raises(TypeError, match=message):
        lists.norm([torch.ones(2), wrong])


# Gram matrices and combinations.


def exact_products(lists):
    """In float64, element by element, with exact sums."""
    flat = [[x for t in one for x in reals(t).double().flatten().tolist()] for one in lists]
    return torch.tensor(
        [[math.fsum(x * y for x, y in zip(a, b, strict=True)) for b in flat] for a in flat],
        dtype=torch.float64,
    )


@st.composite
def corresponding(draw, most_lists=8):
    """Lists of one to eight, alike in shape, unlike in dtype and strides."""
    count = draw(st.integers(1, most_lists))
    shapes = draw(st.lists(st.sampled_from(SHAPES), max_size=4))
    complex_ones = draw(st.lists(st.booleans(), min_size=len(shapes), max_size=len(shapes)))
    seed = draw(st.integers(0, 99))
    lists = []
    for number in range(count):
        tensors = []
        for index, (shape, is_complex) in enumerate(zip(shapes, complex_ones, strict=True)):
            dtype = torch.complex64 if is_complex else draw(st.sampled_from(DTYPES[:4]))
            layout = draw(st.sampled_from(sorted(LAYOUTS)))
            tensor = tensor_of(shape, dtype, layout, seed + 10 * number + index)
            if tensor.shape != shape:  # transposed
                tensor = tensor.transpose(0, -1)
            tensors.append(tensor)
        lists.append(tensors)
    return lists


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@few
@given(corresponding())
def test_gram_is_the_products_of_all_elements(given_lists):
    found = lists.gram(*given_lists)
    exact = exact_products(given_lists)
    scale = exact.diagonal().sqrt()
    assert found.dtype == torch.float64
    assert torch.equal(found, found.T)
    assert ((found - exact).abs() <= 1e-6 * scale[:, None] * scale + 1e-30).all()


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@few
@given(corresponding(), st.integers(1, 3), st.integers(0, 99))
def test_gram_by_label_adds_up_to_the_whole(given_lists, labels, seed):
    names = ["b", "a", "c"][:labels]
    generator = torch.Generator().manual_seed(seed)
    count = len(given_lists[0])
    by = [names[i] for i in torch.randint(labels, (count,), generator=generator)]
    found = lists.gram(*given_lists, by=by)
    for number, name in enumerate(dict.fromkeys(by)):
        mine = [
            [t for t, label in zip(one, by, strict=True) if label == name] for one in given_lists
        ]
        expected = lists.gram(*mine)
        torch.testing.assert_close(found[number], expected, rtol=1e-12, atol=1e-12)
    each = lists.gram(*given_lists, by="tensor")
    assert each.shape == (count, len(given_lists), len(given_lists))
    torch.testing.assert_close(each.sum(0), lists.gram(*given_lists), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:Casting complex values to real")
@few
@given(corresponding(), st.lists(st.floats(-2, 2), min_size=8, max_size=8), st.booleans())
def test_combine_is_the_weighted_sum(given_lists, weights, as_tensor):
    weights = weights[: len(given_lists)]
    given_weights = torch.tensor(weights, dtype=torch.float64) if as_tensor else weights
    found = lists.combine(given_lists, given_weights)
    for tensors, y in zip(zip(*given_lists, strict=True), found, strict=True):
        wide = any(t.dtype == torch.float64 for t in tensors)
        arithmetic = torch.float64 if wide else torch.float32
        expected = 0
        for number, (w, x) in enumerate(zip(weights, tensors, strict=True)):
            product = reals(x).to(arithmetic) * torch.tensor(w, dtype=arithmetic)
            expected = expected + product if number else product
        dtype = reduce(torch.promote_types, (t.dtype for t in tensors))
        assert y.dtype == dtype
        assert torch.equal(reals(y), expected.to(reals(y).dtype))


def test_operations_are_one_launch_and_the_same_bits_for_any_threads():
    shapes = [(300, 700), (40_000,), *[(16,)] * 50]
    one, two = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with count_launches() as launches:
            products = lists.gram(one, two)
            each = lists.gram(one, two, by="tensor")
            sums = lists.combine([one, two], products[0])
        assert without_tables(launches) == {"gram": 2, "combine": 1}
        found.append([products, each, *sums])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gram_of_one_list_is_its_squared_norm_to_the_bit():
    tensors = [torch.randn(300, 700), torch.randn(77).bfloat16()]
    other = [torch.randn_like(t) for t in tensors]
    assert lists.gram(tensors).sqrt().float() == lists.norm(tensors)
    assert lists.gram(tensors, other)[0, 0] == lists.gram(tensors)[0, 0]
    torch.testing.assert_close(
        lists.norm(tensors, by="tensor"),
        torch.stack([t.double().norm().float() for t in tensors]),
    )
    assert lists.norm(tensors, by=["a", "a"]).shape == (1,)


def test_products_beyond_float32_are_summed_in_double():
    one, two = [torch.full((5000,), 1e25)], [torch.full((5000,), -1e25)]
    exact = 5000 * float(torch.tensor(1e25)) ** 2
    torch.testing.assert_close(
        lists.gram(one, two), torch.tensor([[exact, -exact], [-exact, exact]], dtype=torch.float64)
    )
    two[0][7] = math.nan
    found = lists.gram(one, two)
    assert found[0, 0].isfinite() and found[0, 1].isnan() and found[1, 1].isnan()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_combine_writes_to_one_of_its_lists(which):
    given_lists = [[torch.randn(5000), torch.randn(3, 5).T.bfloat16()] for _ in range(3)]
    expected = lists.combine(given_lists, [1.0, -2.0, 0.5])
    found = lists.combine(given_lists, [1.0, -2.0, 0.5], out=given_lists[which])
    for y, mine, e in zip(found, given_lists[which], expected, strict=True):
        assert y is mine and torch.equal(y, e)


def test_interleaved_views_share_no_memory():
    whole = torch.randn(6, 8)
    expected = whole * 2
    halves = [whole[:, :3], whole[:, 3:5], whole[:, 5:]]
    lists.combine([halves], [2.0], out=halves)
    assert torch.equal(whole, expected)
    with pytest.raises(ValueError, match="two tensors of out share memory"):
        lists.combine([[whole[:, :3], whole[:, 2:5]]], [1.0], out=[whole[:, :3], whole[:, 2:5]])
    with pytest.raises(ValueError, match="out shares memory with list 0"):
        lists.combine([[whole[:, 2:5]]], [1.0], out=[whole[:, 3:6]])


def test_labels_may_be_an_array():
    tensors = [torch.randn(3) for _ in range(3)]
    expected = lists.gram(tensors, by=["a", "a", "b"])
    for by in (torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]).numpy()):
        assert torch.equal(lists.gram(tensors, by=by), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tracers_record_operators_of_torch():
    a, b = (torch.randn(5, dtype=torch.float64) for _ in range(2))
    for traced in (
        torch.fx.experimental.proxy_tensor.make_fx(lambda x: lists.gram([x], [x + 1]))(a),
        torch.jit.trace(lambda x: lists.gram([x], [x + 1]), a),
    ):
        torch.testing.assert_close(traced(b), lists.gram([b], [b + 1]))


def test_forward_differentiation_is_refused():
    a = torch.randn(3)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a, torch.ones(3))
        with pytest.raises(RuntimeError, match="jvp"):
            lists.combine([[dual]], [2.0])


def test_tensors_without_addresses_are_plain_torchs():
    given = [torch.empty(3, device="meta"), torch.empty(2, device="meta")]
    assert [y.shape for y in lists.combine([given, given], [1.0, 2.0])] == [(3,), (2,)]
    assert lists.gram(given, given).shape == (2, 2)


def test_out_may_be_one_tensor():
    a, b = torch.randn(3), torch.randn(3)
    expected = a + b
    [y] = lists.combine([a, b], [1, 1], out=a)
    assert y is a and torch.equal(a, expected)


def test_weights_of_a_list_without_gradients_have_zero_gradients():
    a = torch.randn(3, requires_grad=True)
    weights = torch.ones(2, requires_grad=True)
    [y] = lists.combine([[a], [None]], weights, missing="zero")
    of_weights, of_a = torch.autograd.grad(y.square().sum(), [weights, a], create_graph=True)
    assert of_weights[1] == 0
    (of_weights.sum() + of_a.sum()).backward()
    assert weights.grad.isfinite().all()


def test_what_is_written_is_seen_by_autograd():
    leaf = torch.randn(5, requires_grad=True)
    saved = leaf * 2
    loss = saved.square().sum()
    lists.combine([[torch.ones(5)]], [1.0], out=[saved.detach()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_kernels_serve_where_fsdp_was_imported():
    import torch.distributed.fsdp  # as torch.optim's optimizers do

    parameters = [torch.nn.Parameter(torch.randn(5)) for _ in range(3)]
    calls = []
    with count_launches() as launches, pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "positions_of", lambda *given: calls.append(given) or [])
        lists.gram(parameters, [p.detach() for p in parameters])
    assert without_tables(launches) == {"gram": 1} and not calls


def test_a_missing_tensor_is_an_error_or_zeros():
    a, b = torch.randn(3), torch.randn(3)
    with pytest.raises(ValueError, match="tensor 1 of list 1 is None"):
        lists.gram([a, a], [b, None])
    with pytest.raises(ValueError, match="tensor 0 of list 0 is None"):
        lists.combine([[None], [b]], [1, 1])
    found = lists.gram([a, a, None], [b, None, None], missing="zero")
    torch.testing.assert_close(found, lists.gram([a, a], [b, torch.zeros(3)]))
    y = lists.combine([[a, None, None], [b, b, None]], [2, 3], missing="zero")
    torch.testing.assert_close(y[:2], [2 * a + 3 * b, 3 * b])
    assert y[2] is None
    out = [torch.ones(3), torch.ones(3), torch.ones(2)]
    lists.combine([[a, None, None], [b, b, None]], [2, 3], missing="zero", out=out)
    assert (
        torch.equal(out[0], y[0])
        and torch.equal(out[1], y[1])
        and torch.equal(out[2], torch.zeros(2))
    )
    with pytest.raises(ValueError, match="missing must be 'error' or 'zero'"):
        lists.gram([a], missing="ignore")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda a: lists.gram([a], [a, a]), ValueError, "list 1 has 2 tensors, and list 0 has 1"),
        (lambda a: lists.gram(*[[a]] * 9), ValueError, "1 to 8 lists are taken together, got 9"),
        (lambda a: lists.gram(), ValueError, "1 to 8 lists are taken together, got 0"),
        (
            lambda a: lists.gram([a], [a[:2]]),
            ValueError,
            r"of shape \(2,\), and tensor 0 of list 0",
        ),
        (
            lambda a: lists.gram([a], [a.to("meta")]),
            ValueError,
            "on meta, and tensor 0 of list 0 on cpu",
        ),
        (lambda a: lists.gram([a], [a.to(torch.complex64)]), ValueError, "complex: True"),
        (lambda a: lists.gram([a], [a.long()]), TypeError, "tensor 0 of list 1 is torch.int64"),
        (lambda a: lists.gram([a], by=["x", "y"]), ValueError, "a label for each of 1 tensors"),
        (lambda a: lists.gram([a], by="layer"), ValueError, "a label for each of 1 tensors"),
        (
            lambda a: lists.combine([[a], [a]], [1.0]),
            ValueError,
            "2 real numbers, one a list, got 1",
        ),
        (lambda a: lists.combine([[a]], torch.ones(2)), ValueError, "1 real numbers"),
        (lambda a: lists.combine([[a]], [a[0]]), ValueError, "torch.stack makes one"),
        (lambda a: lists.combine([[a]], [1j]), ValueError, "1 real numbers or one tensor"),
        (
            lambda a: lists.combine([[a]], [2.0], out=[torch.ones(3, requires_grad=True)]),
            RuntimeError,
            "a tensor of out requires a gradient",
        ),
        (lambda a: lists.combine([[a]], [1.0], out=[]), ValueError, "out has 0 tensors"),
        (lambda a: lists.combine([[a]], [1.0], out=[None]), ValueError, "tensor 0 of out is None"),
        (
            lambda a: lists.combine([[a]], [1.0], out=[a[:2]]),
            ValueError,
            r"tensor 0 of out is of shape \(2,\)",
        ),
        (
            lambda a: lists.combine([[a[:2]], [a[1:]]], [1, 1], out=[a[:2]]),
            ValueError,
            "out shares memory with list 1 but is not the same tensors",
        ),
        (
            lambda a: lists.combine([[a, a + 1]], [1], out=[a, a]),
            ValueError,
            "two tensors of out share memory",
        ),
        (
            lambda a: lists.combine([[a, a + 1]], [1], out=[a + 1, a]),
            ValueError,
            "out shares memory with list 0",
        ),
        (
            lambda a: lists.combine([[a]], [1], out=[torch.zeros(1).expand(3)]),
            ValueError,
            "elements that share memory",
        ),
    ],
)
def test_operations_name_what_they_cannot_take(call, error, message):
    a = torch.arange(3.0)
    before = a.clone()
    with pytest.raises(error, match=message):
        call(a)
    assert torch.equal(a, before)


def test_what_has_no_kernel_is_plain_torchs():
    class Odd(torch.Tensor):
        pass

    a, b = (torch.randn(7, dtype=torch.float64) for _ in range(2))  # sums are in float64, too
    odd = a.clone().as_subclass(Odd)
    torch.testing.assert_close(lists.gram([odd, a], [b, b]), lists.gram([a, a], [b, b]))
    each = lists.gram([odd, a], [b, b], by="tensor")
    torch.testing.assert_close(each, lists.gram([a, a], [b, b], by="tensor"))
    y = lists.combine([[odd, b], [b, a]], [2.0, -1.0])
    torch.testing.assert_close([y[0].as_subclass(torch.Tensor), y[1]], [2 * a - b, 2 * b - a])
    negative = torch._neg_view(a)
    lists.combine([[b]], [3.0], out=[negative])
    torch.testing.assert_close(a, -3 * b)
    with pytest.raises(ValueError, match="out shares memory with list 0"):
        lists.combine([[odd[:4], b]], [1.0], out=[odd[2:6], a])
    with pytest.raises(ValueError, match="two tensors of out share memory"):
        lists.combine([[b[:4], b[:4]]], [1.0], out=[odd[2:6], odd[:4]])


def test_combine_is_differentiable_in_tensors_and_weights():
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in [(3,), (2, 2)] * 3
    ]
    weights = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64, requires_grad=True)

    def combined(weights, *flat):
        one, two, three = flat[:2], flat[2:4], flat[4:]
        return tuple(lists.combine([one, two, three], weights))

    def combined_by_numbers(*flat):
        return tuple(lists.combine([flat[:2], flat[2:]], [2.0, -1.0]))

    assert torch.autograd.gradcheck(combined, (weights, *given))
    assert torch.autograd.gradgradcheck(combined, (weights, *given))
    assert torch.autograd.gradcheck(combined_by_numbers, given[:4])
    with pytest.raises(RuntimeError, match="autograd does not record what is written to out"):
        lists.combine([given[:2]], [1.0], out=[torch.zeros(3), torch.zeros(2, 2)])


def test_gradients_have_the_dtypes_of_what_they_are_of():
    half = torch.randn(5, dtype=torch.bfloat16, requires_grad=True)
    full, missing = torch.randn(5, requires_grad=True), None
    weights = torch.ones(3, requires_grad=True)
    [y] = lists.combine([[half], [full], [missing]], weights, missing="zero")
    y.sum().backward()
    assert half.grad.dtype == torch.bfloat16 and full.grad.dtype == torch.float32
    torch.testing.assert_close(
        weights.grad, torch.stack([half.float().sum(), full.sum(), torch.zeros(())]).detach()
    )


def test_a_tensor_without_memory_is_named():
    empty = torch.randn(4)
    empty.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="tensor 0 of list 1 has elements and no memory"):
        lists.gram([torch.ones(4)], [empty])
