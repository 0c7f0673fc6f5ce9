"""A small GPT over bytes, and its text: the sources of Python's standard library."""

import sysconfig
from pathlib import Path

import torch
from command_line import InputError
from image_models import TransformerBlock
from torch import Tensor, nn

CHARACTERS = 256
HELD_OUT = 0.1


class GPT(nn.Module):
    def __init__(self, width: int = 96, depth: int = 3, heads: int = 4, length: int = 64) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width)
        self.positions = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.Sequential(
            *(TransformerBlock(width, heads, causal=True) for _ in range(depth))
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, CHARACTERS))

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.blocks(self.characters(text) + self.positions))


class Sources:
    """Windows of text and, for each character in them, the next one."""

    def __init__(self, length: int = 64) -> None:
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        if not files:
            raise InputError("this Python has no sources of its standard library to learn from")
        text = bytearray(b"".join(file.read_bytes() for file in files))
        self.text = torch.frombuffer(text, dtype=torch.uint8).long()
        self.length = length
        self.trained = round(len(self.text) * (1 - HELD_OUT))

    def windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        window = self.text[starts[:, None] + torch.arange(self.length + 1)]
        return window[:, :-1], window[:, 1:]

    def batch(self, size: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(self.trained - self.length, (size,), generator=random)
        return self.windows(starts)

    def held_out(self, size: int = 256) -> tuple[Tensor, Tensor]:
        last = len(self.text) - self.length - 1
        return self.windows(torch.linspace(self.trained, last, size, dtype=torch.float64).long())
