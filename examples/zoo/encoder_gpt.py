"""Source code, byte by byte: a bidirectional encoder of one block conditions a small GPT of the next."""

import math
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from examples.zoo.optimizers import Setting
from examples.zoo.training import train
from examples.zoo.workload import Workload as Base
from friction_kernels import DistillationLoss
from friction_kernels.targets import Scores

BYTES = 256
BLOCK, WIDTH, HEADS, LAYERS, BATCH = 64, 64, 4, 2, 16
TEST_BLOCKS = 256
TEST_FILE = 10  # every tenth
ORDER = 3  # of the counting baseline
STUDENTS = ("small", "distilled")  # half as wide as the whole model
DISTILLATION = DistillationLoss(temperature=1.0)  # in the search a higher one did harm
Batch = tuple[Tensor, Tensor]  # a block and the next one, (B, BLOCK) each


class EncoderGPT(nn.Module):
    """What the head makes each byte of `target` of: those before it, and what is read of `previous`."""

    def __init__(self, reads: str, width: int) -> None:
        super().__init__()
        self.reads = reads
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        sizes = width, HEADS, 4 * width
        self.bytes = nn.Embedding(BYTES, width)
        self.positions = nn.Parameter(0.02 * torch.randn(2 * BLOCK, width))
        if reads == "encoder":
            layers = [nn.TransformerEncoderLayer(*sizes, **options) for _ in range(LAYERS)]
            self.encoder = nn.Sequential(*layers, nn.LayerNorm(width))
            kind = nn.TransformerDecoderLayer
        else:
            kind = nn.TransformerEncoderLayer
        self.decoder = nn.ModuleList(kind(*sizes, **options) for _ in range(LAYERS))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES)

    def forward(self, previous: Tensor, target: Tensor) -> Tensor:
        shown = torch.cat([previous[:, -1:], target[:, :-1]], dim=1)
        if self.reads == "prefix":
            shown = torch.cat([previous[:, :-1], shown], dim=1)
        length = shown.shape[1]
        causal = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.bytes(shown) + self.positions[:length]
        if self.reads == "encoder":
            memory = self.encoder(self.bytes(previous) + self.positions[BLOCK : 2 * BLOCK])
            for layer in self.decoder:
                x = layer(x, memory, tgt_mask=causal, tgt_is_causal=True)
        else:
            for layer in self.decoder:
                x = layer(x, causal, is_causal=True)
        return self.norm(x[:, -BLOCK:])


class Workload(Base):
    title = "Encoder and GPT over source code"
    variants = ("encoder", "plain", "prefix", *STUDENTS)
    metric = "bits a byte"
    higher_is_better = False
    lr = 3e-3
    sgd_lr = 0.1
    steps = 150

    def __init__(self, folder: Path, **options: Any) -> None:
        super().__init__(folder, **options)
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        files = files[: 2 * TEST_FILE] if self.miniature else files
        test = {file for number, file in enumerate(files) if number % TEST_FILE == 0}
        self.train_text = b"".join(file.read_bytes() for file in files if file not in test)
        self.test_text = b"".join(file.read_bytes() for file in files if file in test)
        random = torch.Generator().manual_seed(0)
        self.test = self.blocks(self.test_text, 8 if self.miniature else TEST_BLOCKS, random)

    def blocks(self, text: bytes, count: int, random: torch.Generator) -> Batch:
        starts = torch.randint(len(text) - 2 * BLOCK, (count,), generator=random)
        rows = [list(text[start : start + 2 * BLOCK]) for start in starts.tolist()]
        previous, target = torch.tensor(rows).split(BLOCK, dim=1)
        return previous, target

    def model(self) -> EncoderGPT:
        width = 16 if self.miniature else WIDTH
        if self.variant in STUDENTS:
            return EncoderGPT("encoder", width // 2)
        return EncoderGPT(self.variant, width)

    @cached_property
    def teacher(self) -> EncoderGPT:
        """The whole model, trained with AdamW: once, for all optimizers and seeds."""
        torch.manual_seed(0)
        whole = Workload(self.folder, miniature=self.miniature)
        model, steps = whole.model(), 20 if self.miniature else self.steps
        train(whole, Setting.parse("AdamW"), 0, model=model, steps=steps)
        return model.requires_grad_(False)

    def batches(self, seed: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(seed)
        while True:
            yield self.blocks(self.train_text, BATCH, random)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        if self.variant != "distilled":
            return self.nats(model, batch)
        own, other = model.head, self.teacher.head
        teacher = Scores(self.teacher(*batch), other.weight, bias=other.bias)
        return DISTILLATION(model(*batch), own.weight, batch[1], teacher, own.bias)

    def nats(self, model: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(model.head(model(*batch)).flatten(0, 1), batch[1].flatten())

    def evaluate(self, model: nn.Module) -> float:
        parts = zip(*(part.split(BATCH) for part in self.test), strict=True)
        losses = [self.nats(model, part).item() for part in parts]
        return sum(losses) / len(losses) / math.log(2)

    def baselines(self) -> dict[str, float]:
        return {
            "uniform": 8.0,
            "byte frequencies": self.counted(0),
            f"counts of up to {ORDER + 1} bytes": self.counted(ORDER),
            "zlib, of whole files": 8 * len(zlib.compress(self.test_text, 9)) / len(self.test_text),
        }

    def counted(self, order: int) -> float:
        """Frequencies after up to `order` bytes in all training text, smoothed by those after fewer."""
        counts, totals, kinds = Counter(), Counter(), Counter()
        text = self.train_text
        for length in range(1, order + 2):
            grams = Counter(text[i : i + length] for i in range(len(text) - length + 1))
            counts |= grams
            for gram, count in grams.items():
                totals[gram[:-1]] += count
                kinds[gram[:-1]] += 1

        def probability(context: bytes, byte: bytes) -> float:
            shorter = probability(context[1:], byte) if context else 1 / BYTES
            total, kind = totals[context], kinds[context]
            return (counts[context + byte] + kind * shorter) / (total + kind) if total else shorter

        bits = 0.0
        for row in torch.cat(self.test, dim=1).tolist():
            for at in range(BLOCK, 2 * BLOCK):
                bits -= math.log2(probability(bytes(row[at - order : at]), bytes(row[at : at + 1])))
        return bits / self.test[1].numel()
