"""lora_param_groups: separate learning rates for the two matrices of a low-rank adapter."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

MATRICES = {
    "lora_A": "A",
    "lora_B": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
}  # peft's


def lora_param_groups(
    model: nn.Module, lr: float | Tensor, ratio: float = 16.0, **options: Any
) -> list[dict[str, Any]]:
    """Parameter groups in which the matrices B of LoRA's product B A learn `ratio` times as fast as A.

        opt = AdamW(lora_param_groups(model, lr=1e-4, weight_decay=0.01))

    Matrices are told by peft's names: a part of the parameter's name is "lora_A" or "lora_B", or
    "lora_embedding_A" or "lora_embedding_B" for an embedding.

    Source: arXiv 2402.12354 (LoRA+): B's rate is ratio * lr, with a ratio of about 16. arXiv 2412.18729
    enhances LoRA; only its abstract was read, and that it means separate rates is our reading.

    Args:
        model: a module with adapters. Parameters that require no gradient are left out.
        lr: learning rate of A and of all other parameters; a number or a scalar tensor.
        ratio: B's learning rate divided by lr (default 16.0).
        options: further options of every group, such as weight_decay.

    Returns:
        groups for an optimizer: A's and B's parameters, and the others if there are any.

    Raises:
        ValueError: no parameter that requires a gradient is an adapter's A or B; ratio is not above 0.
    """
    if not 0 < ratio < math.inf:
        raise ValueError(f"ratio must be a finite number above 0, got {ratio}")
    found: dict[str, list[nn.Parameter]] = {"A": [], "B": [], "": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = next((MATRICES[part] for part in name.split(".") if part in MATRICES), "")
            found[kind].append(parameter)
    for kind in "AB":
        if not found[kind]:
            raise ValueError(
                f"the model has no parameter named lora_{kind} that requires a gradient; add adapters, or "
                "give model.parameters() to the optimizer"
            )
    rates = {"A": lr, "B": ratio * lr, "": lr}
    return [
        {"params": parameters, "lr": rates[kind], **options}
        for kind, parameters in found.items()
        if parameters
    ]
