"""Parameters that are spread and no DTensors, beside their twins in one process, for test_sharding_parts.py.

Every process calls these functions. FSDP1 averages gradients over processes, as does a twin's loss of all.
"""

import copy
import functools
import pickle
import warnings

import torch
import torch.distributed as dist
from optimizer_cases import noise
from sharded_cases import batches, compiled_step, loss_of, mesh, network
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy
from torch.distributed.optim import ZeroRedundancyOptimizer

from friction_kernels import OPTIMIZERS, clip_grad_norm_, release_gradients

DTYPE = torch.float64
KINDS = {
    "flat": ("FULL_SHARD", False),
    "originals": ("FULL_SHARD", True),
    "gradients only": ("SHARD_GRAD_OP", True),
    "not spread": ("NO_SHARD", True),
    "not spread, flat": ("NO_SHARD", False),
    "hybrid": ("HYBRID_SHARD", True),
}


def flattened(model, kind):
    """By FSDP1, the first and the last layer on their own; of one bias some processes have nothing."""
    strategy, keeps_originals = KINDS[kind]
    options = {
        "sharding_strategy": ShardingStrategy[strategy],
        "use_orig_params": keeps_originals,
        "device_id": torch.device("cpu"),
    }
    if strategy == "HYBRID_SHARD":
        options["device_mesh"] = mesh(dist.get_world_size() // 2, 2)
    with warnings.catch_warnings(action="ignore"):  # FSDP1 is deprecated, and NO_SHARD as well
        for index in (0, len(model) - 1):
            model[index] = FullyShardedDataParallel(model[index], **options)
        return FullyShardedDataParallel(model, **options)


def wholes(model):
    """The model's parameters in one piece, in order."""
    with (
        warnings.catch_warnings(action="ignore"),
        FullyShardedDataParallel.summon_full_params(model),
    ):
        return [param.detach().clone() for param in model.parameters()]


def furthest(ours, theirs):
    """The largest difference of parameters, as one vector: FSDP1 may have them in one."""
    a, b = (torch.cat([tensor.detach().flatten() for tensor in each]) for each in (ours, theirs))
    return (a[a != 0] - b[b != 0]).abs().max().item()  # flat parameters end with padding


def trained(optimizer, options, kind):
    """How far parameters and norms are from those of a run in one process."""
    model, twin = flattened(network(DTYPE), kind), network(DTYPE)
    opt, twin_opt = (OPTIMIZERS[optimizer](m.parameters(), **options) for m in (model, twin))
    norms = []
    for step in range(3):
        parts = batches(step, DTYPE)
        loss_of(model, parts[dist.get_rank()]).backward()
        loss_of(twin, torch.cat(parts)).backward()
        for each in (opt, twin_opt):
            each.step()
            each.zero_grad()
        norms.append(abs(opt.grad_norm / twin_opt.grad_norm - 1).item())
    return furthest(wholes(model), twin.parameters()), max(norms)


def skipped(kind, by):
    """Whether a step by a gradient that is infinite in one element changes anything."""
    model = flattened(network(DTYPE), kind)
    opt = OPTIMIZERS["RSGDM"](model.parameters(), skip_nonfinite=by == "skip_nonfinite")
    before = wholes(model)
    loss_of(model, batches(0, DTYPE)[dist.get_rank()]).backward()
    owner = dist.get_rank() == dist.get_world_size() - 1 or kind.startswith("not spread")
    grads = [p.grad for p in model.parameters() if p.grad is not None and p.grad.numel()]
    if owner and by == "skip_nonfinite":
        grads[0].view(-1)[0] = torch.inf
    if by == "scaler":  # as a GradScaler leaves it, on one process
        opt.grad_scale, opt.found_inf = torch.tensor(1.0), torch.tensor(float(owner))
    opt.step()
    return furthest(wholes(model), before)


def clipped(kind, norm_type):
    model, twin = flattened(network(DTYPE), kind), network(DTYPE)
    parts = batches(0, DTYPE)
    loss_of(model, parts[dist.get_rank()]).backward()
    loss_of(twin, torch.cat(parts)).backward()
    norm = clip_grad_norm_(model.parameters(), 0.01, norm_type)
    expected = nn.utils.clip_grad_norm_(twin.parameters(), 0.01, norm_type)
    after = clip_grad_norm_(model.parameters(), 1.0, norm_type)
    return abs(norm / expected - 1).item(), after.item()


def refusal(function):
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)
    return None, ""


def adamp(kind):
    """What AdamP says of FSDP1's parameters when it is made, and when they become such later."""
    make = OPTIMIZERS["SigSignAdamP"]
    model = flattened(network(DTYPE), kind)
    early = refusal(lambda: make(model.parameters()))
    model = network(DTYPE)
    opt = make(model.parameters(), max_grad_norm=1.0)
    if not KINDS[kind][1]:
        return early, early
    model = flattened(model, kind)
    loss_of(model, batches(0, DTYPE)[dist.get_rank()]).backward()
    return early, refusal(opt.step)


def adamp_of_vectors():
    model = flattened(nn.Sequential(nn.LayerNorm(6), nn.LayerNorm(6)), "flat")
    opt = OPTIMIZERS["SigSignAdamP"](model.parameters())
    model(torch.arange(6.0)).square().sum().backward()
    return refusal(opt.step)


def released(kind):
    model = flattened(network(DTYPE), kind)
    opt = OPTIMIZERS["RSGDM"](model.parameters())
    return refusal(lambda: release_gradients(model, opt))


