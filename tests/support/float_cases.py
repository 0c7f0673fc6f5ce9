"""Numbers that rounding must get right: of every exponent, and at the edges of each type."""

import pytest
import torch

both_types = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


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
