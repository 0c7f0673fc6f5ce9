"""What is counted rather than timed: launches, operators, kernels on a card, arithmetic operations."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from friction_kernels import count_launches

# Arithmetic operations an element of the largest operand; a root, a quotient and an exponential are one.
# sigmoid: exponential, sum, quotient, sign. tanh: the same of twice the argument, doubled, less one.
ELEMENTWISE = {
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "neg", "sqrt", "square", "abs", "pow"), 1),
    **dict.fromkeys(("clamp_min", "maximum", "exp", "reciprocal", "sum", "amax", "max", "lt"), 1),
    "addcmul": 3,
    "addcdiv": 3,
    "lerp": 3,
    "sigmoid": 4,
    "tanh": 7,
    "linalg_vector_norm": 2,
}
# Which move, look or make, and compute nothing.
NOTHING = frozenset(
    (
        *("copy_", "clone", "view", "_unsafe_view", "reshape", "detach", "alias", "expand", "t"),
        *("unsqueeze", "squeeze", "slice", "select", "as_strided", "zeros", "zeros_like", "ones"),
        *("ones_like", "empty", "empty_like", "new_zeros", "new_empty", "full", "full_like"),
        *("zero_", "fill_", "scalar_tensor", "_to_copy", "to", "lift_fresh", "is_nonzero", "item"),
        *("_local_scalar_dense", "promote_types", "isnan", "nan_to_num", "where"),
    )
)


class UncountableError(Exception):
    """Nobody said how many operations something is."""


class Arithmetic(TorchDispatchMode):
    """Counts the arithmetic operations of elementwise torch code; refuses what it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        bare = name.rstrip("_")
        if name.startswith("profiler::") or name in NOTHING or bare in NOTHING:
            return result
        if bare not in ELEMENTWISE:
            raise UncountableError(f"how many operations aten::{name} is")
        tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
        scaled = (kwargs or {}).get("alpha", 1) != 1 or (bare == "add" and len(args) > 2)
        self.operations += (ELEMENTWISE[bare] + scaled) * max(t.numel() for t in tensors)
        return result


def arithmetic_per_parameter(build: Callable[[list], Any], shape: tuple[int, ...]) -> float:
    """Of an optimizer's step in plain torch, on one parameter of this shape."""
    torch.manual_seed(0)
    param = torch.randn(shape, requires_grad=True)
    param.grad = torch.randn(shape)
    opt = build([param])
    opt.step()  # makes its states
    with Arithmetic() as counted:
        opt.step()
    if counted.operations == 0:
        raise UncountableError("nothing of it is torch's operators")
    return counted.operations / prod(shape)


# Shapes of an operator's arguments -> its operations; torch counts products that are not in place.


def _product(a: tuple, b: tuple, *_, **__) -> float:
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)


def _added_product(_: tuple, a: tuple, b: tuple, *__, **___) -> float:
    return _product(a, b)


def _solve(a: tuple, b: tuple, *_, **__) -> float:
    n = a[-1]
    return 2 / 3 * n**3 + 2 * n * prod(b)


def _factors(a: tuple, *_, **__) -> float:
    return 2 / 3 * a[-1] ** 3


def _solve_with_factors(factors: tuple, _: tuple, b: tuple, *__, **___) -> float:
    return 2 * factors[-1] * prod(b)


@contextmanager
def matrix_operations() -> Iterator[FlopCounterMode]:
    """Afterwards .get_total_flops() has those of matrix products, factors and solves in torch's operators.

    Nothing elementwise is counted.
    """
    aten = torch.ops.aten
    more = {
        aten.mv: _product,
        aten.addmm_: _added_product,
        aten.addmv: _added_product,
        aten.addmv_: _added_product,
        aten._linalg_solve_ex: _solve,
        aten.linalg_lu_factor_ex: _factors,
        aten.linalg_lu_solve: _solve_with_factors,
    }
    with FlopCounterMode(display=False, custom_mapping=more) as counted:
        yield counted


def launches_of(step: Callable[[], object]) -> dict[str, int]:
    with count_launches() as launches:
        step()
    return dict(launches)


class Operators(TorchDispatchMode):
    """Counts what torch dispatches, whatever that calls in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func._schema.name.startswith("profiler::")
        return func(*args, **(kwargs or {}))


def operators_of(step: Callable[[], object]) -> int:
    with Operators() as counted:
        step()
    return counted.count


def kernels_of(step: Callable[[], object]) -> dict[str, int]:
    """What the profiler saw on the card during a step; copies and memsets too."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        step()
        torch.cuda.synchronize()
    on_device = (e.name for e in profiler.events() if e.device_type == DeviceType.CUDA)
    # torch annotates optimizers' steps on the device's side, too.
    return dict(Counter(name.split("<")[0][:60] for name in on_device if "step#" not in name))
