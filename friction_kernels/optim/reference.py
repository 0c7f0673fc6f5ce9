"""A step of one parameter by the equations in plain torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from friction_kernels.optim import options
from friction_kernels.optim.rounding import RandomKey
from friction_kernels.optim.sharded_rounding import shard_of
from friction_kernels.optim.states import read_list, read_wide, reals, write_list, write_wide
from friction_kernels.optim.walk import Walk
from friction_kernels.shards import local


def update(
    opt, param: Tensor, group: dict[str, Any], *, ordinal: int, grad_factor: float
) -> Tensor | None:
    """Make the parameter's next step; return what its rule observes (the friction).

    ordinal: the parameter's place among all of the optimizer's; grad_factor: what the gradient is
    multiplied by before anything else.
    """
    state = opt.state[param]
    state["step"] += 1
    step = state["step"].item()
    whole, param, raw_grad = param, local(param), local(param.grad)
    plain = param.resolve_conj()  # a copy where the parameter is a conjugated view
    real = reals(plain)
    wide = read_wide(real, state)
    grad = reals(raw_grad).to(wide.dtype)
    lists = {key: read_list(param, state, key) for key in opt.state_lists}
    observed = opt._reference_update(
        wide,
        grad if grad_factor == 1 else grad * grad_factor,
        lists,
        group,
        step=step,
        whole=whole,
    )
    for key, numbers in lists.items():
        write_list(param, state, key, numbers)
    random = None
    if options.rounds_stochastically(param, group):
        random = RandomKey(group["seed"], int(step), ordinal, shard_of(whole, opt.projects_rows))
    write_wide(real, state, wide, random=random, walk=Walk.of(param, opt.projects_rows))
    if plain is not param:
        param.copy_(plain)
    return observed
