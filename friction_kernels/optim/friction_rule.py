"""The friction rules: Adam, AdamW and AdamP, scaled by a friction of consecutive gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from friction_kernels import equations
from friction_kernels.optim import checks
from friction_kernels.optim.rule import MeasuredRule, Operands, ProjectedRule

FrictionInput = Literal["product", "normalized"]
FRICTION_INPUTS = get_args(FrictionInput)


class FrictionAdamRule(MeasuredRule):
    """Adam, or AdamW if decay is decoupled, times a friction ("sigmoid" or "tanh")."""

    name = "friction_adam"
    states_of = "friction_adam"

    def __init__(self, friction: str, *, decoupled: bool) -> None:
        self.friction, self.decoupled = friction, decoupled

    def check_group(self, group: Mapping[str, Any]) -> None:
        checks.check_number("lr", group["lr"])
        checks.check_betas(group["betas"])
        checks.check_number("beta3", group["beta3"])
        checks.check_number("eps", group["eps"])
        checks.check_number("weight_decay", group["weight_decay"])
        checks.check_choice("friction_input", group["friction_input"], FRICTION_INPUTS)
        checks.check_choice("maximize", group["maximize"], (False, True))

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        checks.check_choice("friction_input", group["friction_input"], FRICTION_INPUTS)
        beta1, beta2 = checks.pair_of_betas(group["betas"])
        return {
            **{name: group[name] for name in ("lr", "beta3", "eps", "weight_decay", "maximize")},
            "beta1": beta1,
            "beta2": beta2,
            "tanh": self.friction == "tanh",
            "normalized": group["friction_input"] == "normalized",
            "decoupled": self.decoupled,
            "nesterov": False,
            "delta": 0.0,
            "wd_ratio": 1.0,
        }

    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        equations.friction_adam(
            *_arguments(x),
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=self.decoupled,
            betas=_betas(group),
            maximize=group["maximize"],
            **self._friction_options(group),
        )

    def statistic(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        """S minus its value without friction."""
        s = equations.next_friction(
            x.param,
            x.grad,
            x.states["exp_avg_sq"],
            x.states["prev_grad"],
            x.step,
            beta2=_betas(group)[1],
            coupled_decay=0.0 if self.decoupled else float(group["weight_decay"]),
            maximize=group["maximize"],
            **self._friction_options(group),
        )
        return s - equations.NEUTRAL_FRICTION[self.friction]

    def _friction_options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "beta3": float(group["beta3"]),
            "eps": float(group["eps"]),
            "friction": self.friction,
            "friction_input": group["friction_input"],
        }

    def identity(self) -> dict[str, Any]:
        return {
            "friction": self.friction,
            "projects_rows": self.projects_rows,
            "decoupled_weight_decay": self.decoupled,  # also stored by torch's Adam and AdamW
        }

    def understood(self, state_dict: dict[str, Any], class_name: str) -> dict[str, Any]:
        for index, group in enumerate(state_dict["param_groups"]):
            self._check_maker(index, group, class_name)
        return state_dict

    def _check_maker(self, index: int, group: Mapping[str, Any], name: str) -> None:
        """Raise if a group was saved by an optimizer with the same states but another rule."""
        if group.get("amsgrad"):
            raise ValueError(
                f"the state_dict was made with amsgrad=True, which {name} does not have; "
                "set amsgrad=False in its param_groups to go on without the maximum"
            )
        if "amsgrad" not in group and {"decoupled_weight_decay", "foreach"} <= group.keys():
            raise ValueError(
                f"the state_dict is not one of {name}: it is one of torch.optim.RAdam or NAdam; "
                f"start {name} afresh"
            )
        for key, own in self.identity().items():
            theirs = group.get(key, own)
            if theirs == own or (key == "decoupled_weight_decay" and not group.get("weight_decay")):
                continue
            raise ValueError(
                f"the state_dict is not one of {name}: its group {index} has {key}={theirs!r} and this "
                f"class {own!r}; load it into the class that made it, or delete {key!r} from its "
                "param_groups to go on in this one's way"
            )


class FrictionAdamPRule(FrictionAdamRule, ProjectedRule):
    """AdamP times a friction."""

    name = "friction_adamp"

    def __init__(self, friction: str) -> None:
        super().__init__(friction, decoupled=True)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        checks.check_number("delta", group["delta"])
        checks.check_number("wd_ratio", group["wd_ratio"])
        checks.check_choice("nesterov", group["nesterov"], (False, True))

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: group[name] for name in ("nesterov", "delta", "wd_ratio")}
        return {**super().settings(group), **own}

    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        equations.friction_adamp(
            *_arguments(x),
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            delta=float(group["delta"]),
            wd_ratio=float(group["wd_ratio"]),
            is_matrix=x.is_matrix,
            **self._direction_options(group),
        )

    def direction(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        return equations.friction_direction(
            *_arguments(x), coupled_decay=0.0, **self._direction_options(group)
        )

    def _direction_options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "betas": _betas(group),
            "maximize": group["maximize"],
            "nesterov": group["nesterov"],
            **self._friction_options(group),
        }


def _arguments(x: Operands) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]:
    exp_avg, exp_avg_sq, prev_grad = (x.states[k] for k in ("exp_avg", "exp_avg_sq", "prev_grad"))
    return x.param, x.grad, exp_avg, exp_avg_sq, prev_grad, x.step


def _betas(group: Mapping[str, Any]) -> tuple[float, float]:
    beta1, beta2 = group["betas"]
    return float(beta1), float(beta2)
