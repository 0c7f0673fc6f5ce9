"""A step of one parameter with the equations in plain torch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from friction_kernels.optim import options, taking
from friction_kernels.optim.element_order import ElementOrder
from friction_kernels.optim.rounding import RandomKey
from friction_kernels.optim.rule import MeasuredRule, Operands, Rule
from friction_kernels.optim.sharded_rounding import shard_of
from friction_kernels.optim.states import read_state, read_wide, reals, write_state, write_wide
from friction_kernels.shards import local


class Numbers:
    """The inputs of a parameter's next step, in at least float32."""

    def __init__(
        self,
        rule: Rule,
        param: Tensor,
        state: dict[str, Any],
        group: dict[str, Any],
        *,
        grad_factor: float,
    ) -> None:
        """grad_factor: multiplies the gradient before anything else."""
        assert param.grad is not None
        self.rule, self.whole, self.group = rule, param, group
        self._param, self._state = local(param), state
        self.step = state["step"].item() + 1
        self._plain = self._param.resolve_conj()  # a copy of a conjugated view
        self._real = reals(self._plain)
        self.wide = read_wide(self._real, state)
        grad = reals(local(param.grad)).to(self.wide.dtype)
        self.grad = grad if grad_factor == 1 else grad * grad_factor
        self.states = {
            key: read_state(self._param, state, key, kind) for key, kind in rule.states.items()
        }

    def operands(self) -> Operands:
        return Operands(self.wide, self.grad, self.states, self.step, self.whole.dim() > 1)

    def statistic(self) -> Tensor:
        """The rule's statistic in this step. Has no side effects."""
        assert isinstance(self.rule, MeasuredRule)
        return self.rule.statistic(self.operands(), self.group)


class Update(Numbers):
    """A parameter's next step: the numbers that the equations change, and how to store them."""

    def __init__(self, *arguments: Any, ordinal: int, grad_factor: float) -> None:
        """Increment the step count. ordinal: the parameter's index among all of the optimizer's."""
        super().__init__(*arguments, grad_factor=grad_factor)
        self._ordinal = ordinal
        self._state["step"] += 1

    def keep_states(self) -> None:
        """Store the states, and free the numbers of states and gradient."""
        for key, kind in self.rule.states.items():
            write_state(self._param, self._state, key, kind, self.states[key])
        kept = taking.kept_state(self.rule) if taking.takes(self.rule, self.group) else None
        if kept is not None and self.whole.grad is not None:
            self._state[kept] = local(self.whole.grad).copy_(self._state[kept])
            self.whole.grad = None
        del self.states, self.grad

    def keep_value(self) -> None:
        param, rows_first = self._param, self.rule.projects_rows
        random = None
        if options.rounds_stochastically(param, self.group):
            shard = shard_of(self.whole, rows_first)
            random = RandomKey(self.group["seed"], int(self.step), self._ordinal, shard)
        order = ElementOrder.of(param, rows_first)
        write_wide(self._real, self._state, self.wide, random=random, order=order)
        if self._plain is not param:
            param.copy_(self._plain)

    def make(self) -> None:
        self.rule.update(self.operands(), self.group)
        self.keep_states()
        self.keep_value()
