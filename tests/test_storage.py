"""The formats in which states and wide values are kept, and stochastic rounding, number by number."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from friction_kernels.optim import rounding
from friction_kernels.optim.companions import join, split
from friction_kernels.optim.packed import BLOCK, pack, packed_size, unpack
from friction_kernels.optim.rounding import (
    RandomKey,
    Shard,
    philox,
    random_bits,
    round_stochastically,
)
from friction_kernels.optim.walk import Walk

LOW = [torch.bfloat16, torch.float16]
RESIDUALS = [torch.int16, torch.int8]
both_types = pytest.mark.parametrize("dtype", LOW, ids=str)
both_residuals = pytest.mark.parametrize("residual", RESIDUALS, ids=str)
signed_or_not = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def float32_of_bits(bits):
    return torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)


def same_bits(left, right):
    return torch.equal(left.view(torch.uint8), right.view(torch.uint8))


def random_float32(count=1 << 20, seed=0):
    """Numbers of random bits: every exponent alike, infinities and NaN among them."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-(1 << 31), 1 << 31, (count,), generator=generator).int().view(torch.float32)
    )


EDGES = float32_of_bits(
    [
        sign | bits
        for sign in (0, 0x80000000)
        for bits in (
            *(0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x7FFFFF, 0x800000, 0x807FFF, 0x808000),
            *(0x33000000, 0x33000001, 0x337FFFFF, 0x33800000, 0x33800001, 0x33C00000, 0x32FFFFFF),
            *(0x387FBFFF, 0x387FC000, 0x387FE000, 0x387FFFFF, 0x38800000, 0x38801000, 0x38801001),
            *(0x3F800000, 0x3F807FFF, 0x3F808000, 0x3F808001, 0x3F817FFF, 0x3F818000, 0x3F818001),
            *(0x3F80007F, 0x3F800080, 0x3F800081, 0x3F7FFFFF, 0x3F7FFF80, 0x3FFFFFFF, 0x3F801000),
            *(0x477FDFFF, 0x477FE000, 0x477FEFFF, 0x477FF000, 0x477FFFFF, 0x47800000),
            *(0x7F7F0000, 0x7F7F7FFF, 0x7F7F8000, 0x7F7FFF7F, 0x7F7FFFFF, 0x7F800000),
            *(0x7F800001, 0x7FC00000, 0x7FFFFFFF),
        )
    ]
)


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
def test_packed_size_is_that_of_codes_and_aligned_scales(count, signed):
    packed = pack(states(count, signed), signed=signed)
    blocks = math.ceil(count / BLOCK)
    assert packed.dtype == torch.uint8 and packed.shape == (packed_size(count),)
    assert packed_size(count) == 16 * math.ceil(blocks / 4) + count
    assert not packed[4 * blocks : packed_size(count) - count].any()
    assert unpack(packed, count, signed=signed).shape == (count,)


@signed_or_not
def test_packing_is_as_near_as_a_map_of_roots_can_be(signed):
    values = states(50_000, signed)
    ours = unpack(pack(values, signed=signed), len(values), signed=signed)
    scale = torch.cat([b.abs().max().expand(len(b)) for b in values.split(BLOCK)])
    x, power, top = (values / scale).abs(), *((2, 127) if signed else (4, 255))
    root = x.double() ** (1 / power)
    bounds = [((root + s * 0.501 / top).clamp(min=0) ** power * scale).float() for s in (-1, 1)]
    tiny = (1 / top) ** power * scale  # the least code of an unsigned list is taken from farther
    assert torch.equal(ours == 0, values == 0) or signed
    assert (
        (ours.abs() >= bounds[0]) & ((ours.abs() <= bounds[1]) | (ours.abs() <= tiny * 1.001))
    ).all()
    assert (
        torch.equal(ours.signbit(), values.signbit())
        or (ours[ours != 0] * values[ours != 0] > 0).all()
    )


