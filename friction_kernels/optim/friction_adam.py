"""Friction Adam: sigSignGrad, tanhSignGrad and their AdamW and AdamP forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from friction_kernels import equations
from friction_kernels.optim import checks, options
from friction_kernels.optim.base import PlannedOptimizer
from friction_kernels.optim.friction_docs import describe
from friction_kernels.optim.sharded_adamp import is_spread, projection_of

FRICTION_INPUTS = ("product", "normalized")


class FrictionAdam(PlannedOptimizer):
    """What the six classes share. Each says which friction it has and how it decays weights."""

    rule = "friction_adam"
    state_lists: ClassVar = {"exp_avg": True, "exp_avg_sq": True, "prev_grad": False}

    friction: ClassVar[str]  # "sigmoid" or "tanh"
    decoupled: ClassVar[bool]

    def _check_group(self, group: dict[str, Any]) -> None:
        checks.check_number("lr", group["lr"])
        checks.check_betas(group["betas"])
        checks.check_number("beta3", group["beta3"])
        checks.check_number("eps", group["eps"])
        checks.check_number("weight_decay", group["weight_decay"])
        checks.check_choice("friction_input", group["friction_input"], FRICTION_INPUTS)

    def _understood(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        if any(group.get("amsgrad") for group in state_dict["param_groups"]):
            raise ValueError(
                f"the state_dict was made with amsgrad=True, which {type(self).__name__} does not have; "
                "set amsgrad=False in its param_groups to go on without the maximum"
            )
        return state_dict

    def _settings(self, group: dict[str, Any]) -> dict[str, float]:
        checks.check_choice("friction_input", group["friction_input"], FRICTION_INPUTS)
        beta1, beta2 = group["betas"]
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

    def _reference_update(self, param, grad, lists, group, *, step, whole) -> Tensor:
        return equations.friction_adam(
            param,
            grad,
            *lists.values(),
            step,
            decoupled=self.decoupled,
            **self._equation_options(group),
        )


class FrictionAdamCoupled(FrictionAdam):
    """What SigSignGrad and TanhSignGrad share: decay added to the gradient."""

    decoupled = False

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 1.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        friction_input: str = "product",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        master: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        state_dtype: str | Mapping[str, str] | None = None,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(params, options.given(locals()))


class FrictionAdamW(FrictionAdam):
    """What the two AdamW classes share: decoupled decay."""

    decoupled = True

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 1.0,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        friction_input: str = "product",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        master: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        state_dtype: str | Mapping[str, str] | None = None,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(params, options.given(locals()))


class FrictionAdamP(FrictionAdam):
    """What the two AdamP classes share: decoupled decay and the projection."""

    rule = "friction_adamp"
    projects_rows = True
    decoupled = True

    def __init__(
        self,
        params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        beta3: float = 1.0,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        maximize: bool = False,
        friction_input: str = "product",
        max_grad_norm: float | None = None,
        skip_nonfinite: bool = False,
        master: str | None = None,
        rounding: str = "nearest",
        seed: int = 0,
        state_dtype: str | Mapping[str, str] | None = None,
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(params, options.given(locals()))

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.check_number("delta", group["delta"])
        checks.check_number("wd_ratio", group["wd_ratio"])

    def _reference_update(self, param, grad, lists, group, *, step, whole) -> Tensor:
        return equations.friction_adamp(
            param,
            grad,
            *lists.values(),
            step,
            delta=float(group["delta"]),
            wd_ratio=float(group["wd_ratio"]),
            nesterov=group["nesterov"],
            is_matrix=whole.dim() > 1,
            projection=projection_of(whole) if is_spread(whole) else equations.project,
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
