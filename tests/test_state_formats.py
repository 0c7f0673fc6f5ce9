"""The formats in which states and wide values are kept, number by number."""

import math

import pytest
import torch
from float_cases import EDGES, both_types, float32_of_bits, random_float32, same_bits
from hypothesis import given
from hypothesis import strategies as st

from friction_kernels.optim.blockwise import BLOCK, dequantize, quantize, quantized_size
from friction_kernels.optim.element_order import ElementOrder
from friction_kernels.optim.master_weights import join, split

both_residuals = pytest.mark.parametrize("residual", [torch.int16, torch.int8], ids=str)
signed_or_not = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


# A parameter and its residual.


def split_and_joined(wide, dtype, residual):
    narrow, rest = split(wide, dtype, residual)
    assert narrow.dtype == dtype and rest.dtype == residual
    return narrow, join(narrow, rest)


def check_split(wide, dtype, residual):
    narrow, joined = split_and_joined(wide, dtype, residual)
    nan = wide.isnan()
    assert torch.equal(joined.isnan(), nan) and torch.equal(narrow.isnan(), nan)
    infinite = wide.isinf()
    assert torch.equal(joined[infinite], wide[infinite])
    usual = wide.isfinite()
    wide, narrow, joined = wide[usual], narrow[usual], joined[usual]
    signed = joined != 0 if dtype == torch.float16 else slice(None)  # -0 and a residual of 0 are 0
    assert torch.equal(joined.signbit()[signed], wide.signbit()[signed])
    error = (joined.double() - wide.double()).abs()
    if dtype == torch.bfloat16 and residual == torch.int16:
        assert same_bits(joined, wide)
        away = (narrow.double() - wide.double()).abs()
        nearest = (wide.bfloat16().double() - wide.double()).abs()
        assert torch.equal(away[narrow.isfinite()], nearest[narrow.isfinite()])
    elif dtype == torch.bfloat16:
        below_overflow = joined.isfinite()
        assert (wide[~below_overflow].abs() >= 2.0**128 * (1 - 2.0**-17)).all()
        bound = wide.double().abs() * 2.0**-16 + 2.0**-142
        assert (error[below_overflow] <= bound[below_overflow]).all()
    else:
        assert torch.equal(narrow, wide.half())
        inside = narrow.isfinite()
        assert torch.equal(joined[~inside], narrow[~inside].float())
        normal = inside & (narrow.abs() >= 2.0**-14)
        if residual == torch.int16:
            assert same_bits(joined[normal], wide[normal])
            assert (error[inside & ~normal] <= 2.0**-40).all()
        else:
            _, exponent = torch.frexp(narrow.double())
            last_place = torch.ldexp(torch.ones_like(error), exponent.clamp(min=-13) - 11)
            assert (error[inside] <= last_place[inside] * 2.0**-8).all()
            unclamped = (wide.double() - narrow.double()).abs() < last_place * (0.5 - 2.0**-9)
            assert (error[inside & unclamped] <= last_place[inside & unclamped] * 2.0**-9).all()


@both_residuals
@both_types
def test_a_residual_keeps_what_it_promises_of_random_bits(dtype, residual):
    check_split(torch.cat([EDGES, random_float32()]), dtype, residual)


@both_residuals
@both_types
def test_a_residual_keeps_what_it_promises_of_usual_numbers(dtype, residual):
    generator = torch.Generator().manual_seed(1)
    exponents = torch.randint(-30, 16, (1 << 20,), generator=generator)
    check_split(torch.randn(1 << 20, generator=generator) * 2.0**exponents, dtype, residual)


@both_residuals
@both_types
@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_a_residual_keeps_what_it_promises(dtype, residual, bits):
    check_split(float32_of_bits(bits), dtype, residual)


