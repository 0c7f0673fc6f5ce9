"""A training loop as timm's train.py has it: RSGDM on handwritten digits.

Biases and norms without weight decay, a rate that warms up and falls by a cosine, set at every update and
not once an epoch, gradients clipped, and an average of the parameters that is what is tested in the end.
timm itself is not needed. docs/integrations.md says how its own scripts take these optimizers by name.

    python examples/integrations/timm_style.py
"""

import math

import digits
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from friction_kernels import RSGDM

EPOCHS, WARMUP, LR, WEIGHT_DECAY, CLIP, EMA = 15, 20, 0.5, 1e-3, 1.0, 0.98


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Vectors and scalars, which biases and norms are, apart from what decays."""
    params = [param for param in model.parameters() if param.requires_grad]
    return [
        {"params": [p for p in params if p.ndim <= 1], "weight_decay": 0.0},
        {"params": [p for p in params if p.ndim > 1], "weight_decay": weight_decay},
    ]


def rate_at(update: int, updates: int) -> float:
    """The rate's factor: from 0 to 1 in WARMUP updates, and by a cosine to 0."""
    if update < WARMUP:
        return update / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (update - WARMUP) / (updates - WARMUP)))


def train() -> tuple[nn.Module, float]:
    """The averaged model and its accuracy on the test images."""
    torch.manual_seed(0)
    data, test = digits.load()
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    model = digits.network()
    groups = parameter_groups(model, WEIGHT_DECAY)
    opt = RSGDM(groups, lr=LR, decoupled_weight_decay=True, max_grad_norm=CLIP)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA))
    update, updates = 0, EPOCHS * len(loader)
    for epoch in range(EPOCHS):
        for images, labels in loader:
            for group in opt.param_groups:
                group["lr"] = LR * rate_at(update, updates)
            loss = cross_entropy(model(images), labels, label_smoothing=0.1)
            opt.zero_grad()
            loss.backward()
            opt.step()
            average.update_parameters(model)
            update += 1
        print(f"epoch {epoch}: loss {loss.item():.3f}, gradient norm {opt.grad_norm.item():.2f}")
    return average.module, digits.accuracy(average, test)


if __name__ == "__main__":
    print(f"test accuracy {train()[1]:.3f}")
