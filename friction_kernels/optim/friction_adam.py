"""Friction Adam: sigSignGrad, tanhSignGrad and their AdamW and AdamP forms."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from friction_kernels import equations
from friction_kernels.optim import checks
from friction_kernels.optim.base import PlannedOptimizer

FRICTION_INPUTS = ("product", "normalized")


class FrictionAdam(PlannedOptimizer):
    """What the six classes share. Each says which friction it has and how it decays weights."""

    rule = "friction_adam"
    counts_steps = True
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
        checks.check_backend(group["backend"])

    def _check_loaded(self, state_dict: dict[str, Any]) -> None:
        super()._check_loaded(state_dict)
        if any(group.get("amsgrad") for group in state_dict["param_groups"]):
            raise ValueError(
                f"the state_dict was made with amsgrad=True, which {type(self).__name__} does not have; "
                "set amsgrad=False in its param_groups to go on without the maximum"
            )

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

    def _reference_update(self, param, grad, lists, group, *, step, is_matrix) -> Tensor:
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
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "friction_input": friction_input,
            "capturable": capturable,
            "backend": backend,
        }
        super().__init__(params, defaults)


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
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "friction_input": friction_input,
            "capturable": capturable,
            "backend": backend,
        }
        super().__init__(params, defaults)


class FrictionAdamP(FrictionAdam):
    """What the two AdamP classes share: decoupled decay and the projection."""

    rule = "friction_adamp"
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
        capturable: bool = False,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "beta3": beta3,
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
            "maximize": maximize,
            "friction_input": friction_input,
            "capturable": capturable,
            "backend": backend,
        }
        super().__init__(params, defaults)

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        checks.check_number("delta", group["delta"])
        checks.check_number("wd_ratio", group["wd_ratio"])

    def _reference_update(self, param, grad, lists, group, *, step, is_matrix) -> Tensor:
        return equations.friction_adamp(
            param,
            grad,
            *lists.values(),
            step,
            delta=float(group["delta"]),
            wd_ratio=float(group["wd_ratio"]),
            nesterov=group["nesterov"],
            is_matrix=is_matrix,
            **self._equation_options(group),
        )


_DOC = """{summary}

    Equals, for every parameter p with gradient g (after `maximize` flips it), at its t-th step::

        {coupled}exp_avg.mul_(beta1).add_(g, alpha=1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        m_hat = exp_avg / (1 - beta1**t)
        v_hat = exp_avg_sq / (1 - beta2**t)
        x = prev_grad * g                      # friction_input="product"
        x = prev_grad * g / (v_hat + eps)      # friction_input="normalized"
        S = {friction}
        prev_grad.copy_(g)
        {update}

    At usual gradient scales (|g| near 1e-3) the product form's x is so small that S hardly leaves
    {neutral}: the optimizer is then {without}. `friction_input="normalized"` does not depend on the
    gradients' scale; `friction_kernels.friction_stats(opt)` shows what S does.

    Source: Zheng et al., "Adaptive Friction in Deep Learning", arXiv 2408.11839{more_sources}.
    Published: the product form of S. Choices of this library, where the source was not readable:
    beta3 = 1, a zero gradient before the first, S multiplies the bias-corrected first moment{choices}.
    Its own: friction_input="normalized".

    Args:
        params: parameters, (name, parameter) pairs, or groups as dicts with any of the options
            below. Floating-point or complex (updated as pairs of reals), of any dense layout.
            Moments are kept in float32 at least, prev_grad in the parameter's type.
        lr: learning rate, at least 0, a number or a one-element tensor (default {lr}).
        betas: decay of the two moments, each in [0, 1) (default (0.9, 0.999)).
        beta3: strength of the friction, at least 0; 0 makes S = {neutral} (default 1.0).
        eps: added to the root of the second moment, at least 0 (default 1e-8).
        weight_decay: {decay_kind}, at least 0 (default {weight_decay}).
{more_args}        maximize: maximize the objective (default False).
        friction_input: "product" (published) or "normalized" (default "product").
        capturable: let a CUDA graph hold the step: `step` lies on the parameter's device, and lr,
            weight_decay, betas and the like are read there at each replay where they are tensors (a
            number is kept as captured) (default False).
        backend: "auto" (native where it serves, else reference), "native" (raises with the reason
            where it cannot serve) or "reference" (default "auto").

    State: `step`, `exp_avg`, `exp_avg_sq`, `prev_grad`. A state_dict of torch.optim.AdamW loads, its
    missing prev_grad starting at zero.

    Raises:
        ValueError, TypeError: an option out of range, a parameter of integer type, or kinds of
            devices mixed within a group; from the constructor and add_param_group.
        RuntimeError: a sparse or misfit gradient or state, or backend="native" that cannot serve;
            from step(), before anything is changed.
    """


def _describe(cls: type, summary: str, decay: str) -> None:
    tanh = cls.friction == "tanh"
    adamp = issubclass(cls, FrictionAdamP)
    descend = "p.add_(S * m_hat / (v_hat.sqrt() + eps), alpha=-lr)"
    shrink = "p.mul_(1 - lr * weight_decay)\n        "
    project = (
        "u = S * m_hat / (v_hat.sqrt() + eps)   # nesterov: (beta1 * exp_avg + (1 - beta1) * g) for exp_avg\n"
        "        # Where p.dim() > 1 and every row of p (first dimension) is nearly orthogonal to g,\n"
        "        # |cosine_similarity(p_row, g_row, eps=eps)| < delta / sqrt(len(p_row)), or else p as a\n"
        "        # whole is, the component along p_row / (p_row.norm() + eps) is taken out of u and the\n"
        "        # decay is scaled by wd_ratio.\n"
        "        p.mul_(1 - lr * weight_decay).add_(u, alpha=-lr)"
    )
    updates = {"coupled": descend, "decoupled": shrink + descend, "projected": project}
    cls.__doc__ = _DOC.format(
        summary=summary,
        coupled="g = g + weight_decay * p\n        " if decay == "coupled" else "",
        friction="torch.tanh(beta3 * x) + 1" if tanh else "torch.sigmoid(beta3 * x)",
        update=updates[decay],
        neutral="1" if tanh else "1/2",
        without={
            "coupled": "torch.optim.Adam",
            "decoupled": "torch.optim.AdamW",
            "projected": "AdamP",
        }[decay]
        + ("" if tanh else " at half the learning rate"),
        more_sources='; projection: Heo et al., "AdamP", arXiv 2006.08217' if adamp else "",
        choices=", and it does so before the projection" if adamp else "",
        lr="1e-3",
        decay_kind="coupled (added to the gradient, as in torch.optim.Adam)"
        if decay == "coupled"
        else "decoupled (as in torch.optim.AdamW)",
        weight_decay="0.0" if decay == "coupled" else "1e-2",
        more_args=(
            "        delta: bound of the cosine test, at least 0 (default 0.1).\n"
            "        wd_ratio: factor of the decay where the update is projected, at least 0 (default 0.1).\n"
            "        nesterov: look one step ahead in the first moment (default False).\n"
        )
        if adamp
        else "",
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


_describe(SigSignGrad, "Adam with sigmoid friction.", "coupled")
_describe(TanhSignGrad, "Adam with tanh friction.", "coupled")
_describe(SigSignAdamW, "AdamW with sigmoid friction.", "decoupled")
_describe(TanhSignAdamW, "AdamW with tanh friction.", "decoupled")
_describe(SigSignAdamP, "AdamP with sigmoid friction.", "projected")
_describe(TanhSignAdamP, "AdamP with tanh friction.", "projected")
