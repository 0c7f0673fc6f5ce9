"""Guidance of a model under FSDP2, beside the same of whole parameters, for test_guidance.py."""

import copy

import torch
import torch.distributed as dist
from sharded_cases import batches, difference, fully_sharded, loss_of, network, whole

from friction_kernels import AdamW, GradientGuidance


def off_from_whole(mode):
    """The largest relative difference of gradients, alignment and penalty after some steps, and whether
    guidance leaves the parameters' bits as they are."""
    twin = network(torch.float64)
    model = fully_sharded(copy.deepcopy(twin))
    found, same_bits = [], []
    mine = batches(0, torch.float64)
    for one, batch in ((model, mine[dist.get_rank()]), (twin, torch.cat(mine))):
        opt = AdamW(one.parameters(), lr=1e-2)
        guidance = GradientGuidance(
            opt, consistency=0.3, magnitude=0.2, threshold=0.01, mode=mode, epsilon=1e-5
        )
        for _ in range(3):
            before = [whole(p.detach()).clone() for p in one.parameters()]
            guidance.backward(lambda one=one, batch=batch: loss_of(one, batch))
            after = [whole(p.detach()) for p in one.parameters()]
            same_bits += map(torch.equal, before, after)
            opt.step()
        grads = [p.grad for p in one.parameters()]
        found.append([*grads, guidance.alignment, guidance.penalty])
    return difference(*found), all(same_bits)
