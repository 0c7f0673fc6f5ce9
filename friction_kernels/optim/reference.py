"""A step of one parameter by the equations in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from friction_kernels.optim import options
from friction_kernels.optim.rounding import RandomKey
from friction_kernels.optim.sharded_rounding import shard_of
from friction_kernels.optim.states import read_list, read_wide, reals, write_list, write_wide
from friction_kernels.optim.walk import Walk
from friction_kernels.shards import local

if TYPE_CHECKING:
    from friction_kernels.optim.base import PlannedOptimizer


class Update:
    """A parameter's next step: the numbers that equations take and change, and how they are kept."""

    def __init__(
        self,
        opt: PlannedOptimizer,
        param: Tensor,
        group: dict[str, Any],
        *,
        ordinal: int,
        grad_factor: float,
    ) -> None:
        """Count the step and read what it needs.

        ordinal: the parameter's place among all of the optimizer's; grad_factor: what the gradient is
        multiplied by before anything else.
        """
        assert param.grad is not None
        self.whole, self.group = param, group
        self._opt, self._ordinal = opt, ordinal
        self._param = local(param)
        self._state = opt.state[param]
        self._state["step"] += 1
        self.step = self._state["step"].item()
        self._plain = self._param.resolve_conj()  # a copy where it is a conjugated view
        self._real = reals(self._plain)
        self.wide = read_wide(self._real, self._state)
        grad = reals(local(param.grad)).to(self.wide.dtype)
        self.grad = grad if grad_factor == 1 else grad * grad_factor
        self.lists = {key: read_list(self._param, self._state, key) for key in opt.state_lists}

    def keep_states(self) -> None:
        """Write the states, and let go of their numbers and the gradient's."""
        for key, numbers in self.lists.items():
            write_list(self._param, self._state, key, numbers)
        del self.lists, self.grad

    def keep_value(self) -> None:
        param, rows_first = self._param, self._opt.projects_rows
        random = None
        if options.rounds_stochastically(param, self.group):
            shard = shard_of(self.whole, rows_first)
            random = RandomKey(self.group["seed"], int(self.step), self._ordinal, shard)
        walk = Walk.of(param, rows_first)
        write_wide(self._real, self._state, self.wide, random=random, walk=walk)
        if self._plain is not param:
            param.copy_(self._plain)


def make(opt: PlannedOptimizer, update: Update) -> Tensor | None:
    """Make a step; return what its rule observes (the friction)."""
    observed = opt._reference_update(
        update.wide,
        update.grad,
        update.lists,
        update.group,
        step=update.step,
        whole=update.whole,
    )
    update.keep_states()
    update.keep_value()
    return observed
