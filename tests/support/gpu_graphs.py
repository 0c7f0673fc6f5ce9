"""CUDA graphs of a step: what tests/test_gpu.py captures and replays. A device without graphs runs the
same steps eagerly, which proves the schedules and the comparisons."""

from collections.abc import Callable

import torch
from gpu_cases import bits, make, new_gradients, same_bits

from friction_kernels import OPTIMIZERS

SCHEDULE = [(1e-2, 0.1), (5e-3, 0.0), (2e-2, 0.3), (0.0, 0.1), (1e-3, 0.05)]  # lr, weight decay
SHAPES = [(3, 4), (2049,), (64, 40), (), (3, 700)]
MANY = [(5,)] * 700  # more than a launch's parameters hold


def on_device(number: float, device: str) -> torch.Tensor:
    return torch.tensor(number, dtype=torch.float64, device=device)


def settings(device: str | None) -> dict:
    """As tensors that a graph reads; None: as numbers, which it keeps."""
    lr, decay = SCHEDULE[0]
    if device is None:
        return {"lr": lr, "weight_decay": decay}
    return {"lr": on_device(lr, device), "weight_decay": on_device(decay, device)}


def set_schedule(opt, lr: float, decay: float) -> None:
    for group in opt.param_groups:
        for name, value in (("lr", lr), ("weight_decay", decay)):
            if isinstance(group[name], torch.Tensor):
                group[name].fill_(value)
            else:
                group[name] = value


def capture(opt) -> Callable[[], None]:
    """The step as a graph, not yet run."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        opt.step()
    opt.captured = graph  # lives as long
    return graph.replay


def through_schedule(name, device, shapes, *, capturable, graphed, layout="contiguous", **options):
    """A step, then one for each entry of the schedule."""
    params = make(shapes, device, layout=layout)
    numbers = settings(device if capturable else None)
    opt = OPTIMIZERS[name](
        params, backend="native", capturable=capturable, **{**options, **numbers}
    )
    opt.step()
    step = capture(opt) if graphed else opt.step
    for number, (lr, decay) in enumerate(SCHEDULE):
        set_schedule(opt, lr, decay)
        new_gradients(params, number)
        step()
    return bits(opt, params)


def check_schedule(name, device, shapes=SHAPES, graphed=True, **options) -> None:
    replayed = through_schedule(name, device, shapes, capturable=True, graphed=graphed, **options)
    eager = through_schedule(name, device, shapes, capturable=True, graphed=False, **options)
    numbers = through_schedule(name, device, shapes, capturable=False, graphed=False, **options)
    assert same_bits(replayed, eager)
    assert same_bits(replayed, numbers)


def check_eager_steps_between(name, device, graphed=True, shapes=MANY, layout="contiguous"):
    """Eager steps over other gradients, and over fewer of them, leave a captured graph as it was."""
    found = []
    for as_graph in (graphed, False):
        params = make(shapes, device, layout=layout)
        opt = OPTIMIZERS[name](params, backend="native", capturable=True, **settings(device))
        opt.step()
        step = capture(opt) if as_graph else opt.step
        captured = [param.grad for param in params]
        for number in range(3):
            new_gradients(params, number)
            step()
            if number == 0:  # other addresses
                others = [param.grad.clone() for param in params]
            elif number == 1:  # and a list of others
                others = [None if i % 3 else param.grad for i, param in enumerate(params)]
            else:
                continue
            for param, other in zip(params, others, strict=True):
                param.grad = other
            opt.step()
            for param, grad in zip(params, captured, strict=True):
                param.grad = grad
        found.append(bits(opt, params))
    assert same_bits(*found)
