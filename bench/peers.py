"""Other packages' optimizers, as data. Each is measured where it can be imported, and named where not.

Their classes were looked up in the versions named beside them. `equals` says whose steps they take: every
run compares them on small tensors and records by how much they differ.
"""

import importlib
from dataclasses import replace

import torch
from torch import Tensor

from bench.contenders import ADAMW_FOR_LOOP, ADAMW_FUSED, Contender

ADAMP = "adamp.AdamP"
BF16 = torch.bfloat16
DECAY = {"lr": 1e-3, "weight_decay": 1e-2}


def peer(name: str, module: str, cls: str, **fields) -> Contender:
    options = {**DECAY, **fields.pop("options", {})}

    def build(params: list[Tensor]) -> object:
        return getattr(importlib.import_module(module), cls)(params, **options)

    fields = {"plain": ADAMW_FOR_LOOP, **fields}
    return Contender(name, build, needs=module.partition(".")[0], **fields)


def why_not_importable(module: str | None) -> str | None:
    """The import's own words; some packages look for a card while they load, and fail in their own way."""
    try:
        if module is not None:
            importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


# AdamP compares parameters with gradients before it updates.
OF_OPTIMIZERS = [
    peer(ADAMP, "adamp", "AdamP", reads="gpg", plain=None, slow=True),  # 0.3.0
    peer(  # 4.1.0
        "pytorch_optimizer.AdamP",
        "pytorch_optimizer",
        "AdamP",
        reads="gpg",
        plain=None,
        slow=True,
    ),
    # Friction by |g_{t-1} - g_t| (arXiv 1909.11015), and so the lists of friction Adam.
    peer(
        "pytorch_optimizer.DiffGrad",
        "pytorch_optimizer",
        "DiffGrad",
        plain=None,
        slow=True,
        at_once=2,
    ),
    peer(  # 0.3.3, the package torch-optimi
        "optimi.AdamW",
        "optimi",
        "AdamW",
        equals=ADAMW_FUSED,
        slow=True,
        options={"betas": (0.9, 0.999), "eps": 1e-8},
    ),
    peer(
        "optimi.AdamW triton",
        "optimi",
        "AdamW",
        equals=ADAMW_FUSED,
        options={"betas": (0.9, 0.999), "eps": 1e-8, "triton": True},
    ),
    peer(
        "bitsandbytes.AdamW", "bitsandbytes.optim", "AdamW", equals=ADAMW_FUSED, slow=True
    ),  # 0.50
    peer(  # 0.1.4
        "flashoptim.FlashAdamW uncompressed",
        "flashoptim",
        "FlashAdamW",
        equals=ADAMW_FUSED,
        slow=True,
        options={"quantize": False, "master_weight_bits": None, "fused": False},
    ),
]
FLASH_ADAMW = peer("flashoptim.FlashAdamW", "flashoptim", "FlashAdamW", state="8bit")
OF_STATES = [
    FLASH_ADAMW,
    replace(FLASH_ADAMW, name="flashoptim.FlashAdamW, bf16", dtype=BF16),  # 24 bits in all
    peer(
        "bitsandbytes AdamW8bit",
        "bitsandbytes.optim",
        "AdamW8bit",
        state="8bit",
        slow=True,
    ),
    peer(  # 0.18.0
        "torchao AdamW8bit",
        "torchao.optim",
        "AdamW8bit",
        state="8bit",
        slow=True,
        compiles=True,
    ),
]
