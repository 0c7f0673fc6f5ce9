"""What all processes must decide alike, and bad input, for test_sharding_faults.py.

Every process calls these functions beside a twin that is whole; differences are those of sharded_cases.
"""

import torch
import torch.distributed as dist
from optimizer_cases import noise
from sharded_cases import (
    batches,
    compiled_step,
    difference,
    difference_of_runs,
    fully_sharded,
    give_gradients,
    loss_of,
    make,
    mesh,
    network,
    spread,
    whole,
    world,
)
from torch import nn
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from friction_kernels import OPTIMIZERS, release_gradients


def snapshot(params, opt):
    steps = [opt.state[param]["step"] for param in params if opt.state[param]]
    return [whole(t.detach()).clone() for t in (*params, *steps)]


def skipped(options, layout, scale=None):
    """Three steps, the second with an infinity that one part alone holds; scale: a GradScaler finds it."""
    opt, params, twin, twins = make("SigSignAdamW", options, layout=layout)
    for step in range(3):
        give_gradients(params, twins, step, layout, factor=scale or 1.0)
        before = snapshot(params, opt)
        if step == 1:
            twins[1].grad[-1, -1, -1] = torch.inf
            params[1].grad = spread(twins[1].grad, layout)
        if scale is None:
            opt.step()
        else:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            scaler.scale(torch.zeros(()))
            scaler.step(opt)
        if step == 1:
            change = difference(snapshot(params, opt), before)
        else:
            for one in twins:
                one.grad /= scale or 1.0
            twin.step()
    return change, difference_of_runs(opt, twin)


def scaled_training(found_by):
    """FSDP2 under a GradScaler; one process's gradients overflow in the second step."""
    model, twin = fully_sharded(network()), network()
    opt, twin_opt = (OPTIMIZERS["TanhSignAdamW"](m.parameters()) for m in (model, twin))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scales = []
    for step in range(4):
        batch = batches(step, torch.float32)[dist.get_rank()]
        scaler.scale(loss_of(model, batch)).backward()
        params = list(model.parameters())
        if step == 1 and dist.get_rank() == 1:
            params[0].grad.to_local()[0, 0] = torch.nan
        if found_by == "unscale_":
            scaler.unscale_(opt)
        for param, one in zip(params, twin.parameters(), strict=True):
            scale = 1.0 if found_by == "unscale_" else scaler.get_scale()
            one.grad = param.grad.full_tensor() / scale
        scaler.step(opt)
        scaler.update()
        if step != 1:
            twin_opt.step()
        opt.zero_grad()
        scales.append(scaler.get_scale())
    return scales, difference(model.parameters(), twin.parameters())


# Bad input.


def refused(case, layout="rows", compiles=False):
    """The error of a step after one that was fine, and how far it changed anything."""
    opt, params, _, twins = make("SigSignAdamW", {}, layout=layout)
    step = compiled_step(opt) if compiles else opt.step
    give_gradients(params, twins, 0, layout)
    step()
    give_gradients(params, twins, 1, layout)
    REFUSED[case](opt, params, twins)
    before = snapshot(params, opt)
    try:
        step()
    except RuntimeError as error:
        return str(error), difference(snapshot(params, opt), before)
    return "no error", None


def _spread_otherwise(opt, params, twins):
    params[1].grad = spread(twins[1].grad, "columns")


def _on_another_mesh(opt, params, twins):
    params[1].grad = spread(twins[1].grad, "rows twice")


def _sum_not_taken(opt, params, twins):
    params[1].grad = DTensor.from_local(twins[1].grad, world(), [Partial()], run_check=False)


def _plain_gradient(opt, params, twins):
    params[1].grad = twins[1].grad.clone()


def _state_of_another_world(opt, params, twins):
    opt.state[params[1]]["exp_avg"] = torch.zeros_like(twins[1])


REFUSED = {
    "spread otherwise": _spread_otherwise,
    "on another mesh": _on_another_mesh,
    "a sum not taken": _sum_not_taken,
    "plain gradient": _plain_gradient,
    "another world": _state_of_another_world,
}


def refused_rounding():
    """Stochastic rounding of a parameter that is cut along two dimensions beside the first."""
    over, cuts = mesh(2, 2), [Shard(1), Shard(2)]
    value = noise((3, 4, 6), 0, torch.bfloat16)
    param = nn.Parameter(distribute_tensor(value, over, cuts))
    opt = OPTIMIZERS["RSGDM"]([("here", param)], rounding="stochastic")
    param.grad = distribute_tensor(value, over, cuts)
    try:
        opt.step()
    except RuntimeError as error:
        return str(error), difference([param], [value]), len(opt.state[param])
    return "no error", None, None


def released_under_ddp(given):
    """Release what of a DistributedDataParallel model is given and train: the error, and steps made."""
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(nn.Linear(12, 3))
    opt = OPTIMIZERS["SigSignAdamW"](model.parameters(), lr=0.1)
    what = {
        "the model": model,
        "a model around it": nn.Sequential(model, nn.ReLU()),
        "its module": model.module,
        "its parameters": model.parameters(),
    }
    try:
        release_gradients(what[given], opt)
        for step in range(2):
            loss_of(model, batches(step, torch.float32)[dist.get_rank()]).backward()
            opt.step()
    except (RuntimeError, ValueError) as error:
        return type(error), str(error), [state["step"].item() for state in opt.state.values()]
    return None, "no error", None


def loaded_over_another_mesh():
    """States of one mesh into parameters of another."""
    opt, params, twin, twins = make("SigSignAdamW", {}, layout="rows twice")
    give_gradients(params, twins, 0, "rows twice")
    opt.step()
    twin.step()
    other, others, _, _ = make("SigSignAdamW", {}, layout="columns")
    other.load_state_dict(opt.state_dict())
    with torch.no_grad():
        for mine, theirs in zip(others, params, strict=True):
            mine.copy_(spread(theirs.full_tensor(), "columns"))
    give_gradients(others, twins, 1, "columns")
    other.step()
    twin.step()
    return difference_of_runs(other, twin)
