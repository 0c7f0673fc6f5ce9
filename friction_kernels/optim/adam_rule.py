"""The rules of Adam, AdamW and AdamP, alone and scaled by a friction of consecutive gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor

from friction_kernels import equations
from friction_kernels.choices import check_choice
from friction_kernels.optim import checks, taking
from friction_kernels.optim.rule import MeasuredRule, Operands, ProjectedRule, Rule

Friction = Literal["sigmoid", "tanh", "diff"]
FrictionInput = Literal["product", "normalized"]
FRICTIONS = get_args(Friction)
FRICTION_INPUTS = get_args(FrictionInput)


class AdamRule(Rule):
    """Adam, or AdamW if decay is decoupled."""

    name = "adam"
    states_of = "adam"
    optional = ("beta3", "friction_input", "take_gradients", "delta", "wd_ratio", "nesterov")
    friction: Friction | None = None

    def __init__(self, *, decoupled: bool) -> None:
        self.decoupled = decoupled

    def check_group(self, group: Mapping[str, Any]) -> None:
        checks.check_number("lr", group["lr"])
        checks.check_betas(group["betas"])
        checks.check_number("eps", group["eps"])
        checks.check_number("weight_decay", group["weight_decay"])
        check_choice("maximize", group["maximize"], (False, True))

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        beta1, beta2 = checks.pair_of_betas(group["betas"])
        return {
            **{name: group[name] for name in ("lr", "eps", "weight_decay", "maximize")},
            "beta1": beta1,
            "beta2": beta2,
            "decoupled": self.decoupled,
            "nesterov": False,
        }

    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        equations.adam(
            **_arguments(x),
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=self.decoupled,
            **_moment_options(group),
        )

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
        """Raise if a group was saved by an optimizer that this one does not go on from."""
        if group.get("amsgrad"):
            raise ValueError(
                f"the state_dict was made with amsgrad=True, which {name} does not have; "
                "set amsgrad=False in its param_groups to go on without the maximum"
            )
        other = self._other_maker(group)
        if other is not None:
            raise ValueError(
                f"the state_dict is not one of {name}: it is one of {other}; start {name} afresh"
            )
        for key, own in self.identity().items():
            theirs = group.get(key, own)
            if theirs == own or (key == "decoupled_weight_decay" and not group.get("weight_decay")):
                continue
            if key == "friction" and None in (theirs, own):  # the moments are the same
                continue
            raise ValueError(
                f"the state_dict is not one of {name}: its group {index} has {key}={theirs!r} and this "
                f"class {own!r}; load it into the class that made it, or delete {key!r} from its "
                "param_groups to go on in this one's way"
            )

    def _other_maker(self, group: Mapping[str, Any]) -> str | None:
        """Which optimizer without our identity made a group that this rule does not go on from, if any."""
        if "amsgrad" not in group and {"decoupled_weight_decay", "foreach"} <= group.keys():
            return "torch.optim.RAdam or NAdam"
        if "dampening" in group:
            return "SGD"
        if "wd_ratio" in group and "backend" not in group and not self.projects_rows:
            return "adamp.AdamP"
        return None


class FrictionAdamRule(AdamRule, MeasuredRule):
    """Adam times a friction."""

    name = "friction_adam"
    states_of = "friction_adam"
    friction: Friction

    def __init__(self, friction: Friction, *, decoupled: bool) -> None:
        super().__init__(decoupled=decoupled)
        self.friction = friction

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        checks.check_number("beta3", group["beta3"])
        self._input_of(group)
        taking.check_group(group, decoupled=self.decoupled)

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        taking.check_group(group, decoupled=self.decoupled)  # what it depends on may have changed
        return {
            **super().settings(group),
            "beta3": group["beta3"],
            "tanh": self.friction == "tanh",
            "normalized": self._input_of(group) == "normalized",
            "difference": self.friction == "diff",
        }

    def _input_of(self, group: Mapping[str, Any]) -> FrictionInput:
        """What the friction is a function of, besides beta3."""
        if self.friction == "diff":  # it has an input of its own
            return "product"
        check_choice("friction_input", group["friction_input"], FRICTION_INPUTS)
        chosen: FrictionInput = group["friction_input"]
        return chosen

    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        equations.friction_adam(
            **_arguments(x),
            lr=float(group["lr"]),
            weight_decay=float(group["weight_decay"]),
            decoupled=self.decoupled,
            **_moment_options(group),
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
            beta2=float(group["betas"][1]),
            eps=float(group["eps"]),
            coupled_decay=0.0 if self.decoupled else float(group["weight_decay"]),
            maximize=group["maximize"],
            **self._friction_options(group),
        )
        return s - equations.NEUTRAL_FRICTION[self.friction]

    def _friction_options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "beta3": float(group["beta3"]),
            "friction": self.friction,
            "friction_input": self._input_of(group),
        }


class _ProjectedAdamRule(AdamRule, ProjectedRule):
    """AdamP's part of a rule: its options, and the descent in a direction."""

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        checks.check_number("delta", group["delta"])
        checks.check_number("wd_ratio", group["wd_ratio"])
        check_choice("nesterov", group["nesterov"], (False, True))

    def settings(self, group: Mapping[str, Any]) -> dict[str, Any]:
        own = {name: group[name] for name in ("nesterov", "delta", "wd_ratio")}
        return {**super().settings(group), **own}

    def update(self, x: Operands, group: Mapping[str, Any]) -> None:
        numbers = ("lr", "weight_decay", "eps", "delta", "wd_ratio")
        equations.descend_projected(
            x.param,
            x.grad,
            self.direction(x, group),
            is_matrix=x.is_matrix,
            **{name: float(group[name]) for name in numbers},
        )


class AdamPRule(_ProjectedAdamRule):
    """AdamP."""

    name = "adamp"

    def __init__(self) -> None:
        super().__init__(decoupled=True)

    def direction(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        return equations.adam_direction(
            **_arguments(x),
            rate=1.0,
            coupled_decay=0.0,
            nesterov=group["nesterov"],
            **_moment_options(group),
        )


class FrictionAdamPRule(_ProjectedAdamRule, FrictionAdamRule):
    """AdamP times a friction."""

    name = "friction_adamp"

    def __init__(self, friction: Friction) -> None:
        FrictionAdamRule.__init__(self, friction, decoupled=True)

    def direction(self, x: Operands, group: Mapping[str, Any]) -> Tensor:
        return equations.friction_direction(
            **_arguments(x),
            coupled_decay=0.0,
            nesterov=group["nesterov"],
            **_moment_options(group),
            **self._friction_options(group),
        )


def _arguments(x: Operands) -> dict[str, Any]:
    return {"param": x.param, "grad": x.grad, **x.states, "step": x.step}


def _moment_options(group: Mapping[str, Any]) -> dict[str, Any]:
    beta1, beta2 = group["betas"]
    return {
        "betas": (float(beta1), float(beta2)),
        "eps": float(group["eps"]),
        "maximize": group["maximize"],
    }
