"""Sharded runs beside their twins in one process, for test_sharding.py.

Every process calls them. They return the largest difference of all values, relative to the largest value
of each tensor; 0 means the same bits.
"""

from collections import Counter
from functools import cache

import torch
import torch.distributed as dist
from optimizer_cases import noise
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils._python_dispatch import TorchDispatchMode

from friction_kernels import OPTIMIZERS, clip_grad_norm_, direction_stats, lists, release_gradients

SHAPES = [(26, 6), (9, 4, 2), (3,), (30,)]  # on four processes: uneven, and empty on the last


@cache
def mesh(*sizes):
    return init_device_mesh("cpu", sizes, mesh_dim_names=("outer", "inner")[: len(sizes)])


def world():
    return mesh(dist.get_world_size())


def network(dtype=torch.float32):
    """Its sizes are no multiples of the processes', and its last layer is smaller than four of them."""
    torch.manual_seed(0)
    layers = nn.Linear(12, 26), nn.Tanh(), nn.Linear(26, 9), nn.Tanh(), nn.Linear(9, 3)
    return nn.Sequential(*layers).to(dtype)


def fully_sharded(model, over=None):
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=over or world())
    return fully_shard(model, mesh=over or world())


def loss_of(model, batch):
    return model(batch).square().mean()


def batches(step, dtype):
    """A part of the batch for each process."""
    return noise((8, 12), 1000 + step, dtype).chunk(dist.get_world_size())


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def difference(ours, twins):
    worst = 0.0
    for ours_, twin in zip(ours, twins, strict=True):
        a, b = whole(ours_.detach()), twin.detach()
        if b.dtype == torch.int16:
            a = a.short()  # residuals leave in 32 bits where they are spread
        assert a.dtype == b.dtype and a.shape == b.shape
        if not torch.equal(a, b):
            worst = max(worst, ((a - b).abs().max() / b.abs().max()).item())
    return worst


def difference_of_runs(opt, twin):
    """Of all parameters, states and norms."""
    states = [o.state_dict()["state"] for o in (opt, twin)]
    values = [
        [p for group in o.param_groups for p in group["params"]]
        + [v for _, s in sorted(state.items()) for _, v in sorted(s.items())]
        + ([] if o.grad_norm is None else [o.grad_norm])
        for o, state in zip((opt, twin), states, strict=True)
    ]
    assert len(values[0]) > len(SHAPES)
    return difference(*values)


def compiled_step(opt):
    torch._dynamo.reset()
    return torch.compile(lambda: opt.step(), fullgraph=True, backend="aot_eager")


def trained(optimizer, options, dtype=torch.float32, compiles=False):
    """Train with FSDP2; the twin is given the gathered gradients."""
    model, twin = fully_sharded(network(dtype)), network(dtype)
    opt, twin_opt = (OPTIMIZERS[optimizer](m.parameters(), **options) for m in (model, twin))
    step_of_opt = compiled_step(opt) if compiles else opt.step
    for step in range(4):
        loss_of(model, batches(step, dtype)[dist.get_rank()]).backward()
        for param, one in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = param.grad.full_tensor()
        step_of_opt()
        twin_opt.step()
        opt.zero_grad()
    return difference_of_runs(opt, twin_opt)


