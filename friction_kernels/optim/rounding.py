"""Stochastic rounding to bf16 and fp16 with Philox4x32-10 (Salmon et al., SC 2011).

An element's random bits depend only on the seed, the step, the parameter and the element's index in it, so
they are the same for any sharding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_PER_BLOCK = 8  # elements per call: four words give 16 bits each to eight elements

_BF16_NAN, _BF16_LARGEST, _BF16_INF = 0x7FC0, 0x7F7F, 0x7F80
_FP16_NAN, _FP16_LARGEST, _FP16_INF = 0x7E00, 0x7BFF, 0x7C00
_FP16_SMALLEST_NORMAL = 2.0**-14


class Shard(NamedTuple):
    """The elements of the whole tensor in this shard: rows of `row_length`, `row_stride` apart."""

    offset: int
    row_length: int
    row_stride: int

    def indices(self, count: int, device: torch.device) -> Tensor:
        local = torch.arange(count, device=device)
        row = local // self.row_length
        return row * self.row_stride + local % self.row_length + self.offset


class RandomKey(NamedTuple):
    """Everything that determines a tensor's random bits in one step, besides each element's index."""

    seed: int
    step: int
    ordinal: int  # the parameter's index among all of the optimizer's
    shard: Shard | None = None  # None: the tensor is not sharded


def philox(counter: tuple[Tensor, Tensor, int, int], key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 of many counters: four words of 32 bits each, as int64, in the last dimension."""
    c0, c1 = counter[:2]
    c2, c3 = (torch.full_like(c0, word) for word in counter[2:])
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 64 bits each, including the sign bit
        c0, c1 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD
        c2, c3 = ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return torch.stack([c0, c1, c2, c3], dim=-1)


def random_bits(count: int, key: RandomKey, device: torch.device) -> Tensor:
    """16 random bits per element in element order, as int32."""
    if count == 0:
        return torch.empty(0, dtype=torch.int32, device=device)
    index = (key.shard or Shard(0, count, count)).indices(count, device)
    first = index[0] // _PER_BLOCK
    block = torch.arange(int(index[-1]) // _PER_BLOCK - int(first) + 1, device=device) + first
    counter = (block & _WORD, block >> 32, key.step & _WORD, key.ordinal)
    words = philox(counter, (key.seed & _WORD, key.seed >> 32))
    halves = torch.stack([words & 0xFFFF, words >> 16], dim=-1).view(-1).to(torch.int32)
    return halves[index - first * _PER_BLOCK]


def round_stochastically(wide: Tensor, dtype: torch.dtype, key: RandomKey) -> Tensor:
    """Round float32 in element order to bf16 or fp16, up or down such that the expected value is exact.

    Finite values stay finite: values out of range become the largest of the dtype.
    """
    bits = random_bits(wide.numel(), key, wide.device)
    return (_to_bfloat16 if dtype == torch.bfloat16 else _to_float16)(wide, bits)


def round_from(wide: Tensor, threshold: float) -> Tensor:
    """Round float32 to bf16, up if the dropped part is at least 1 - threshold of the last place."""
    share = torch.tensor(min(int(threshold * 65536), 65535), dtype=torch.int32, device=wide.device)
    return _to_bfloat16(wide, share)


def _to_bfloat16(wide: Tensor, random: Tensor) -> Tensor:
    magnitude = wide.view(torch.int32) & 0x7FFFFFFF
    rounded = ((magnitude + random) >> 16).clamp(max=_BF16_LARGEST)
    return _with_sign(wide, rounded, _BF16_INF, _BF16_NAN).view(torch.bfloat16)


def _to_float16(wide: Tensor, random: Tensor) -> Tensor:
    magnitude = wide.view(torch.int32) & 0x7FFFFFFF
    normal = ((magnitude + (random >> 3)) >> 13) - (112 << 10)  # drops 13 bits, bias 127 to 15
    # Subnormals are multiples of 2**-24; 16 more bits are kept for the rounding.
    is_small = wide.abs() < _FP16_SMALLEST_NORMAL
    small = ((wide.abs() * 2.0**40).where(is_small, 0.0).to(torch.int32) + random) >> 16
    rounded = torch.where(is_small, small, normal).clamp(max=_FP16_LARGEST)
    return _with_sign(wide, rounded, _FP16_INF, _FP16_NAN).view(torch.float16)


def _with_sign(wide: Tensor, magnitude: Tensor, infinity: int, nan: int) -> Tensor:
    magnitude = magnitude.masked_fill(wide.isinf(), infinity)
    signed = torch.where(wide.signbit(), magnitude - 0x8000, magnitude)
    return signed.masked_fill(wide.isnan(), nan).to(torch.int16)
