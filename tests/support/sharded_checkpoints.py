"""What test_sharded_checkpoints.py has every process do: train, save, load and go on."""

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from optimizer_cases import noise
from sharded_cases import fully_sharded, spread, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from friction_kernels import OPTIMIZERS

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_FIRST = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def make(optimizer, options, dtype):
    """A model whose parts are uneven, empty, and for 8-bit states of several blocks; sharded if it can be."""
    torch.manual_seed(0)
    layers = nn.Linear(256, 10), nn.Tanh(), nn.Linear(10, 3), nn.Tanh(), nn.Linear(3, 300)
    model = nn.Sequential(*layers).to(dtype)
    if dist.is_initialized():
        model = fully_sharded(model)
    return model, OPTIMIZERS[optimizer](model.parameters(), 0.01, **options)


def train(model, opt, steps):
    for step in steps:
        for index, param in enumerate(model.parameters()):
            grad = noise(param.shape, 100 * step + index, param.dtype)
            param.grad = spread(grad, "rows") if dist.is_initialized() else grad
        opt.step()


def numbers(model, opt):
    """All that training has made, gathered."""
    states = opt.state_dict()["state"]
    found = {f"parameter {i}": whole(p.detach()) for i, p in enumerate(model.parameters())}
    for index, state in states.items():
        found |= {f"{key} {index}": whole(value) for key, value in state.items()}
    return found


def copied_numbers(model, opt):
    return {key: value.clone() for key, value in numbers(model, opt).items()}


def state_of(model, opt):
    return {"model": get_model_state_dict(model), "opt": get_optimizer_state_dict(model, opt)}


def save(folder, optimizer, options, dtype):
    """Three steps, a checkpoint, and two more; what both made."""
    model, opt = make(optimizer, options, dtype)
    train(model, opt, range(3))
    middle = copied_numbers(model, opt)
    dcp.save(state_of(model, opt), checkpoint_id=folder)
    train(model, opt, range(3, 5))
    return middle, numbers(model, opt)


def load(folder, optimizer, options, dtype):
    """A new run that goes on from the checkpoint; what it loaded, and what it made of that."""
    model, opt = make(optimizer, options, dtype)
    state = state_of(model, opt)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, opt, state["opt"])
    loaded = copied_numbers(model, opt)
    train(model, opt, range(3, 5))
    return loaded, numbers(model, opt)


def through_full_states(optimizer, options, dtype, from_first):
    """The same by whole state dicts, which the first process alone has, or every one."""
    model, opt = make(optimizer, options, dtype)
    train(model, opt, range(3))
    values = get_model_state_dict(model, options=FULL)
    state = get_optimizer_state_dict(model, opt, options=FULL)
    if dist.get_rank() > 0:
        assert not state  # torch gathers on the first process
    if not from_first:
        shared = [(values, state)]
        dist.broadcast_object_list(shared)
        values, state = shared[0]
    how = FROM_FIRST if from_first else StateDictOptions(full_state_dict=True)
    model, opt = make(optimizer, options, dtype)
    set_model_state_dict(model, values, options=how)
    set_optimizer_state_dict(model, opt, state, options=how)
    train(model, opt, range(3, 5))
    return numbers(model, opt)


def started_by_torch(optimizer, options):
    """Whether get_optimizer_state_dict changes a new run's parameters."""
    model, opt = make(optimizer, options, torch.bfloat16)
    before = [whole(p.detach()).clone() for p in model.parameters()]
    get_optimizer_state_dict(model, opt)
    assert len(opt.state) == len(before)
    after = [whole(p.detach()) for p in model.parameters()]
    return not all(map(torch.equal, before, after))
