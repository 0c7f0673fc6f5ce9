"""Other packages' optimizers, as data. Each is measured where it can be imported, and named where not.

Their classes were looked up in adamp 0.3.0, pytorch_optimizer 4.1.0, torch-optimi 0.3.3, bitsandbytes 0.50,
flashoptim 0.1.4 and torchao 0.18.0.
"""

import importlib
from dataclasses import replace

import torch
from torch import Tensor

from bench.contenders import ADAMW_FOR_LOOP, Contender

ADAMP = "adamp.AdamP"
BF16 = torch.bfloat16


def peer(name: str, path: str, options: dict | None = None, **fields) -> Contender:
    module, _, cls = path.rpartition(".")
    options = {"lr": 1e-3, "weight_decay": 1e-2, **(options or {})}

    def build(params: list[Tensor]) -> object:
        return getattr(importlib.import_module(module), cls)(params, **options)

    return Contender(name, build, needs=module.partition(".")[0], **fields)


def import_failure(module: str | None) -> str | None:
    """The import's own words; some packages look for a card while they load, and fail in their own way."""
    try:
        if module is not None:
            importlib.import_module(module)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


OF_TORCH = {"betas": (0.9, 0.999), "eps": 1e-8}
LIKE_ADAMW = {"plain": ADAMW_FOR_LOOP}
OF_OPTIMIZERS = [
    # AdamP compares parameters with gradients before it updates.
    peer(ADAMP, "adamp.AdamP", reads="gpg", slow=True),
    peer("pytorch_optimizer.AdamP", "pytorch_optimizer.AdamP", reads="gpg", slow=True),
    # Friction by |g_{t-1} - g_t| (arXiv 1909.11015), and so the lists of friction Adam.
    peer("pytorch_optimizer.DiffGrad", "pytorch_optimizer.DiffGrad", slow=True, at_once=2),
    peer("optimi.AdamW", "optimi.AdamW", OF_TORCH, slow=True, **LIKE_ADAMW),
    peer("optimi.AdamW triton", "optimi.AdamW", {**OF_TORCH, "triton": True}, **LIKE_ADAMW),
    peer("bitsandbytes.AdamW", "bitsandbytes.optim.AdamW", slow=True, **LIKE_ADAMW),
    peer(
        "flashoptim.FlashAdamW uncompressed",
        "flashoptim.FlashAdamW",
        {"quantize": False, "master_weight_bits": None, "fused": False},
        slow=True,
        **LIKE_ADAMW,
    ),
]
FLASH_ADAMW = peer("flashoptim.FlashAdamW", "flashoptim.FlashAdamW", **LIKE_ADAMW)
OF_STATES = [
    FLASH_ADAMW,
    replace(FLASH_ADAMW, name="flashoptim.FlashAdamW, bf16", dtype=BF16),  # 24 bits in all
    peer("bitsandbytes AdamW8bit", "bitsandbytes.optim.AdamW8bit", slow=True, **LIKE_ADAMW),
    peer("torchao AdamW8bit", "torchao.optim.AdamW8bit", slow=True, compiles=True, **LIKE_ADAMW),
]
