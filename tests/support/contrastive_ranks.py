"""What each of several processes does with contrastive losses: its rows against those of one process."""

import torch
import torch.distributed as dist
from torch import nn

from friction_kernels import GraphMemory, InfoNCELoss, SupConLoss
from friction_kernels.integrations.sentence_transformers import MultipleNegativesRankingLoss

ROWS, WIDTH = 31, 6


def numbers(seed, rows=ROWS):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)


def mine(count):
    """Uneven batches, in rank order."""
    rank, world = dist.get_rank(), dist.get_world_size()
    bounds = [count * r * (r + 1) // (world * (world + 1)) for r in range(world + 1)]
    return slice(bounds[rank], bounds[rank + 1])


def differences(loss_of, *tensors):
    """Of the losses and of my rows' gradients, where loss_of(gather, *tensors)."""
    whole = [t.clone().requires_grad_() for t in tensors]
    expected = loss_of(False, *whole)
    expected.backward()
    local = [t[mine(len(t))].clone().requires_grad_() for t in tensors]
    loss = loss_of(True, *local)
    loss.backward()
    pairs = zip(local, whole, strict=True)
    gradients = [(one.grad - all_.grad[mine(len(all_))]).abs().max().item() for one, all_ in pairs]
    return max((loss - expected).abs().item(), *gradients)


def supcon():
    labels = torch.arange(ROWS) % 4
    return differences(
        lambda gather, e: SupConLoss(gather=gather)(e, labels[mine(ROWS)] if gather else labels),
        numbers(0),
    )


def infonce():
    return differences(
        lambda gather, *rows: InfoNCELoss(symmetric=True, gather=gather)(*rows),
        *(numbers(0), numbers(1), numbers(2, 17)),
    )


def remembered():
    """The memory's rows, of a loss that gathers and of one that does not."""
    labels, found = torch.arange(ROWS) % 4, []
    for gather in (False, True):
        memory = GraphMemory(20, WIDTH)
        loss_fn = SupConLoss(memory=memory, gather=gather)
        loss_fn(numbers(0)[mine(ROWS)].float(), labels[mine(ROWS)])
        found += [memory.embeddings.tolist(), memory.labels.tolist()]
    return found


def mask_refused():
    rows = numbers(0)[mine(ROWS)]
    mask = torch.ones(len(rows), len(rows), dtype=torch.bool)
    try:
        SupConLoss(gather=True)(rows, torch.zeros(len(rows), dtype=torch.int64), mask)
    except ValueError as error:
        return str(error)


class Model(nn.Module):
    """What a SentenceTransformer is to a loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(WIDTH, 4).double()

    def forward(self, features):
        return {"sentence_embedding": self.layer(features["numbers"])}


def averaged_by_ddp():
    """The largest difference from the gradient of one process; batches are of one size, as the Trainer's."""
    world, rank = dist.get_world_size(), dist.get_rank()
    count = 6
    columns = [numbers(seed, count * world) for seed in range(3)]
    alone = Model()
    MultipleNegativesRankingLoss(alone)([{"numbers": rows} for rows in columns]).backward()
    model = nn.parallel.DistributedDataParallel(Model())
    here = slice(rank * count, (rank + 1) * count)
    features = [{"numbers": rows[here]} for rows in columns]
    MultipleNegativesRankingLoss(model, gather_across_devices=True)(features).backward()
    return (model.module.layer.weight.grad - alone.layer.weight.grad).abs().max().item()
