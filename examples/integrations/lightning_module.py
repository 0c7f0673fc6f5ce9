"""Lightning: a module that learns handwritten digits with SigSignAdamP under a schedule.

`configure_optimizers` returns the optimizer as it would one of torch's: Lightning's automatic optimization
hands its closure to `step()`, and its checkpoints hold the state. Clipping is part of the step; the
Trainer's own `gradient_clip_val` works as well, with one more pass that writes all gradients.

    python examples/integrations/lightning_module.py [--output FOLDER] [--resume CHECKPOINT]
"""

import argparse

import digits
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

from friction_kernels import SigSignAdamP


class Classifier(lightning.LightningModule):
    def __init__(self, max_grad_norm: float | None = 1.0):
        super().__init__()
        self.save_hyperparameters()
        self.network = digits.network()

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch):
        images, labels = batch
        loss = cross_entropy(self(images), labels)
        self.log("loss", loss)
        return loss

    def train_dataloader(self):
        train, _ = digits.load()
        # It orders an epoch by its number, also in a run that is resumed: Lightning saves no random state.
        sampler = DistributedSampler(train, self.trainer.world_size, self.trainer.global_rank)
        return DataLoader(train, batch_size=32, sampler=sampler)

    def configure_optimizers(self):
        options = {"friction_input": "normalized", "max_grad_norm": self.hparams.max_grad_norm}
        opt = SigSignAdamP(self.parameters(), lr=3e-3, **options)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(opt, 3e-3, total_steps=steps)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    output: str, resume: str | None = None, max_grad_norm: float | None = 1.0, **options
) -> tuple[Classifier, lightning.Trainer]:
    """options: of Lightning's Trainer, in place of those below."""
    lightning.seed_everything(0)
    defaults = {
        "max_epochs": 8,
        "precision": "bf16-mixed",
        "accumulate_grad_batches": 2,
        "logger": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "callbacks": [ModelCheckpoint(output, filename="{epoch}", save_top_k=-1)],
    }
    trainer = lightning.Trainer(default_root_dir=output, **{**defaults, **options})
    module = Classifier(max_grad_norm)
    trainer.fit(module, ckpt_path=resume)
    return module, trainer


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/lightning_module")
    parser.add_argument("--resume", help="a checkpoint's file, such as OUTPUT/epoch=3.ckpt")
    args = parser.parse_args()
    module, _ = fit(args.output, args.resume)
    _, test = digits.load()
    print(f"test accuracy {digits.accuracy(module, test):.3f}")
