"""A bf16 or fp16 parameter and the residual bits that together hold a float32 value.

bf16 is the upper half of float32, so 16 more bits hold all of it, and 8 more bits a float32 rounded to
24 bits. For fp16 the residual counts units of 2**-16 or 2**-8 of the parameter's last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)
_BF16_NAN = 0x7FC0


def split(wide: Tensor, dtype: torch.dtype, residual: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split float32 into (parameter of `dtype`, residual of type int16 or int8).

    bf16: exact with int16; relative error at most 2**-16 with int8. fp16, for values in its normal
    range: exact with int16; at most 2**-8 of the parameter's last place with int8.
    """
    kept = 16 if residual == torch.int16 else 8
    halves = _split_bfloat16 if dtype == torch.bfloat16 else _split_float16
    return halves(wide.resolve_neg(), residual, kept)


def join(param: Tensor, residual: Tensor) -> Tensor:
    """The float32 value of a parameter and its residual."""
    kept = 16 if residual.dtype == torch.int16 else 8
    joined = _join_bfloat16 if param.dtype == torch.bfloat16 else _join_float16
    return joined(param.resolve_neg(), residual, kept)


def _split_bfloat16(wide: Tensor, residual: torch.dtype, kept: int) -> tuple[Tensor, Tensor]:
    bits = wide.view(torch.int32)
    if kept == 8:
        bits = (bits + 0x80) >> 8  # 24 bits, rounded half away from zero
    half = 1 << (kept - 1)
    upper = (bits + half) >> kept  # rounded likewise, so that the rest fits the residual
    lower = bits - (upper << kept)
    is_nan = wide.isnan()
    upper = upper.masked_fill(is_nan, _BF16_NAN).to(torch.int16)
    return upper.view(torch.bfloat16), lower.masked_fill(is_nan, 0).to(residual)


def _join_bfloat16(param: Tensor, residual: Tensor, kept: int) -> Tensor:
    upper = param.view(torch.int16).to(torch.int32)
    # A split never leaves a negative residual at a zero, so someone zeroed the parameter. Borrowing from
    # its bits would make it NaN.
    lower = torch.where(param == 0, residual.clamp(min=0), residual).to(torch.int32)
    return (((upper << kept) + lower) << (16 - kept)).view(torch.float32)


def _float16_last_place(param: Tensor) -> Tensor:
    """The value of one unit in the last place of fp16 numbers: a power of two."""
    exponent = (param.view(torch.int16) >> 10) & 0x1F
    # Subnormals share the last place of the smallest normals.
    return ((exponent.clamp(min=1) + (127 - 25)).to(torch.int32) << 23).view(torch.float32)


def _split_float16(wide: Tensor, residual: torch.dtype, kept: int) -> tuple[Tensor, Tensor]:
    param = wide.half()
    rest = (wide - param.float()) / _float16_last_place(param) * 2.0**kept
    rounded = (rest + torch.full_like(rest, 0.5).copysign(rest)).trunc()
    # Stay below half a place on either side: at half a place the sum would round to the next parameter.
    most = torch.iinfo(residual).max
    rounded = rounded.clamp(-most, most).masked_fill(~param.isfinite(), 0.0)
    return param, rounded.to(residual)


def _join_float16(param: Tensor, residual: Tensor, kept: int) -> Tensor:
    return param.float() + residual.float() * (_float16_last_place(param) * 2.0**-kept)
