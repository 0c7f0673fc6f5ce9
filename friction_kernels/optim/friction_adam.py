"""Friction Adam: sigSignGrad, tanhSignGrad and their AdamW and AdamP forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from friction_kernels import equations
from friction_kernels.backends import Backend
from friction_kernels.optim import checks, options
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.friction_docs import describe
from friction_kernels.optim.options import Master, Rounding, StateDtype

FrictionInput = Literal["product", "normalized"]
FRICTION_INPUTS = get_args(FrictionInput)


class FrictionAdam(PlannedOptimizer):
    """What the six classes share. Each says which friction it has and how it decays weights."""

    rule = "friction_adam"
    state_lists: ClassVar[dict[str, bool]] = {
        "exp_avg": True,
        "exp_avg_sq": True,
        "prev_grad": False,
    }

    friction: ClassVar[str]  # "sigmoid" or "tanh"
    decoupled: ClassVar[bool]

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.check_number("lr", group["lr"])
        checks.check_betas(group["betas"])
        checks.check_number("beta3", group["beta3"])
        checks.check_number("eps", group["eps"])
        checks.check_number("weight_decay", group["weight_decay"])
        checks.check_choice("friction_input", group["friction_input"], FRICTION_INPUTS)
        checks.check_choice("maximize", group["maximize"], (False, True))

    def _kind(self) -> dict[str, Any]:
        return {
            "friction": self.friction,
            "projects_rows": self.projects_rows,
            "decoupled_weight_decay": self.decoupled,  # as torch's AdamW and Adam say, too
        }

    def _understood(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        for index, group in enumerate(state_dict["param_groups"]):
            self._check_maker(index, group)
        return state_dict

    def _check_maker(self, index: int, group: Mapping[str, Any]) -> None:
        """Raise where what made a state_dict's group had the same states and another rule."""
        name = type(self).__name__
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
        for key, own in self._kind().items():
            theirs = group.get(key, own)
            if theirs == own or (key == "decoupled_weight_decay" and not group.get("weight_decay")):
                continue
            raise ValueError(
                f"the state_dict is not one of {name}: its group {index} has {key}={theirs!r} and this "
                f"class {own!r}; load it into the class that made it, or delete {key!r} from its "
                "param_groups to go on in this one's way"
            )

    def _settings(self, group: dict[str, Any]) -> dict[str, Any]:
        checks.check_choice("friction_input", group["friction_input"], FRICTION_INPUTS)
        beta1, beta2 = checks.pair_of_betas(group["betas"])
        return {
            **group,
            "beta1": beta1,
            "beta2": beta2,
            "tanh": self.friction == "tanh",
            "normalized": group["friction_input"] == "normalized",
            "decoupled": self.decoupled,
            "nesterov": group.get("nesterov", False),
            "delta": group.get("delta", 0.0),
            "wd_ratio": group.get("wd_ratio", 1.0),
        }

    def _equation_options(self, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "lr": float(group["lr"]),
            "betas": tuple(float(beta) for beta in group["betas"]),
            "beta3": float(group["beta3"]),
            "eps": float(group["eps"]),
            "weight_decay": float(group["weight_decay"]),
            "maximize": group["maximize"],
            "friction": self.friction,
            "friction_input": group["friction_input"],
        }

    def _reference_update(
        self,
        param: Tensor,
        grad: Tensor,
        lists: dict[str, Tensor],
        group: dict[str, Any],
        *,
        step: float,
        whole: Tensor,
    ) -> Tensor:
        return equations.friction_adam(
            param,
            grad,
            lists["exp_avg"],
            lists["exp_avg_sq"],
            lists["prev_grad"],
            step,
            decoupled=self.decoupled,
            **self._equation_options(group),
        )


class FrictionAdamCoupled(FrictionAdam):
    """What SigSignGrad and TanhSignGrad share: decay added to the gradient."""

    decoupled = False

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 0.0,
        *,
        beta3: float | Tensor = 1.0,
        maximize: bool = False,
        friction_input: FrictionInput = "product",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        master: Master | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        state_dtype: StateDtype | Mapping[str, StateDtype | None] | None = None,
        process_group: torch.distributed.ProcessGroup | str | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, options.given(locals()))


class FrictionAdamW(FrictionAdam):
    """What the two AdamW classes share: decoupled decay."""

    decoupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        *,
        beta3: float | Tensor = 1.0,
        maximize: bool = False,
        friction_input: FrictionInput = "product",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        master: Master | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        state_dtype: StateDtype | Mapping[str, StateDtype | None] | None = None,
        process_group: torch.distributed.ProcessGroup | str | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, options.given(locals()))


class FrictionAdamP(FrictionAdam):
    """What the two AdamP classes share: decoupled decay and the projection."""

    rule = "friction_adamp"
    projects_rows = True
    decoupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float | Tensor = 1e-8,
        weight_decay: float | Tensor = 1e-2,
        *,
        beta3: float | Tensor = 1.0,
        delta: float | Tensor = 0.1,
        wd_ratio: float | Tensor = 0.1,
        nesterov: bool = False,
        maximize: bool = False,
        friction_input: FrictionInput = "product",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        master: Master | None = None,
        rounding: Rounding = "nearest",
        seed: int = 0,
        state_dtype: StateDtype | Mapping[str, StateDtype | None] | None = None,
        process_group: torch.distributed.ProcessGroup | str | None = None,
        capturable: bool = False,
        backend: Backend = "auto",
    ) -> None:
        super().__init__(params, options.given(locals()))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.check_number("delta", group["delta"])
        checks.check_number("wd_ratio", group["wd_ratio"])
        checks.check_choice("nesterov", group["nesterov"], (False, True))

    def _reference_update(
        self,
        param: Tensor,
        grad: Tensor,
        lists: dict[str, Tensor],
        group: dict[str, Any],
        *,
        step: float,
        whole: Tensor,
    ) -> Tensor:
        return equations.friction_adamp(
            param,
            grad,
            lists["exp_avg"],
            lists["exp_avg_sq"],
            lists["prev_grad"],
            step,
            delta=float(group["delta"]),
            wd_ratio=float(group["wd_ratio"]),
            nesterov=group["nesterov"],
            is_matrix=whole.dim() > 1,
            **self._equation_options(group),
        )


class SigSignGrad(FrictionAdamCoupled):
    friction = "sigmoid"


class TanhSignGrad(FrictionAdamCoupled):
    friction = "tanh"


class SigSignAdamW(FrictionAdamW):
    friction = "sigmoid"


class TanhSignAdamW(FrictionAdamW):
    friction = "tanh"


class SigSignAdamP(FrictionAdamP):
    friction = "sigmoid"


class TanhSignAdamP(FrictionAdamP):
    friction = "tanh"


describe(SigSignGrad, "Adam with sigmoid friction.", "coupled")
describe(TanhSignGrad, "Adam with tanh friction.", "coupled")
describe(SigSignAdamW, "AdamW with sigmoid friction.", "decoupled")
describe(TanhSignAdamW, "AdamW with tanh friction.", "decoupled")
describe(SigSignAdamP, "AdamP with sigmoid friction.", "projected")
describe(TanhSignAdamP, "AdamP with tanh friction.", "projected")