@both_residuals
@both_types
def test_splitting_what_was_joined_changes_nothing(dtype, residual):
    wide = torch.cat([EDGES, random_float32(seed=2)])
    narrow, rest = split(wide, dtype, residual)
    joined = join(narrow, rest)
    again = split(joined, dtype, residual)
    numbers = ~wide.isnan()
    assert torch.equal(again[0][numbers], narrow[numbers])
    assert torch.equal(join(*again)[numbers], joined[numbers])
    if dtype == torch.bfloat16:
        assert same_bits(again[0], narrow) and same_bits(again[1], rest)


@both_residuals
@both_types
def test_a_parameter_that_was_zeroed_by_hand_is_zero(dtype, residual):
    wide = torch.linspace(-2, 2, 1001)
    narrow, rest = split(wide, dtype, residual)
    for zero in (0.0, -0.0):
        joined = join(torch.full_like(narrow, zero), rest)
        assert joined.isfinite().all() and (joined.abs() < 2.0**-24).all()


@both_residuals
@both_types
def test_residuals_of_any_layout_and_of_negated_views(dtype, residual):
    wide = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)).t()
    narrow, rest = split(wide, dtype, residual)
    flat = split(wide.contiguous(), dtype, residual)
    assert torch.equal(narrow, flat[0]) and torch.equal(rest, flat[1])
    assert torch.equal(join(narrow, rest), join(*flat))
    negated = torch.complex(wide, -wide).conj().imag
    assert negated.is_neg()
    assert torch.equal(split(negated, dtype, residual)[0], narrow)


# 8 bits.


