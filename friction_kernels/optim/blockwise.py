"""8-bit blockwise states: codes and one scale per block of 256 elements, in one uint8 tensor.

States span many orders of magnitude. Let r in [0, 1] be an element's magnitude relative to its block's scale.
The code is the upper bits of the float32 r + d: logarithmic above d, linear below, as in mu-law companding.
Codes of a signed state cover 8 octaves below the block's largest, others 16, with 16 codes per octave. An
average moves by less than half a code per step, so rounding to nearest would freeze it. Steps instead round
up from a threshold that varies over [0, 1). With 1/2, quantizing the result of `dequantize` is lossless.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
# State key with the shape of the quantized tensors' parameter; the tensors themselves are flat.
QUANTIZED_SHAPE = "packed_shape"
# State key with the element order of quantized states, if not that of a contiguous tensor.
ORDER = "packed_order"
_ALIGNMENT = 16
_SMALLEST_NORMAL = 2.0**-126

_SHIFT = 23 - 4  # 16 codes an octave
# The bits of d: 1/240 and 1.0625/65535. The largest code, 127 or 255, decodes to 1 exactly.
_SIGNED_OFFSET, _UNSIGNED_OFFSET = 0x3B888889, 0x37880088


def threshold_of(step: int) -> float:
    """Threshold above which this step rounds up: multiples of the golden section fill [0, 1) evenly."""
    turns = step * 0.6180339887498949
    return torch.tensor(turns - math.floor(turns), dtype=torch.float32, device="cpu").item()


def _bits_of(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def _float_of(bits: int) -> float:
    return torch.tensor(bits, dtype=torch.int32, device="cpu").view(torch.float32).item()


def _rounding(threshold: float, offset: int) -> int:
    # Stay below the maximum, because the inverse of a scale above 2^126 is inexact.
    return min(int(threshold * (1 << _SHIFT)), (1 << _SHIFT) - 8) - offset


def _upper_bits(x: Tensor, inverse_scale: Tensor, threshold: float, offset: int) -> Tensor:
    shifted = x.abs() * inverse_scale + _float_of(offset)
    return (_bits_of(shifted) + _rounding(threshold, offset)) >> _SHIFT


def _value_of(code: Tensor, offset: int) -> Tensor:
    return ((code << _SHIFT) + offset).view(torch.float32) - _float_of(offset)


def _signed_codes(x: Tensor, inverse_scale: Tensor, threshold: float) -> Tensor:
    magnitude = _upper_bits(x, inverse_scale, threshold, _SIGNED_OFFSET)
    return (magnitude & 0xFF | _bits_of(x) >> 24 & 0x80).to(torch.uint8)


def _signed_values(codes: Tensor, scale: Tensor) -> Tensor:
    code = codes.int()
    return _value_of(code & 0x7F, _SIGNED_OFFSET) * torch.where(code < 0x80, scale, -scale)


def _unsigned_codes(x: Tensor, inverse_scale: Tensor, threshold: float) -> Tensor:
    code = _upper_bits(x, inverse_scale, threshold, _UNSIGNED_OFFSET)
    least = (_bits_of(x) != 0) & (inverse_scale != 0)
    code = code.maximum(least.int())  # nonzero values must not become zero
    return (code & 0xFF).to(torch.uint8)


def _unsigned_values(codes: Tensor, scale: Tensor) -> Tensor:
    return _value_of(codes.int(), _UNSIGNED_OFFSET) * scale


def _scale_bytes(count: int) -> int:
    blocks = -(-count // BLOCK)
    return -(-4 * blocks // _ALIGNMENT) * _ALIGNMENT


def quantized_size(count: int) -> int:
    """Bytes of a quantized state with `count` elements."""
    return _scale_bytes(count) + count


def quantize(values: Tensor, *, signed: bool, threshold: float = 0.5) -> Tensor:
    """Encode float32 values in element order as bytes: scales, padding to 16 bytes, codes."""
    count, blocks = values.numel(), -(-values.numel() // BLOCK)
    x = pad(values, (0, blocks * BLOCK - count)).view(blocks, BLOCK)
    # Compared as integers, NaN is the largest, so it becomes the scale.
    scales = x.abs().view(torch.int32).amax(dim=1).view(torch.float32)
    inverse = torch.where(scales >= _SMALLEST_NORMAL, torch.ones_like(scales) / scales, 0.0)
    codes = (_signed_codes if signed else _unsigned_codes)(x, inverse[:, None], threshold)
    scale_bytes = scales.view(torch.uint8)
    return torch.cat(
        [pad(scale_bytes, (0, _scale_bytes(count) - 4 * blocks)), codes.view(-1)[:count]]
    )


def dequantize(quantized: Tensor, count: int, *, signed: bool) -> Tensor:
    """Decode `count` values from `quantize`, as float32 in element order."""
    blocks, start = -(-count // BLOCK), _scale_bytes(count)
    scales = quantized[: 4 * blocks].view(torch.float32)
    codes = pad(quantized[start:], (0, blocks * BLOCK - count)).view(blocks, BLOCK)
    return (_signed_values if signed else _unsigned_values)(codes, scales[:, None]).view(-1)[:count]


def quantized_mismatch(param: Tensor, state: Mapping[str, Any]) -> str | None:
    """Why an 8-bit state no longer matches its parameter, or None if it does."""
    remedy = "delete its state, or load one with load_state_dict()"
    shape, order = state.get(QUANTIZED_SHAPE, param.shape), state.get(ORDER, range(param.dim()))
    if not isinstance(shape, (tuple, list)):
        return f"has {shape!r} as '{QUANTIZED_SHAPE}' in its state, and not a shape; {remedy}"
    if tuple(shape) != tuple(param.shape):
        return f"has a state in 8 bits of a parameter of shape {tuple(shape)}; {remedy}"
    is_order = isinstance(order, (tuple, list, range)) and len(order) == param.dim()
    if not is_order or any(dim not in order for dim in range(param.dim())):
        return (
            f"has {order!r} as '{ORDER}' in its state, and not an order of its dimensions; {remedy}"
        )
    return None