def check_twice(values, signed):
    """What was unpacked packs to the same numbers, and to the same bytes where no code stands for zero."""
    packed = pack(values, signed=signed)
    numbers = unpack(packed, len(values), signed=signed)
    again = pack(numbers, signed=signed)
    assert same_bits(unpack(again, len(values), signed=signed), numbers)
    return same_bits(again, packed)


@signed_or_not
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("exponent", [-90, -60, -20, 0, 20, 60])
def test_packing_twice_is_packing_once(signed, spread, exponent):
    values = (states(20_000, signed, spread) * 2.0**exponent).clamp(-3e38, 3e38)
    assert check_twice(values, signed)


@signed_or_not
def test_every_code_of_every_scale_packs_to_itself(signed):
    codes = torch.arange(256, dtype=torch.uint8)
    if signed:
        codes[128] = 0  # -128 is never written
    mantissas = torch.arange(0, 1 << 23, 4099)
    for exponent in (40, 127, 200, 254):
        scales = ((exponent << 23) + mantissas).int().view(torch.float32)
        blocks = len(scales)
        start = packed_size(blocks * BLOCK) - blocks * BLOCK
        packed = torch.zeros(packed_size(blocks * BLOCK), dtype=torch.uint8)
        packed[: 4 * blocks] = scales.view(torch.uint8)
        packed[start:] = codes.repeat(blocks)
        numbers = unpack(packed, blocks * BLOCK, signed=signed)
        assert torch.equal(numbers.view(blocks, BLOCK).amax(dim=1), scales)
        assert same_bits(pack(numbers, signed=signed), packed)


@signed_or_not
@given(
    bits=st.lists(st.integers(0, 0x7F7FFFFF), min_size=1, max_size=600),
    negative=st.booleans(),
)
def test_packing_twice_gives_the_same_numbers(signed, bits, negative):
    values = float32_of_bits(bits)
    check_twice(-values if signed and negative else values, signed)


@signed_or_not
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_block(signed, bad):
    if bad < 0 and not signed:
        return
    values = states(3 * BLOCK, signed)
    values[BLOCK + 7] = bad
    ours = unpack(pack(values, signed=signed), len(values), signed=signed)
    assert not ours[BLOCK + 7].isfinite()
    assert ours[:BLOCK].isfinite().all() and ours[2 * BLOCK :].isfinite().all()


@signed_or_not
def test_zeros_are_zero_bytes_and_small_numbers_become_zero_only_where_nothing_else_can_be(signed):
    assert not pack(torch.zeros(1000), signed=signed).any()
    assert not unpack(torch.zeros(packed_size(1000), dtype=torch.uint8), 1000, signed=signed).any()
    subnormal = torch.full((BLOCK,), 2.0**-130)
    assert not unpack(pack(subnormal, signed=signed), BLOCK, signed=signed).any()
    if not signed:
        values = torch.full((BLOCK,), 1e-20)
        values[0] = 1.0
        assert (unpack(pack(values, signed=False), BLOCK, signed=False) > 0).all()


# The walk.


@pytest.mark.parametrize("rows_first", [False, True])
def test_a_walk_goes_through_memory_and_comes_back(rows_first):
    base = torch.arange(2 * 3 * 4 * 5.0)
    for dims in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 2, 3)):
        shape = [(2, 3, 4, 5)[d] for d in dims]
        tensor = base.view(shape).permute(sorted(range(4), key=dims.__getitem__))
        walk = Walk.of(tensor, rows_first)
        flat = walk.flatten(tensor)
        assert torch.equal(walk.unflatten(flat, tensor.shape), tensor)
        assert torch.equal(flat, base) == (not rows_first or dims[0] == 0)
        assert walk.is_flat == (dims == (0, 1, 2, 3) or walk.order == (0, 1, 2, 3))
        pairs = torch.stack([tensor, -tensor], dim=-1)
        assert torch.equal(walk.flatten(pairs).view(-1, 2)[:, 0], flat)
        assert torch.equal(walk.unflatten(walk.flatten(pairs), pairs.shape), pairs)
        if rows_first:
            assert torch.equal(flat.view(2, -1).sum(1), tensor.sum((1, 2, 3)))