def states(count, signed, spread=3.0, seed=0):
    """Numbers as states have them: of many orders of magnitude within a block."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    values = values * torch.exp(spread * torch.randn(count, generator=generator))
    return values if signed else values.square()


SIZES = [0, 1, 2, 255, 256, 257, 1000, 1024, 1025, 5000]


@signed_or_not
@pytest.mark.parametrize("count", SIZES)
def test_quantized_size_is_that_of_codes_and_aligned_scales(count, signed):
    quantized = quantize(states(count, signed), signed=signed)
    blocks = math.ceil(count / BLOCK)
    assert quantized.dtype == torch.uint8 and quantized.shape == (quantized_size(count),)
    assert quantized_size(count) == 16 * math.ceil(blocks / 4) + count
    assert not quantized[4 * blocks : quantized_size(count) - count].any()
    assert dequantize(quantized, count, signed=signed).shape == (count,)


@signed_or_not
def test_quantizing_is_as_near_as_sixteen_codes_an_octave_can_be(signed):
    values = states(50_000, signed)
    ours = dequantize(quantize(values, signed=signed), len(values), signed=signed)
    scale = torch.cat([b.abs().max().expand(len(b)) for b in values.split(BLOCK)])
    d = 1 / 240 if signed else 1.0625 / 65535
    half_a_code = (values.abs() + d * scale) / 16 / 2
    least = (ours != 0) & (ours <= 1.001 * scale * 2**-16 / 16)  # of an unsigned list: from farther
    near = (ours - values).abs() <= 1.001 * half_a_code
    assert (near if signed else near | least).all()
    assert torch.equal(ours == 0, values == 0) or signed
    assert torch.equal(ours.signbit(), values.signbit())


def check_twice(values, signed):
    """Quantizing again gives the same numbers, and the same bytes where no code stands for zero."""
    quantized = quantize(values, signed=signed)
    numbers = dequantize(quantized, len(values), signed=signed)
    again = quantize(numbers, signed=signed)
    assert same_bits(dequantize(again, len(values), signed=signed), numbers)
    return same_bits(again, quantized)


@signed_or_not
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("exponent", [-90, -60, -20, 0, 20, 60])
def test_quantizing_twice_is_quantizing_once(signed, spread, exponent):
    values = (states(20_000, signed, spread) * 2.0**exponent).clamp(-3e38, 3e38)
    assert check_twice(values, signed)


@signed_or_not
def test_every_code_of_every_scale_packs_to_itself(signed):
    codes = torch.arange(256, dtype=torch.uint8)
    mantissas = torch.arange(0, 1 << 23, 4099)
    for exponent in (40, 127, 200, 254):
        scales = ((exponent << 23) + mantissas).int().view(torch.float32)
        blocks = len(scales)
        start = quantized_size(blocks * BLOCK) - blocks * BLOCK
        quantized = torch.zeros(quantized_size(blocks * BLOCK), dtype=torch.uint8)
        quantized[: 4 * blocks] = scales.view(torch.uint8)
        quantized[start:] = codes.repeat(blocks)
        numbers = dequantize(quantized, blocks * BLOCK, signed=signed)
        assert torch.equal(numbers.view(blocks, BLOCK).amax(dim=1), scales)
        assert same_bits(quantize(numbers, signed=signed), quantized)


@signed_or_not
@given(
    bits=st.lists(st.integers(0, 0x7F7FFFFF), min_size=1, max_size=600),
    negative=st.booleans(),
)
def test_quantizing_twice_gives_the_same_numbers(signed, bits, negative):
    values = float32_of_bits(bits)
    check_twice(-values if signed and negative else values, signed)


@signed_or_not
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_block(signed, bad):
    if bad < 0 and not signed:
        return
    values = states(3 * BLOCK, signed)
    values[BLOCK + 7] = bad
    ours = dequantize(quantize(values, signed=signed), len(values), signed=signed)
    assert not ours[BLOCK + 7].isfinite()
    assert ours[:BLOCK].isfinite().all() and ours[2 * BLOCK :].isfinite().all()


@signed_or_not
def test_zeros_are_zero_bytes_and_small_numbers_become_zero_only_where_nothing_else_can_be(signed):
    assert not quantize(torch.zeros(1000), signed=signed).any()
    assert not dequantize(
        torch.zeros(quantized_size(1000), dtype=torch.uint8), 1000, signed=signed
    ).any()
    subnormal = torch.full((BLOCK,), 2.0**-130)
    assert not dequantize(quantize(subnormal, signed=signed), BLOCK, signed=signed).any()
    if not signed:
        values = torch.full((BLOCK,), 1e-20)
        values[0] = 1.0
        assert (dequantize(quantize(values, signed=False), BLOCK, signed=False) > 0).all()


# The order.


@pytest.mark.parametrize("rows_first", [False, True])
def test_a_walk_goes_through_memory_and_comes_back(rows_first):
    base = torch.arange(2 * 3 * 4 * 5.0)
    for dims in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)):
        shape = [(2, 3, 4, 5)[d] for d in dims]
        tensor = base.view(shape).permute(sorted(range(4), key=dims.__getitem__))
        order = ElementOrder.of(tensor, rows_first)
        flat = order.flatten(tensor)
        assert torch.equal(order.unflatten(flat, tensor.shape), tensor)
        assert torch.equal(flat, base) == (not rows_first or dims[0] == 0)
        assert order.is_flat == (dims == (0, 1, 2, 3) or order.dims == (0, 1, 2, 3))
        pairs = torch.stack([tensor, -tensor], dim=-1)
        assert torch.equal(order.flatten(pairs).view(-1, 2)[:, 0], flat)
        assert torch.equal(order.unflatten(order.flatten(pairs), pairs.shape), pairs)
        if rows_first:
            assert torch.equal(flat.view(2, -1).sum(1), tensor.sum((1, 2, 3)))


@pytest.mark.parametrize("strides", [(1, 100), (0, 1), (100, 1)])
def test_strides_of_dimensions_of_size_one_do_not_matter(strides):
    tensor = torch.arange(400.0).as_strided((4, 1) if strides[0] else (1, 4), strides)
    assert ElementOrder.of(tensor, False).is_flat


def test_a_scalar_has_a_walk():
    order = ElementOrder.of(torch.tensor(3.0), True)
    assert order.is_flat and order.unflatten(order.flatten(torch.tensor(3.0)), ()) == 3
