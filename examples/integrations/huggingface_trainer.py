"""Hugging Face Trainer: a small ConvNeXt learns handwritten digits with SigSignAdamW.

The optimizer is named by `optimizer_cls_and_kwargs`, with its learning rate; schedules, accumulation of
gradients, bfloat16 and checkpoints are the Trainer's own. Clipping is part of the step: `max_grad_norm` of
the optimizer, and 0 in TrainingArguments, which would rewrite every gradient.

    python examples/integrations/huggingface_trainer.py [--output FOLDER] [--resume CHECKPOINT]
"""

import argparse

import digits
import numpy as np
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    Trainer,
    TrainingArguments,
    set_seed,
)

from friction_kernels import SigSignAdamW

MODEL = {
    "num_channels": 1,
    "patch_size": 2,
    "num_stages": 2,
    "hidden_sizes": [32, 64],
    "depths": [2, 2],
    "layer_scale_init_value": 1.0,
    "num_labels": 10,
}
OPTIMIZER = {"lr": 4e-3, "friction_input": "normalized", "max_grad_norm": 1.0}
ARGUMENTS = {
    "num_train_epochs": 4,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 10,
    "weight_decay": 0.05,  # of matrices; the Trainer gives biases and norms none
    "max_grad_norm": 0.0,
    "bf16": True,
    "use_cpu": not torch.cuda.is_available(),
    "save_strategy": "epoch",
    "report_to": "none",
    "disable_tqdm": True,
}


def accuracy(found) -> dict[str, float]:
    return {"accuracy": float(np.mean(found.predictions.argmax(axis=1) == found.label_ids))}


def make_trainer(output: str, optimizer: dict = OPTIMIZER, **arguments) -> Trainer:
    """optimizer: the optimizer's options; arguments: TrainingArguments in place of those above."""
    set_seed(0)  # of the model's first parameters
    train, test = (
        [{"pixel_values": image, "labels": label} for image, label in data]
        for data in digits.load()
    )
    return Trainer(
        ConvNextForImageClassification(ConvNextConfig(**MODEL)),
        TrainingArguments(output, **{**ARGUMENTS, **arguments}),
        train_dataset=train,
        eval_dataset=test,
        optimizer_cls_and_kwargs=(SigSignAdamW, optimizer),
        compute_metrics=accuracy,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/huggingface_trainer")
    parser.add_argument("--resume", help="a checkpoint's folder, such as OUTPUT/checkpoint-86")
    args = parser.parse_args()
    trainer = make_trainer(args.output)
    trainer.train(resume_from_checkpoint=args.resume)
    print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.3f}")
