"""Random bits and stochastic rounding, number by number."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from float_cases import EDGES, both_types, random_float32, same_bits
from hypothesis import given
from hypothesis import strategies as st

from friction_kernels.optim import rounding
from friction_kernels.optim.rounding import (
    RandomKey,
    Shard,
    philox,
    random_bits,
    round_stochastically,
)

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
    bits = random_bits(20, key, torch.device("cpu"))
    for i in range(20):
        word = philox((torch.tensor([i // 8]), torch.tensor([0]), 3, 11), (5, 7))[0, i % 8 // 2]
        assert bits[i] == (int(word) >> (16 * (i % 2))) & 0xFFFF


def test_random_bits_depend_on_seed_step_and_parameter():
    keys = [RandomKey(0, 1, 0), RandomKey(1, 1, 0), RandomKey(1 << 32, 1, 0), RandomKey(0, 2, 0)]
    keys += [RandomKey(0, 1, 1), RandomKey(0, 1 + (1 << 31), 0)]
    drawn = {tuple(random_bits(16, key, torch.device("cpu")).tolist()) for key in keys}
    assert len(drawn) == len(keys)


def test_random_bits_are_uniform():
    bits = random_bits(1 << 20, RandomKey(1, 1, 0), torch.device("cpu"))
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
        piece = round_stochastically(whole.flatten()[start:end], dtype, key._replace(shard=shard))
        assert torch.equal(piece, expected.flatten()[start:end])
    at = sorted({0, columns, *(c for c in cuts if c < columns)})
    for start, end in pairwise(at):  # columns
        shard = Shard(start, end - start, columns)
        piece = round_stochastically(
            whole[:, start:end].flatten(), dtype, key._replace(shard=shard)
        )
        assert torch.equal(piece.view(rows, -1), expected[:, start:end])


def test_indices_beyond_32_bits_count():
    shard = Shard((1 << 35) + 3, 10, 10)
    far = random_bits(10, RandomKey(0, 1, 0, shard), torch.device("cpu"))
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
