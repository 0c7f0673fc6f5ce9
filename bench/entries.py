"""Contenders ready to step, each on its own parameters that share memory with the others'.

All contenders share one set of parameters, gradients and moments, so that a machine holds any model once,
whatever the contenders: no time depends on the values, which stay finite, and no list fits a cache.
"""

import torch
from torch import Tensor

from bench.contenders import CompiledEquations, Contender, Copy
from bench.memory import memory_of
from bench.shapes import Shape, miniature

WARMUP_STEPS = 3
ALIKE = {"momentum_buffer": "exp_avg"}  # states that may share memory with others of the type
COMPARED_STEPS = 3
Tensors = tuple[list[Tensor], list[Tensor]]


def tensors_of(shapes: list[Shape], device: str, dtype: torch.dtype) -> Tensors:
    """Parameter values and gradients of a plausible size, random: zeros would be faster."""
    torch.manual_seed(0)

    def random(scale: float) -> list[Tensor]:
        return [torch.randn(s, device=device, dtype=dtype).mul_(scale) for s in shapes]

    return random(0.02), random(0.01)


class Pool:
    """The moments that all contenders share: the first optimizer's that has them."""

    def __init__(self) -> None:
        self.lists: dict[tuple[str, torch.dtype], list[Tensor]] = {}

    def has(self, key: str, state: object) -> bool:
        """No subclasses: torchao's are codes that say they were float32."""
        return type(state) is Tensor and (ALIKE.get(key, key), state.dtype) in self.lists

    def give(self, opt: object, params: list[Tensor]) -> None:
        states = getattr(opt, "state", {})
        keys = [key for key in states[params[0]] if key != "step"] if states else []
        for key in keys:
            own = [states[param].get(key) for param in params]
            pairs = zip(own, params, strict=True)
            if all(type(tensor) is Tensor and tensor.shape == p.shape for tensor, p in pairs):
                shared = self.lists.setdefault((ALIKE.get(key, key), own[0].dtype), own)
                for param, tensor in zip(params, shared, strict=True):
                    states[param][key] = tensor


class Entry:
    """A contender ready to step."""

    def __init__(self, contender: Contender, tensors: Tensors, pool: Pool) -> None:
        values, self.grads = tensors
        self.contender, self.name, self.slow = contender, contender.name, contender.slow
        self.new_gradients, self.repeats = contender.new_gradients, 1
        self.params = [value.detach().requires_grad_() for value in values]
        for param, grad in zip(self.params, self.grads, strict=True):
            param.grad = grad
        self.opt = contender.build(self.params)
        self.step = self.opt.step
        self.step()
        pool.give(self.opt, self.params)
        if isinstance(self.opt, CompiledEquations):
            self.opt.flatten()
        for _ in range(1 if contender.slow else WARMUP_STEPS):
            self.step()
        if contender.graphed:
            torch.cuda.synchronize()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.opt.step()
            self.step = self.graph.replay
            self.step()

    def prepare(self) -> None:
        if self.new_gradients:
            # Cloned while the last ones still live, so that their addresses change too.
            for param, grad in zip(self.params, self.grads, strict=True):
                param.grad = grad.clone()

    def moved(self, device: str) -> float:
        """Bytes of an ideal step: what is kept is read and written once, and some lists are read besides."""
        if isinstance(self.opt, Copy):
            return self.opt.moved
        sizes = {name: size for name, size in memory_of(self.opt).sizes.items() if name != "step"}
        parameter = sizes["parameter"]
        lists = {"p": parameter, "g": parameter, "s": sum(sizes.values()) - parameter}
        return 2 * sum(sizes.values()) + sum(lists[x] for x in self.contender.lists(device))


def difference(contender: Contender, other: Contender, device: str, dtype: torch.dtype) -> float:
    """After some steps from the same parameters: the largest difference over the largest movement."""
    moved = []
    for each in (contender, other):
        values, grads = tensors_of(miniature(), device, dtype)
        params = [value.clone().requires_grad_() for value in values]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        opt = each.build(params)
        for _ in range(COMPARED_STEPS):
            opt.step()
        moved.append([(p.detach() - v).float() for p, v in zip(params, values, strict=True)])
    largest = max(theirs.abs().max().item() for theirs in moved[1])
    apart = max((a - b).abs().max().item() for a, b in zip(*moved, strict=True))
    return apart / largest
