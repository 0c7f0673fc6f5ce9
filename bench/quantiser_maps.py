"""Maps from numbers to 8 bits and back, and how states are stored by them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from friction_kernels.optim.packed import BLOCK, threshold_of

CONTROL = "21 bits (control)"  # what any rounding, however small, does to a training
COPIES = ("prev_grad",)


@dataclass(frozen=True)
class Map:
    """From [0, 1] to the codes 0 .. levels and back; encode returns the code before rounding."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    levels: int


def power(roots: int, levels: int) -> Map:
    """Evenly spaced in r^(1 / 2^roots): linear for no roots, then square root, fourth root ..."""

    def encode(r: Tensor) -> Tensor:
        for _ in range(roots):
            r = r.sqrt()
        return r * levels

    return Map(encode, lambda code: (code / levels) ** 2**roots, levels)


def softsign(levels: int) -> Map:
    """flashoptim's."""
    return Map(lambda r: 2 * r / (1 + r) * levels, lambda code: code / (2 * levels - code), levels)


def floating(mantissa: int, levels: int) -> Map:
    """The upper bits of a float32: 2^mantissa codes an octave down from 1, then zero."""
    unit, lowest = 2.0 ** (23 - mantissa), (127 << mantissa) - levels

    def encode(r: Tensor) -> Tensor:
        return (r.view(torch.int32) / unit - lowest).clamp_min(0)

    def decode(code: Tensor) -> Tensor:
        return torch.where(code > 0, ((code + lowest) * unit).int().view(torch.float32), 0)

    return Map(encode, decode, levels)


def companding(mantissa: int, levels: int) -> Map:
    """Those of r + d, with a d from which the codes reach to 1 + d: even below d, and zero is exact."""
    unit, octaves = 1 << (23 - mantissa), levels // 2**mantissa + 1
    d = torch.tensor((octaves + 1 - levels / 2**mantissa) / (2**octaves - 1))
    offset = d.view(torch.int32)

    def encode(r: Tensor) -> Tensor:
        return ((r + d).view(torch.int32) - offset) / unit

    def decode(code: Tensor) -> Tensor:
        return (code.int() * unit + offset).view(torch.float32) - d

    return Map(encode, decode, levels)


def dynamic(levels: int) -> Map:
    """bitsandbytes' map: seven decades, each with twice the codes of the one below."""
    decades = [torch.tensor([0.0])]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, (levels + 1) // 128 * 2**decade + 1)
        decades.append(10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2)
    values = torch.cat([*decades, torch.tensor([1.0])])

    def encode(r: Tensor) -> Tensor:
        above = torch.bucketize(r, values).clamp_min(1)
        low, high = values[above - 1], values[above]
        return above - 1 + (r - low) / (high - low)

    return Map(encode, lambda code: values[code.long()], len(values) - 1)


def maps(levels: int) -> dict[str, Map]:
    return {
        "linear": power(0, levels),
        **{f"power {2**roots}": power(roots, levels) for roots in (1, 2, 3)},
        "softsign": softsign(levels),
        **{f"float M{bits}": floating(bits, levels) for bits in (2, 3, 4)},
        **{f"companding M{bits}": companding(bits, levels) for bits in (3, 4, 5)},
        "dynamic": dynamic(levels),
        CONTROL: power(1, 2**20),
    }


SIGNED, UNSIGNED = maps(127), maps(255)


def rounded(code: Tensor, rounding: str, step: int) -> Tensor:
    if rounding == "nearest":
        return code.round()
    # "by step": one threshold for a whole step.
    return (code + (threshold_of(step) if rounding == "by step" else torch.rand_like(code))).floor()


@dataclass(frozen=True)
class Scheme:
    """How the states are stored: signed ones by one map, exp_avg_sq by another.

    rounding: "nearest", "randomly" or "by step", of averages; a copy is rounded to nearest.
    """

    signed: str
    unsigned: str = ""
    rounding: str = "nearest"
    block: int = BLOCK

    def __str__(self) -> str:
        rounding = "" if self.rounding == "nearest" else f" rounded {self.rounding}"
        block = "" if self.block == BLOCK else f", block {self.block}"
        return f"{self.signed}, {self.unsigned}{rounding}{block}".removesuffix(", ")

    def round_trip(self, name: str, x: Tensor, step: int = 0) -> Tensor:
        positive = name == "exp_avg_sq"
        by = UNSIGNED[self.unsigned] if positive else SIGNED[self.signed]
        blocks = pad(x.flatten(), (0, -x.numel() % self.block)).view(-1, self.block)
        scale = blocks.abs().amax(dim=1, keepdim=True)
        r = blocks.abs() / scale.where(scale > 0, 1)
        code = rounded(by.encode(r), "nearest" if name in COPIES else self.rounding, step)
        if positive:  # a zero would be divided by
            code = code.maximum(blocks > 0)
        values = (by.decode(code.clamp(max=by.levels)) * scale).copysign(blocks)
        return values.flatten()[: x.numel()].view_as(x)


# What friction_kernels.optim.packed does.
BEST = Scheme("companding M4", "companding M4", "by step")