@pytest.mark.parametrize("strides", [(1, 100), (0, 1), (100, 1)])
def test_strides_of_dimensions_of_size_one_do_not_matter(strides):
    tensor = torch.arange(400.0).as_strided((4, 1) if strides[0] else (1, 4), strides)
    assert Walk.of(tensor, False).is_flat


def test_a_scalar_has_a_walk():
    walk = Walk.of(torch.tensor(3.0), True)
    assert walk.is_flat and walk.unflatten(walk.flatten(torch.tensor(3.0)), ()) == 3


# Random bits.

KNOWN_ANSWERS = {
    (0, 0, 0, 0, 0, 0): "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    (0xFFFFFFFF,) * 6: "408f276d 41c83b0e a20bc7c6 6d5451fd",
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (
        "d16cfe09 94fdcceb 5001e420 24126ea1"
    ),
}


@pytest.mark.parametrize("case", KNOWN_ANSWERS, ids=KNOWN_ANSWERS.get)
def test_philox_gives_the_known_answers(case):
    c0, c1, c2, c3, *key = case
    words = philox((torch.tensor([c0]), torch.tensor([c1]), c2, c3), tuple(key))
    assert " ".join(f"{word:08x}" for word in words[0].tolist()) == KNOWN_ANSWERS[case]


def test_random_bits_are_the_halves_of_philoxs_words():
    key = RandomKey(seed=(7 << 32) + 5, step=3, ordinal=11)
    bits = random_bits(20, key, None, torch.device("cpu"))
    for i in range(20):
        word = philox((torch.tensor([i // 8]), torch.tensor([0]), 3, 11), (5, 7))[0, i % 8 // 2]
        assert bits[i] == (int(word) >> (16 * (i % 2))) & 0xFFFF


def test_random_bits_depend_on_seed_step_and_parameter():
    keys = [RandomKey(0, 1, 0), RandomKey(1, 1, 0), RandomKey(1 << 32, 1, 0), RandomKey(0, 2, 0)]
    keys += [RandomKey(0, 1, 1), RandomKey(0, 1 + (1 << 31), 0)]
    drawn = {tuple(random_bits(16, key, None, torch.device("cpu")).tolist()) for key in keys}
    assert len(drawn) == len(keys)


def test_random_bits_are_uniform():
    bits = random_bits(1 << 20, RandomKey(1, 1, 0), None, torch.device("cpu"))
    counts = torch.bincount(bits, minlength=1 << 16).double()
    assert len(counts) == 1 << 16
    chi_squared = ((counts - 16).square() / 16).sum().item()
    assert abs(chi_squared - 65535) < 5 * math.sqrt(2 * 65535)
    for shift in range(16):
        assert abs((bits >> shift & 1).double().mean().item() - 0.5) < 5 * 0.5 / 1024


@both_types
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 360), max_size=6),
)
def test_rounding_does_not_depend_on_how_a_tensor_is_cut(dtype, rows, columns, cuts):
    whole = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    key = RandomKey(42, 5, 2)
    expected = round_stochastically(whole.flatten(), dtype, key).view(rows, columns)
    at = sorted({0, rows * columns, *(c for c in cuts if c < rows * columns)})
    for start, end in pairwise(at):  # pieces of the flat tensor
        shard = Shard(start, end - start, end - start)
        piece = round_stochastically(whole.flatten()[start:end], dtype, key, shard)
        assert torch.equal(piece, expected.flatten()[start:end])
    at = sorted({0, columns, *(c for c in cuts if c < columns)})
    for start, end in pairwise(at):  # columns
        shard = Shard(start, end - start, columns)
        piece = round_stochastically(whole[:, start:end].flatten(), dtype, key, shard)
        assert torch.equal(piece.view(rows, -1), expected[:, start:end])


def test_indices_beyond_32_bits_count():
    shard = Shard((1 << 35) + 3, 10, 10)
    far = random_bits(10, RandomKey(0, 1, 0), shard, torch.device("cpu"))
    word = philox((torch.tensor([0]), torch.tensor([1]), 1, 0), (0, 0))[0]
    assert far[0] == (int(word[1]) >> 16) & 0xFFFF


# Stochastic rounding.

FINITE = torch.cat([EDGES, random_float32(1 << 16, seed=4)])
FINITE = FINITE[FINITE.isfinite()]


def neighbours(wide, dtype):
    """The type's numbers next to a number, below and above, within its range."""
    nearest = wide.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)
    as_int = nearest.view(torch.int16).to(torch.int32)
    ordered = torch.where(as_int < 0, -(as_int & 0x7FFF), as_int)
    step = (wide.double() > nearest.double()).int() - (wide.double() < nearest.double()).int()
    other = ordered + step
    other = torch.where(other < 0, -other - 0x8000, other).to(torch.int16).view(dtype)
    inside = other.isfinite()
    return nearest, torch.where(inside, other, nearest)


