"""Operations on lists of tensors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from friction_kernels import count_launches, lists

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


def exact_norm(tensors):
    squares = (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors)
    return math.sqrt(math.fsum(t.double().square().sum().item() for t in squares))


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
        assert dict(launches) == {"squared_norm": 1}
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
        (torch.eye(3).to_sparse(), "tensor 1 is sparse"),
    ],
)
def test_norm_names_what_it_cannot_take(wrong, message):
    with pytest.raises(TypeError, match=message):
        lists.norm([torch.ones(2), wrong])