class Linear(nn.Module):
    """A loss whose gradients are constants, the same on each process."""

    def __init__(self):
        super().__init__()
        values = [noise(shape, i, torch.bfloat16) for i, shape in enumerate([(26, 6), (3,), (30,)])]
        self.params = nn.ParameterList([nn.Parameter(value) for value in values])

    def forward(self, step):
        return sum(
            (param * noise(param.shape, 100 * (step + 1) + i, param.dtype)).sum()
            for i, param in enumerate(self.params)
        )


def rounded(kind):
    """Whether stochastic rounding gives the bits of one process."""
    strategy, keeps_originals = KINDS[kind]
    twin = Linear()
    with warnings.catch_warnings(action="ignore"):
        model = FullyShardedDataParallel(
            Linear(),
            sharding_strategy=ShardingStrategy[strategy],
            use_orig_params=keeps_originals,
            device_id=torch.device("cpu"),
        )
    options = {"rounding": "stochastic", "seed": 3}
    opt, twin_opt = (OPTIMIZERS["RSGDM"](m.parameters(), **options) for m in (model, twin))
    for step in range(3):
        for each, its_opt in ((model, opt), (twin, twin_opt)):
            each(step).backward()
            its_opt.step()
            its_opt.zero_grad()
    return all(map(torch.equal, wholes(model), twin.parameters()))


def through_a_checkpoint(options):
    """A run that goes on from what FSDP1 saved of the whole, beside one that never stopped."""
    runs = []
    for _ in range(2):
        model = flattened(network(torch.bfloat16), "flat")
        runs.append((model, OPTIMIZERS["SigSignAdamW"](model.parameters(), **options)))

    def train(run, steps):
        model, opt = run
        for step in steps:
            loss_of(model, batches(step, torch.bfloat16)[dist.get_rank()]).backward()
            opt.step()
            opt.zero_grad()

    first, second = runs
    train(first, range(2))
    with warnings.catch_warnings(action="ignore"):
        state = FullyShardedDataParallel.optim_state_dict(*first)
        second[0].load_state_dict(first[0].state_dict())
        state = FullyShardedDataParallel.optim_state_dict_to_load(*second, state)
    second[1].load_state_dict(state)
    for run in runs:
        train(run, [2])
    return furthest(*(wholes(model) for model, _ in runs)), len(second[1].state)


def zero(optimizer, options):
    """ZeroRedundancyOptimizer, of fewer parameters than four processes: some have none."""
    shapes = [(26, 6), (9, 4, 2), (3,)]
    values = [noise(shape, index, DTYPE) for index, shape in enumerate(shapes)]
    params, twins = ([nn.Parameter(value.clone()) for value in values] for _ in range(2))
    make = functools.partial(OPTIMIZERS[optimizer], process_group=dist.group.WORLD, **options)
    opt, twin = ZeroRedundancyOptimizer(params, make), OPTIMIZERS[optimizer](twins, **options)
    errors = []
    for step in range(3):
        for index, (param, one) in enumerate(zip(params, twins, strict=True)):
            one.grad = noise(one.shape, 100 * (step + 1) + index, DTYPE)
            param.grad = one.grad.clone()
        opt.step()
        twin.step()
        errors.append(abs(opt.optim.grad_norm / twin.grad_norm - 1).item())
    opt.consolidate_state_dict(0)
    if dist.get_rank() == 0:
        saved = pickle.loads(pickle.dumps(opt.state_dict()))
        assert len(saved["state"]) == len(params)
        opt.load_state_dict(saved)
    return furthest(params, twins), max(errors), len(opt.optim.state)


def own_parts(compiles=False, infinite=False, copied=False):
    """Rows that a user spread: each process has others, and the last one none."""
    count = dist.get_world_size()
    whole = noise((4, 5), 0, DTYPE)
    rank = dist.get_rank()
    rows = [
        row for index, row in enumerate(whole) if rank < count - 1 and index % (count - 1) == rank
    ]
    param, twin = (
        nn.Parameter(torch.cat([whole[:0], *[r[None] for r in rows]])),
        nn.Parameter(whole),
    )
    options = {"max_grad_norm": 0.5, "skip_nonfinite": True}
    opt = OPTIMIZERS["SigSignAdamW"](
        [param] if rows else [{"params": []}], **options, process_group=dist.group.WORLD
    )
    twin_opt = OPTIMIZERS["SigSignAdamW"]([twin], **options)
    if copied:
        opt, param = copy.deepcopy((opt, param))
        saved = opt.state_dict()
        assert saved["param_groups"][0]["process_group"] is None
        opt.load_state_dict(pickle.loads(pickle.dumps(saved)))
        opt = pickle.loads(pickle.dumps(opt))
        param = opt.param_groups[0]["params"][0] if rows else param
    grad = noise(whole.shape, 1, DTYPE)
    if infinite:
        grad[0, 0] = torch.inf
    mine = [row[None] for index, row in enumerate(grad) if index % (count - 1) == rank]
    param.grad, twin.grad = torch.cat([grad[:0], *(mine if rows else [])]), grad
    step = compiled_step(opt) if compiles else opt.step
    step()
    twin_opt.step()
    expected = [row[None] for index, row in enumerate(twin) if index % (count - 1) == rank]
    change = (param - torch.cat(expected)).abs().max().item() if rows else 0.0
    return change, opt.grad_norm.item(), twin_opt.grad_norm.item()


def group_of_others():
    """A process group that the last process is not in."""
    group = dist.new_group(range(dist.get_world_size() - 1))
    make = OPTIMIZERS["RSGDM"]
    found = refusal_of_type(lambda: make([nn.Parameter(torch.ones(3))], process_group=group))
    unknown = refusal(lambda: make([nn.Parameter(torch.ones(3))], process_group="no such group"))
    return found, unknown


def refusal_of_type(function):
    try:
        function()
    except TypeError as error:
        return str(error)
    return ""
