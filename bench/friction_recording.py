"""What the friction does within a training: the distribution of S, and of what S is made from."""

from collections import defaultdict
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from bench.end_to_end_results import plain
from friction_kernels.equations import NEUTRAL_FRICTION, friction_direction
from friction_kernels.optim.friction_adam import FRICTION_INPUTS, FrictionAdam

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
INPUT_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
BINS = 25  # so that S = 1 lies in the middle of one
ALL = "all"
VECTORS = "norms and biases"
KINDS = {  # by what the name of a parameter holds
    "attention": ("attention",),
    "mlp": ("mlp",),
    "embeddings": ("embed", "positions", "characters"),
    "convolutions": ("features",),
    "head": ("head",),
}


def kind_of(name: str, parameter: Tensor) -> str:
    if parameter.dim() == 1:
        return VECTORS
    return next(kind for kind, parts in KINDS.items() if any(part in name for part in parts))


def midway(looks: list) -> Any:
    """The look, or its step, when half of the training is done."""
    return looks[len(looks) // 2 - 1]


def quantiles(values: Tensor, at: tuple[float, ...]) -> list[float]:
    return values.quantile(torch.tensor(at, dtype=values.dtype)).tolist()


class Recorder:
    """Called before the optimizer's step, with gradients there, at each of `steps` it notes the S that
    this step will have, in float64, from the gradients and the optimizer's state.

    looks: of each such step, over ALL elements, and at steps in `kinds` also by kind of layer:
        count, mean, std and quantiles of S, S being divided by its value without friction, so that it
        lies in (0, 2) and 1 is no friction; step_length, the norm of the step over its norm without
        friction; and with `inputs`, for each form x = g_{t-1} g_t, or that over v^_t + eps, quantiles of
        |x| where it is not zero, and the share of these in which it is positive. Beside them the
        histogram of S over all elements, in BINS equal bins.
    """

    def __init__(self, steps: Container[int], kinds: Container[int], inputs: bool) -> None:
        self.steps, self.kinds, self.inputs = steps, kinds, inputs
        self.looks: list[dict[str, Any]] = []

    def __call__(self, step: int, model: nn.Module, optimizer: FrictionAdam) -> None:
        if step not in self.steps:
            return
        found: dict[str, list[dict[str, Tensor]]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            elements = elements_of(parameter, step, optimizer)
            found[ALL].append(elements)
            if step in self.kinds:
                found[kind_of(name, parameter)].append(elements)
        described = {kind: describe(each, self.inputs) for kind, each in found.items()}
        s = torch.cat([elements["s"] for elements in found[ALL]])
        shares = plain((s.histc(BINS, 0, 2) / s.numel()).tolist(), digits=3)
        self.looks.append({"step": step, "histogram": shares, **described})


@torch.no_grad()
def elements_of(parameter: Tensor, step: int, optimizer: FrictionAdam) -> dict[str, Tensor]:
    """S over its value without friction, the steps with and without friction, and both inputs x."""
    (group,) = optimizer.param_groups
    neutral = NEUTRAL_FRICTION[optimizer.rule.friction]
    options = {key: group[key] for key in ("betas", "eps", "friction_input", "maximize")}
    options |= {"coupled_decay": 0.0, "friction": optimizer.rule.friction}
    p, g = parameter.double(), parameter.grad.double()

    def states() -> list[Tensor]:
        found = optimizer.state.get(parameter) or {}
        names = ("exp_avg", "exp_avg_sq", "prev_grad")
        return [found[name].double().clone() if found else torch.zeros_like(g) for name in names]

    prev_grad = states()[2]
    without, _ = friction_direction(p, g, *states(), step, beta3=0.0, **options)
    advanced = states()
    u, s = friction_direction(p, g, *advanced, step, beta3=group["beta3"], **options)
    product = prev_grad * g  # g_{t-1} g_t
    v_hat = advanced[1] / (1 - group["betas"][1] ** step)
    normalized = product / (v_hat + group["eps"])  # g_{t-1} g_t / (v^_t + eps)
    found = {"s": s / neutral, "with": u, "without": without}
    found |= dict(zip(FRICTION_INPUTS, (product, normalized), strict=True))
    return {key: value.flatten() for key, value in found.items()}


def describe(parts: list[dict[str, Tensor]], inputs: bool) -> dict[str, Any]:
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    s = whole["s"]
    found = {
        "count": s.numel(),
        "mean": s.mean().item(),
        "std": s.std(correction=0).item(),
        "quantiles": quantiles(s, QUANTILES),
        "step_length": (whole["with"].norm() / whole["without"].norm()).item(),
    }
    for form in FRICTION_INPUTS if inputs else ():
        x = whole[form][whole[form] != 0]
        if x.numel():
            positive = (x > 0).double().mean().item()
            found[form] = {"quantiles": quantiles(x.abs(), INPUT_QUANTILES), "positive": positive}
    return plain(found, digits=4)
