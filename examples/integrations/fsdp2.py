"""FSDP2: processes that torchrun starts learn handwritten digits together with SigSignAdamW.

Each steps the parts of the parameters that it holds; clipping sums one number over all of them. Checkpoints
are torch.distributed.checkpoint's, which another number of processes may load.

    torchrun --standalone --nproc-per-node 2 examples/integrations/fsdp2.py [--output FOLDER] [--resume]
"""

import argparse

import digits
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

from friction_kernels import SigSignAdamW

EPOCHS, BATCH, LR = 8, 32, 1e-3


def state_of(model: nn.Module, opt: torch.optim.Optimizer) -> dict:
    return dict(zip(("model", "optimizer"), get_state_dict(model, opt), strict=True))


def train(output: str, resume: bool) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
    mesh = init_device_mesh(device, (world,))
    data, test = digits.load()
    sampler = DistributedSampler(data, drop_last=True)
    loader = DataLoader(data, batch_size=BATCH, sampler=sampler, drop_last=True)
    torch.manual_seed(0)  # the same first parameters everywhere
    model = digits.network().to(device)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    opt = SigSignAdamW(model.parameters(), lr=LR, friction_input="normalized", max_grad_norm=1.0)
    if resume:
        state = state_of(model, opt)
        dcp.load(state, checkpoint_id=f"{output}/half")
        model_state, opt_state = state.values()
        set_state_dict(model, opt, model_state_dict=model_state, optim_state_dict=opt_state)
    for epoch in range(EPOCHS // 2 if resume else 0, EPOCHS):
        if epoch == EPOCHS // 2 and not resume:
            dcp.save(state_of(model, opt), checkpoint_id=f"{output}/half")
        sampler.set_epoch(epoch)
        for images, labels in loader:
            loss = cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            opt.step()
            opt.zero_grad()
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}, gradient norm {opt.grad_norm:.2f}")
    dcp.save(state_of(model, opt), checkpoint_id=f"{output}/{'resumed' if resume else 'whole'}")
    accuracy = digits.accuracy(model, test)  # by all processes together
    if rank == 0:
        print(f"test accuracy {accuracy:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/fsdp2")
    parser.add_argument("--resume", action="store_true", help="from the middle of an earlier run")
    args = parser.parse_args()
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    train(args.output, args.resume)
    dist.destroy_process_group()
