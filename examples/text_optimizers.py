"""The optimizers of `finetune_text.py`: those of friction_kernels by name, and torch's of other names."""

from collections.abc import Iterable

import torch
from command_line import TORCH_OPTIMIZERS as EVERY_OPTIMIZER
from command_line import InputError, takes
from torch import nn
from torch.optim import Optimizer

from friction_kernels import OPTIMIZERS

TORCH_OPTIMIZERS = {
    name: member
    for name, member in EVERY_OPTIMIZER.items()
    if name != "SparseAdam"  # which refuses gradients that are not sparse
}
MOMENTUM = 0.9
# Learning rates of a new head or classifier, of a pretrained encoder, and of a classifier that learns
# beside a loss: it overfits nothing, and has to keep up. An RSGDM is an SGD with Nesterov momentum
# whose learning rate is (1 - momentum) times its own.
NEW, PRETRAINED, BESIDE = 1e-3, 5e-5, 1e-2
SHAPES = ((4,), (4, 4))  # of what is trained, but for a sigma
SGD_FACTORS = {"SGD": 100, "RSGDM": 100 / (1 - MOMENTUM)}


def try_out(name: str, lr: float | None, friction_input: str, trains_sigma: bool) -> None:
    """Take one step, so that an optimizer that cannot train these models fails early."""
    shapes = [*SHAPES, ()] if trains_sigma else SHAPES
    parameters = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make_optimizer(name, [(NEW, parameters)], lr, friction_input)
    try:
        optimizer.step()
    except Exception as error:
        raise InputError(
            f"{name} cannot train these models ({error}): choose another --optimizer"
        ) from error


def make_optimizer(
    name: str,
    parts: list[tuple[float, Iterable[nn.Parameter]]],
    lr: float | None,
    friction_input: str,
) -> Optimizer:
    """parts: parameters with a rate of those above; `lr` replaces the first part's."""
    factor = SGD_FACTORS.get(name, 1)
    groups = [{"params": list(own), "lr": factor * rate} for rate, own in parts]
    if lr is not None:
        groups[0]["lr"] = lr
    groups = [group for group in groups if group["params"]]
    options = {}
    if name in SGD_FACTORS:
        options["momentum"] = MOMENTUM
    elif takes(name, "friction_input"):
        options["friction_input"] = friction_input
    if name == "SGD":
        options["nesterov"] = True
    try:
        return (OPTIMIZERS.get(name) or TORCH_OPTIMIZERS[name])(groups, **options)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} refuses these options ({error}): choose others or another --optimizer"
        ) from error