@both_types
def test_rounding_goes_to_a_neighbour_and_never_to_infinity(dtype):
    nearest, other = neighbours(FINITE, dtype)
    for step in range(1, 9):
        ours = round_stochastically(FINITE, dtype, RandomKey(0, step, 0))
        assert ours.isfinite().all()
        assert ((ours == nearest) | (ours == other)).all()
        assert torch.equal(ours.signbit(), FINITE.signbit())


@both_types
def test_numbers_of_the_type_stay_and_so_do_nan_and_infinity(dtype):
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    ours = round_stochastically(every.float(), dtype, RandomKey(3, 1, 0))
    assert torch.equal(ours.isnan(), every.isnan())
    assert same_bits(ours[~every.isnan()], every[~every.isnan()])


@both_types
@pytest.mark.parametrize("exponent", [-27, -24, -20, -16, -14, -10, 0, 10])
def test_rounding_is_right_on_average(dtype, exponent):
    generator = torch.Generator().manual_seed(5)
    values = (torch.rand(50, generator=generator) + 1) * 2.0**exponent
    draws = 20_000
    ours = round_stochastically(values.repeat(draws), dtype, RandomKey(9, 1, 0)).double()
    mean = ours.view(draws, -1).mean(0)
    low, high = (n.double() for n in neighbours(values, dtype))
    gap = (high - low).abs()
    fraction = ((values.double() - torch.minimum(low, high)) / gap).nan_to_num(0.5)
    deviation = gap * (fraction * (1 - fraction) / draws).sqrt()
    assert ((mean - values.double()).abs() <= 5 * deviation + gap * 2.0**-16 + 1e-45).all()


@both_types
def test_odds_of_rounding_are_exact_to_sixteen_bits(dtype):
    # Every value of the random bits once: how many of them round up is known.
    to = rounding._to_bfloat16 if dtype == torch.bfloat16 else rounding._to_float16
    random = torch.arange(1 << 16, dtype=torch.int32)
    rng = np.random.default_rng(0)
    for value in [
        1.0 + rng.random(),
        2.0**-20 * 1.7,
        2.0**-24 * 0.3,
        2.0**-26 * 1.9,
        2.0**-15 * 1.3,
    ]:
        wide = torch.tensor(value, dtype=torch.float32)
        low, high = (n.double().item() for n in neighbours(wide.view(1), dtype))
        low, high = min(low, high), max(low, high)
        ups = int((to(wide.expand(1 << 16).contiguous(), random).double() == high).sum())
        assert ups == math.floor((wide.double().item() - low) / (high - low) * 65536)
