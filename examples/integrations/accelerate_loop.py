"""Accelerate: a plain loop that learns handwritten digits with TanhSignAdamW, wherever it is launched.

`prepare` wraps the optimizer; accumulation of gradients, bfloat16 and checkpoints are Accelerate's own.
Clipping is part of the step, so no `accelerator.clip_grad_norm_` reads and writes all gradients before it.

    python examples/integrations/accelerate_loop.py [--output FOLDER] [--resume]
"""

import argparse

import digits
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from friction_kernels import TanhSignAdamW

EPOCHS, BATCH, ACCUMULATED, LR = 8, 32, 2, 3e-3


def train(output: str, resume: bool = False) -> tuple[nn.Module, float]:
    """Train, or go on from the middle of an earlier run; return the model and its test accuracy."""
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=ACCUMULATED)
    set_seed(0)
    data, test = digits.load()
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, drop_last=True)
    model = digits.network()
    opt = TanhSignAdamW(model.parameters(), lr=LR, friction_input="normalized", max_grad_norm=1.0)
    schedule = OneCycleLR(opt, LR, total_steps=EPOCHS * len(loader) // ACCUMULATED)
    model, opt, loader, schedule = accelerator.prepare(model, opt, loader, schedule)
    if resume:
        accelerator.load_state(output)
    for epoch in range(EPOCHS // 2 if resume else 0, EPOCHS):
        if epoch == EPOCHS // 2 and not resume:
            accelerator.save_state(output)
        loader.set_epoch(epoch)
        for images, labels in loader:
            with accelerator.accumulate(model):
                loss = cross_entropy(model(images), labels)
                accelerator.backward(loss)
                opt.step()
                schedule.step()
                opt.zero_grad()
        rate = opt.param_groups[0]["lr"]
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}, next rate {rate:.1e}")
    model = accelerator.unwrap_model(model)
    return model, digits.accuracy(model, test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/accelerate_loop")
    parser.add_argument("--resume", action="store_true", help="from the middle of an earlier run")
    args = parser.parse_args()
    model, accuracy = train(args.output, args.resume)
    print(f"test accuracy {accuracy:.3f}")
