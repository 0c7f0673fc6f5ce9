"""State lists in 8 bits: codes and, for each block of 256 elements, a scale, in one uint8 tensor.

The maps follow roots, because states span many orders of magnitude: neighbouring codes of a signed list
differ by 1/63 of the value at the block's largest, by more below. An average moves less than half a code in
a step, and rounding to nearest would freeze it; so a step rounds up from a threshold that runs through
[0, 1) from step to step. With 1/2, packing what `unpack` gave loses nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

BLOCK = 256
_ALIGNMENT = 16
_SMALLEST_NORMAL = 2.0**-126

_SIGNED_TOP, _UNSIGNED_TOP = 127, 255
_SIGNED_STEP, _UNSIGNED_STEP = (
    torch.tensor(1 / top, dtype=torch.float32).item() for top in (_SIGNED_TOP, _UNSIGNED_TOP)
)


def threshold_of(step: int) -> float:
    """From where averages are rounded up at this step: multiples of the golden section fill [0, 1) evenly."""
    turns = step * 0.6180339887498949
    return torch.tensor(turns - math.floor(turns), dtype=torch.float32, device="cpu").item()


def _root(x: Tensor) -> Tensor:
    return x.double().sqrt().float()  # torch's float32 root is not always the nearest float32


def _signed_codes(x: Tensor, inverse_scale: Tensor, threshold: float) -> Tensor:
    y = _root(x.abs() * inverse_scale) * _SIGNED_TOP + threshold
    code = torch.where(y < _SIGNED_TOP, y, _SIGNED_TOP).trunc()  # so, too, for NaN
    return torch.where(x < 0, -code, code).to(torch.int8).view(torch.uint8)


def _signed_values(codes: Tensor, scale: Tensor) -> Tensor:
    t = codes.view(torch.int8).float() * _SIGNED_STEP
    return (t * t.abs()) * scale


def _unsigned_codes(x: Tensor, inverse_scale: Tensor, threshold: float) -> Tensor:
    y = _root(_root(x * inverse_scale)) * _UNSIGNED_TOP + threshold
    code = torch.where(y < _UNSIGNED_TOP, y, _UNSIGNED_TOP).trunc()
    return code.maximum((x > 0).float()).to(torch.uint8)  # what is not zero must not become it


def _unsigned_values(codes: Tensor, scale: Tensor) -> Tensor:
    t = codes.float() * _UNSIGNED_STEP
    s = t * t
    return (s * s) * scale


def _scale_bytes(count: int) -> int:
    blocks = -(-count // BLOCK)
    return -(-4 * blocks // _ALIGNMENT) * _ALIGNMENT


def packed_size(count: int) -> int:
    """Bytes of a packed list of so many elements."""
    return _scale_bytes(count) + count


def pack(values: Tensor, *, signed: bool, threshold: float = 0.5) -> Tensor:
    """float32 values in walk order as bytes: scales, zeros up to a multiple of 16 bytes, codes."""
    count, blocks = values.numel(), -(-values.numel() // BLOCK)
    x = pad(values, (0, blocks * BLOCK - count)).view(blocks, BLOCK)
    # Compared as integers, NaN is the largest.
    scales = x.abs().view(torch.int32).amax(dim=1).view(torch.float32)
    inverse = torch.where(scales >= _SMALLEST_NORMAL, torch.ones_like(scales) / scales, 0.0)
    codes = (_signed_codes if signed else _unsigned_codes)(x, inverse[:, None], threshold)
    scale_bytes = scales.view(torch.uint8)
    return torch.cat(
        [pad(scale_bytes, (0, _scale_bytes(count) - 4 * blocks)), codes.view(-1)[:count]]
    )


def unpack(packed: Tensor, count: int, *, signed: bool) -> Tensor:
    """What `pack` kept of `count` values, as float32 in walk order."""
    blocks, start = -(-count // BLOCK), _scale_bytes(count)
    scales = packed[: 4 * blocks].view(torch.float32)
    codes = pad(packed[start:], (0, blocks * BLOCK - count)).view(blocks, BLOCK)
    return (_signed_values if signed else _unsigned_values)(codes, scales[:, None]).view(-1)[:count]
