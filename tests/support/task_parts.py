"""Tasks that share parameters under FSDP2, beside whole gradients, for test_tasks.py."""

import torch
import torch.distributed as dist
from sharded_cases import batches, fully_sharded, loss_of, network

from friction_kernels import lists
from friction_kernels.tasks import MultiTask, weightings


def losses_of(model):
    batch = batches(0, torch.float32)[dist.get_rank()]
    return [
        lambda: loss_of(model, batch),
        lambda: -model(batch).mean(),
        lambda: loss_of(model, -batch),
    ]


def combined(keep):
    """How far the combination and the Gram matrix are from those of gathered gradients."""
    model = fully_sharded(network())
    parameters = list(model.parameters())
    gradients = []
    for loss in losses_of(model):
        loss().backward()
        gradients.append([parameter.grad.full_tensor() for parameter in parameters])
        model.zero_grad()
    tasks = MultiTask(parameters, weightings.pcgrad(), keep=keep)
    for number, loss in enumerate(losses_of(model)):
        with tasks.task(number):
            loss().backward()
    tasks.combine()
    whole = lists.gram(*gradients)
    norms = whole.diagonal().sqrt()
    found = [parameter.grad.full_tensor() for parameter in parameters]
    off = lists.combine([found, lists.combine(gradients, tasks.weights)], [1, -1])
    return (
        (lists.norm(off) / (tasks.weights.abs() * norms).sum()).item(),
        ((tasks.gramian - whole) / (norms[:, None] * norms)).abs().max().item(),
    )
