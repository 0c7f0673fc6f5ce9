"""The optimizers of the zoo by name, and their learning rates."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from examples.command_line import TORCH_OPTIMIZERS, InputError, known_optimizer, takes
from examples.zoo.workload import Workload
from friction_kernels import OPTIMIZERS

MOMENTUM = 0.9
# Of the table of all models.
COMPARED = (
    "AdamW",
    "SGD",
    "SigSignAdamW",
    "TanhSignAdamW:normalized",
    "SigSignAdamP",
    "DiffGradW",
)
# What an Adam's rate is multiplied by: sigmoid frictions are about a half where gradients are small.
HALVED = ("SigSign", "DiffGrad")


@dataclass(frozen=True)
class Setting:
    """An optimizer as it stands on the command line: NAME, NAME:normalized or torch.NAME."""

    text: str

    @classmethod
    def parse(cls, text: str) -> "Setting":
        name, colon, form = text.partition(":")
        prefix, dot, rest = name.rpartition("torch.")
        if dot and not prefix:
            if rest not in TORCH_OPTIMIZERS:
                raise InputError(f"torch.optim has no optimizer {rest!r}")
            return cls(text)
        known = known_optimizer(name, TORCH_OPTIMIZERS)
        if colon and (form not in ("product", "normalized") or not takes(known, "friction_input")):
            raise InputError(
                f"{text!r} is no optimizer: only one with friction takes :product or :normalized"
            )
        return cls(known + colon + form)

    @property
    def name(self) -> str:
        return self.text.removeprefix("torch.").partition(":")[0]

    @property
    def is_ours(self) -> bool:
        return not self.text.startswith("torch.") and self.name in OPTIMIZERS

    def rate(self, workload: Workload) -> float:
        if self.name == "SGD":
            return workload.sgd_lr
        if (
            self.name == "RSGDM"
        ):  # SGD with Nesterov momentum, whose rate it multiplies by 1 - momentum
            return workload.sgd_lr / (1 - MOMENTUM)
        return workload.lr * (2 if self.name.startswith(HALVED) else 1)

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, backend: str = "auto"
    ) -> Optimizer:
        options: dict[str, object] = {"lr": lr}
        if self.name in ("SGD", "RSGDM"):
            options["momentum"] = MOMENTUM
        if self.name == "SGD":
            options["nesterov"] = True
        if ":" in self.text:
            options["friction_input"] = self.text.partition(":")[2]
        if self.is_ours:
            options["backend"] = backend
        kind = (OPTIMIZERS if self.is_ours else TORCH_OPTIMIZERS)[self.name]
        try:
            return kind(list(parameters), **options)
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.text} refuses these options ({error})") from error

    def try_out(self) -> None:
        """Take one step, so that an optimizer that needs more than gradients fails early."""
        parameter = nn.Parameter(torch.ones(4, 4))
        parameter.grad = torch.ones_like(parameter)
        optimizer = self.optimizer([parameter], 1e-3)
        try:
            optimizer.step()
        except Exception as error:
            raise InputError(
                f"{self.text} cannot train these models ({error}): choose another --optimizer"
            ) from error
