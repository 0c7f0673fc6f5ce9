"""Drives native plans without an optimizer: parameters and states in every form they may be stored in."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from friction_kernels import OPTIMIZERS, backends

BLOCK, CHUNK = 256, 2048  # kBlock of csrc/formats/blockwise.h, kChunk of csrc/tensor_lists.h
STATES = {cls.rule.name: tuple(cls.rule.states) for cls in OPTIMIZERS.values()}
PROJECTED = {cls.rule.name for cls in OPTIMIZERS.values() if cls.rule.projects_rows}
SETTINGS = {
    "lr": 1e-2,
    "beta1": 0.9,
    "beta2": 0.999,
    "beta3": 1.0,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "delta": 0.1,
    "wd_ratio": 0.1,
    "momentum": 0.9,
    "tanh": 0.0,
    "normalized": 0.0,
    "difference": 0.0,
    "averages": 1.0,
    "decoupled": 1.0,
    "maximize": 0.0,
    "nesterov": 0.0,
    "grad_factor": 1.0,
    "max_norm": math.inf,
    "seed": 7.0,
}
QUANTIZED = torch.uint8  # the type of a state that stands for 8 bits an element
MASTERS = {"split": torch.int16, "split8": torch.int8, "fp32": torch.float32}


@dataclass(frozen=True)
class Form:
    """How a parameter's lists are stored. states: one type for all, or one for each."""

    shape: tuple[int, ...]
    param: torch.dtype = torch.float32
    grad: torch.dtype | None = None  # None: the parameter's
    states: tuple[torch.dtype, ...] | torch.dtype = torch.float32
    master: str | None = None
    stochastic: bool = False
    shard: tuple[int, int, int] | None = None  # offset, row length, row stride in the whole
    layout: str = "contiguous"  # of parameter, gradient and master
    scale: float = 1.0  # of gradients
    group: int = 0
    takes: bool = False  # its gradient is taken


def quantized_bytes(numel: int) -> int:
    blocks = -(-numel // BLOCK)
    return -(-4 * blocks // 16) * 16 + numel


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    if layout == "gaps":
        return torch.stack([tensor, torch.full_like(tensor, 77)], dim=-1)[..., 0]
    if layout == "deep" and tensor.dim() > 0:  # no two dimensions of it are one
        room = tensor.new_full([2 * size for size in tensor.shape], 77)
        view = room[(slice(None, None, 2),) * tensor.dim()]
        return view.copy_(tensor)
    if layout == "offset":  # one element off any vector's alignment
        return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
    return tensor


class Driven:
    """Parameters of some forms, driven by one plan. on_device: a GPU counts the steps."""

    def __init__(
        self,
        rule: str,
        forms: list[Form],
        seed: int = 0,
        on_device: bool = False,
        device: str = "cpu",
    ):
        self.rule, self.device = rule, device
        self.generator = torch.Generator().manual_seed(seed)
        self.params, self.state, entries = [], {}, []
        groups = 1 + max(form.group for form in forms)
        self.param_groups = [{"params": []} for _ in range(groups)]
        for ordinal, form in sorted(enumerate(forms), key=lambda pair: pair[1].group):
            start = self.random(form.shape).to(device, form.param)
            param = nn.Parameter(lay_out(start, form.layout))
            numel, kinds = param.numel(), form.states
            kinds = kinds if isinstance(kinds, tuple) else (kinds,) * len(STATES[rule])
            # Where the host stands for a GPU, what has dimensions is the GPU's.
            step = torch.zeros((1,), device=device) if on_device else torch.zeros(())
            state = {"step": step}
            for key, kind in zip(STATES[rule], kinds, strict=True):
                state_shape = quantized_bytes(numel) if kind == QUANTIZED else form.shape
                state[key] = torch.zeros(state_shape, dtype=kind, device=device)
            key = None
            if form.master is not None:
                key = "master" if form.master == "fp32" else "residual"
                wide = param.detach() if key == "master" else torch.zeros_like(param)
                state[key] = lay_out(wide.to(MASTERS[form.master]).contiguous(), form.layout)
            shard = form.shard or (0, numel, numel)
            rounding = (ordinal, *shard) if form.stochastic else None
            self.params.append(param)
            self.state[param] = state
            self.param_groups[form.group]["params"].append(param)
            entries.append((param, state, form.group, True, key, rounding, form.takes))
        self.forms = sorted(forms, key=lambda form: form.group)
        reader = backends.tensor_reader()
        self.kept = []
        self.plan = getattr(backends.native, rule)(
            reader, entries, backends.device_bytes, self.kept
        )

    def random(self, shape) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def new_gradients(self) -> None:
        for param, form in zip(self.params, self.forms, strict=True):
            grad = self.random(form.shape) * form.scale * 10 ** (self.random(form.shape) - 1)
            grad = grad.to(self.device, form.grad or form.param)
            if grad.dtype != param.dtype:
                param.grad_dtype = grad.dtype
            param.grad = lay_out(grad, form.layout)

    def settings(self, *groups: dict) -> list[list[float]]:
        groups = groups or ({},) * len(self.param_groups)
        return [
            [float({**SETTINGS, **group}[name]) for name in self.plan.settings] for group in groups
        ]

    def step(self, *groups: dict, scaling=(), threads: int = 1):
        with backends.native.Reading(self.plan, self.state, self.param_groups) as problem:
            return problem or self.plan.step(self.settings(*groups), threads, list(scaling))

    def statistics(self, *groups: dict, scaling=()) -> list[tuple[int, float, float]]:
        with backends.native.Reading(self.plan, self.state, self.param_groups) as problem:
            assert problem is None, problem
            sums, problem = self.plan.statistics(self.settings(*groups), 1, list(scaling))
        assert problem is None, problem
        return sums

    def squared_norm(self, counted: list[bool], targets: list[tuple[int, Tensor]]):
        with backends.native.Reading(self.plan, self.state, self.param_groups) as problem:
            return problem or self.plan.squared_norm(counted, targets, 1)

    def lists(self) -> list[Tensor]:
        """Everything a step may change."""
        found = []
        for param in self.params:
            found += [param.detach(), *self.state[param].values()]
        return found

    def bits(self) -> list[bytes]:
        return [bits_of(tensor) for tensor in self.lists()]

    def numbers(self) -> list[bytes]:
        """The bits of numbers, of which all NaN are alike: a GPU has other bits for them. So are all codes
        of a block whose scale is not finite."""
        found = []
        for param in self.params:
            tensors = [param.detach(), *self.state[param].values()]
            found += [bits_of(with_one_nan(tensor, param.numel())) for tensor in tensors]
        return found


def bits_of(tensor: Tensor) -> bytes:
    return torch.cat([tensor.reshape(-1)]).view(torch.uint8).cpu().numpy().tobytes()


def with_one_nan(tensor: Tensor, numel: int) -> Tensor:
    if tensor.dtype.is_floating_point:
        return tensor.where(~tensor.isnan(), math.nan)
    if tensor.dtype != QUANTIZED:
        return tensor
    tensor = tensor.clone()
    blocks = -(-numel // BLOCK)
    scales = tensor[: 4 * blocks].view(torch.float32)
    codes = tensor[len(tensor) - numel :]
    codes[~scales.isfinite().repeat_interleave(BLOCK)[:numel]] = 0
    scales[scales.isnan()] = math.nan
    return tensor


def variants(form: Form, **changes) -> list[Form]:
    """The form with each of the values that a field may take."""
    [(field, values)] = changes.items()
    return [replace(form, **{field: value}) for value in values]