def trained_by_each(optimizer, options, parallel="fsdp"):
    """Train in float64; the twin computes its own gradients, of the whole batch."""
    dtype = torch.float64
    model, twin = network(dtype), network(dtype)
    start = [p.detach().clone() for p in twin.parameters()]
    if parallel == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        over = mesh(dist.get_world_size() // 2, 2) if parallel == "hsdp" else world()
        model = fully_sharded(model, over)
    opt, twin_opt = (OPTIMIZERS[optimizer](m.parameters(), **options) for m in (model, twin))
    for step in range(4):
        parts = batches(step, dtype)
        loss_of(model, parts[dist.get_rank()]).backward()
        loss_of(twin, torch.cat(parts)).backward()
        for each in (opt, twin_opt):
            each.step()
            each.zero_grad()
    assert difference(twin.parameters(), start) > 1e-3
    return difference_of_runs(opt, twin_opt)


def layouts():
    """Ways to spread parameters: for each parameter's shape its mesh and placements."""
    half = dist.get_world_size() // 2

    def last(shape):
        return Shard(len(shape) - 1)

    def middle(shape):
        return Shard(1) if len(shape) > 1 else Replicate()

    return {
        "rows": lambda shape: (world(), [Shard(0)]),
        "columns": lambda shape: (world(), [last(shape)]),
        "rows and columns": lambda shape: (mesh(half, 2), [Shard(0), middle(shape)]),
        "columns and rows": lambda shape: (mesh(2, half), [middle(shape), Shard(0)]),
        "rows twice": lambda shape: (mesh(2, half), [Shard(0), Shard(0)]),
        "replicated": lambda shape: (mesh(half, 2), [Replicate(), Shard(0)]),
        "everywhere": lambda shape: (world(), [Replicate()]),
        "two meshes": lambda shape: (
            (world(), [Shard(0)]) if len(shape) == 1 else (mesh(half, 2), [Replicate(), Shard(0)])
        ),
        "first everywhere": lambda shape: (
            world(),
            [Replicate() if shape == SHAPES[0] else Shard(0)],
        ),
        "some plain": lambda shape: (world(), [Shard(0)]) if len(shape) > 1 else (None, None),
    }


def spread(tensor, layout):
    over, placements = layouts()[layout](tensor.shape)
    if over is None:
        return tensor.clone()
    return distribute_tensor(tensor, over, placements, src_data_rank=None)


def make(optimizer, options, dtype=torch.float32, layout="rows", shapes=SHAPES):
    """Parameters and an optimizer, and their twins; a layout may be one that torch gives."""
    values = [noise(shape, index, dtype) for index, shape in enumerate(shapes)]
    params = [nn.Parameter(spread(value, layout)) for value in values]
    twins = [nn.Parameter(value.clone()) for value in values]
    opt, twin = (OPTIMIZERS[optimizer](ps, **options) for ps in (params, twins))
    return opt, params, twin, twins


def give_gradients(params, twins, step, layout, factor=1.0):
    for index, (param, one) in enumerate(zip(params, twins, strict=True)):
        one.grad = noise(one.shape, 100 * (step + 1) + index, one.dtype) * factor
        param.grad = spread(one.grad, layout)


def stepped(optimizer, options, compiles=False, **kinds):
    """Steps by hand-made gradients; kinds: dtype, layout, shapes."""
    opt, params, twin, twins = make(optimizer, options, **kinds)
    step_of_opt = compiled_step(opt) if compiles else opt.step
    for step in range(4):
        give_gradients(params, twins, step, kinds.get("layout", "rows"))
        step_of_opt()
        twin.step()
    return difference_of_runs(opt, twin)


def every_layout(optimizer, options, **kinds):
    return {name: stepped(optimizer, options, layout=name, **kinds) for name in layouts()}


def clipped_outside(layout, norm_type):
    """clip_grad_norm_ of parameters that torch's own may not take together; and whether it scaled at all."""
    _, params, _, twins = make("SigSignAdamW", {}, layout=layout)
    give_gradients(params, twins, 0, layout)
    before = [one.grad.clone() for one in twins]
    grads = [param.grad for param in params if param.grad is not None]
    of_list = lists.norm(grads) if norm_type == 2 else None
    norm = clip_grad_norm_(params, 0.5, norm_type)
    expected = nn.utils.clip_grad_norm_(twins, 0.5, norm_type)
    if of_list is not None:
        torch.testing.assert_close(of_list, expected.to(of_list.dtype))
    grads = [[param.grad for param in each] for each in (params, twins)]
    return difference([norm, *grads[0]], [expected, *grads[1]]), difference(before, grads[1]) > 0


def products_and_sums(layout):
    """Gram matrices and combinations of lists of DTensors; the largest difference of the latter."""
    _, params, _, twins = make("SigSignAdamW", {}, layout=layout, dtype=torch.float64)
    mine, whole = [], []
    for step in range(3):
        give_gradients(params, twins, step, layout)
        mine.append([param.grad for param in params])
        whole.append([one.grad for one in twins])
    for by in (None, "tensor", ["a", "b", "a", "c"]):
        torch.testing.assert_close(
            lists.gram(*mine, by=by), lists.gram(*whole, by=by), rtol=1e-12, atol=1e-12
        )
    norms = lists.norm(mine[0], by="tensor")
    torch.testing.assert_close(norms, lists.norm(whole[0], by="tensor"))
    weights = lists.gram(*mine)[0]
    expected = lists.combine(whole, weights)
    new = lists.combine(mine, weights)
    in_place = lists.combine(mine, weights, out=mine[1])
    assert in_place[0] is mine[1][0]
    return max(difference(new, expected), difference(in_place, expected))


def sums_over_processes():
    """What is found of gradients that only their parameters, or a process group, know to be parts."""
    group, parts = dist.group.WORLD, []
    whole = [noise((4 * dist.get_world_size(), 3), i, torch.float64) for i in range(2)]
    for value in whole:
        parts.append(nn.Parameter(value.chunk(dist.get_world_size())[dist.get_rank()].clone()))
    opt = OPTIMIZERS["SigSignAdamW"](parts, process_group=group)
    for part in parts:
        part.grad = part.detach().clone()
    exact = torch.cat([value.flatten() for value in whole]).norm()
    found = [direction_stats(opt).grad_norm.squeeze(), lists.norm(parts, process_group=group)]
    partial = DTensor.from_local(whole[0], world(), [Partial()])
    try:
        lists.norm([partial])
    except ValueError as error:
        assert "a sum that has not been taken" in str(error)
    else:
        raise AssertionError("a partial sum was taken for a whole")
    rows = [distribute_tensor(value, world(), [Shard(0)]).requires_grad_() for value in whole]
    weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
    [total] = lists.combine([[rows[0]], [rows[1]]], weights)
    total.full_tensor().square().sum().backward()
    both = whole[0] + whole[1]
    torch.testing.assert_close(rows[0].grad.full_tensor(), 2 * both)
    torch.testing.assert_close(weights.grad, torch.stack([(2 * both * w).sum() for w in whole]))
    return difference(found, [exact, exact])


def transposed(optimizer, options, dim):
    """A matrix in column-major memory, cut along either dimension, in bfloat16."""
    value = noise((12, 26), 0, torch.bfloat16).t()
    cut = {"device_mesh": world(), "placements": [Shard(dim)], "src_data_rank": None}
    param, one = nn.Parameter(distribute_tensor(value, **cut)), nn.Parameter(value.clone())
    assert one.stride() == (1, 26)
    opt, twin = (OPTIMIZERS[optimizer]([p], **options) for p in (param, one))
    for step in range(3):
        one.grad = noise(one.shape, step + 1, one.dtype)
        param.grad = distribute_tensor(one.grad, **cut)
        opt.step()
        twin.step()
    return difference([param], [one])


def projected(delta, layout):
    """AdamP on a matrix, and which kinds of projection its steps had."""
    shapes, options = [(26, 6)], {"delta": delta, "lr": 0.01}
    opt, params, twin, twins = make("SigSignAdamP", options, layout=layout, shapes=shapes)
    kinds = set()
    for step in range(4):
        give_gradients(params, twins, step, layout)
        [one] = twins
        for kind, rows in (("rows", one), ("whole", one.reshape(1, -1)), ("none", None)):
            if rows is None or _nearly_orthogonal(rows, one.grad.reshape(rows.shape), delta):
                kinds.add(kind)
                break
        opt.step()
        twin.step()
    return difference(params, twins), sorted(kinds)


class Operators(TorchDispatchMode):
    """Which operators and collectives run."""

    def __init__(self):
        super().__init__()
        self.calls = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls[str(func)] += 1
        return func(*args, **(kwargs or {}))


def said(optimizer, layout):
    """Sums that are taken over processes in a step of five matrices, and numbers that the host reads."""
    shapes = [(26, 6), (9, 4, 2), (4, 8), (16, 16), (7, 5)]
    options = {"backend": "reference"}
    opt, params, _, twins = make(optimizer, options, layout=layout, shapes=shapes)
    give_gradients(params, twins, 0, layout)
    opt.step()
    give_gradients(params, twins, 1, layout)
    with Operators() as operators:
        opt.step()
    return (
        operators.calls["c10d.allreduce_.default"],
        operators.calls["aten._local_scalar_dense.default"],
    )


def _nearly_orthogonal(rows, grads, delta):
    cosine = nn.functional.cosine_similarity(rows, grads, dim=1).abs().max().item()
    return cosine < delta / rows.shape[1] ** 0.5


def released(optimizer, options):
    """FSDP2 whose backward() makes the steps."""
    dtype = torch.float64
    model, twin = fully_sharded(network(dtype)), network(dtype)
    opt, twin_opt = (OPTIMIZERS[optimizer](m.parameters(), **options) for m in (model, twin))
    release_gradients(model, opt)
    for step in range(3):
        parts = batches(step, dtype)
        loss_of(model, parts[dist.get_rank()]).backward()
        assert all(param.grad is None for param in model.parameters())
        opt.step()
        twin_opt.zero_grad()
        loss_of(twin, torch.cat(parts)).backward()
        twin_opt.step()
    return difference_of_runs(opt, twin_opt)


def tensor_parallel(optimizer, options, dtype=torch.float32):
    """Columns and rows by torch's own plans; FSDP2 over them where there are processes for it."""
    over = mesh(dist.get_world_size() // 2, 2)
    model, twin = network(dtype), network(dtype)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(), "4": ColwiseParallel()}
    parallelize_module(model, over["inner"], plan)
    fully_sharded(model, over["outer"])
    opt, twin_opt = (OPTIMIZERS[optimizer](m.parameters(), **options) for m in (model, twin))
    placements = {str(param.placements) for param in model.parameters()}
    for step in range(4):
        for index, (param, one) in enumerate(
            zip(model.parameters(), twin.parameters(), strict=True)
        ):
            one.grad = noise(one.shape, 100 * step + index, dtype)
            param.grad = distribute_tensor(
                one.grad, param.device_mesh, param.placements, src_data_rank=None
            )
        opt.step()
        twin_opt.step()
    return difference_of_runs(opt, twin_opt), sorted(placements)
