"""The error rule: error against float64 may not exceed that of the plain torch expression in the same
types, by more than a stated tolerance."""

import torch
from torch import Tensor

# In units of the arithmetic's rounding error: of what is stored, and of the change a step makes, whose
# friction exp(-x) amplifies the rounding of its argument by |x| (up to 87 before S underflows in float32,
# and 709 in float64).
STORED_ULPS = 4
CHANGE_ULPS = {torch.float32: 128, torch.float64: 1024}


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def assert_as_good_as_plain(
    name: str,
    ours: Tensor,
    plain: Tensor,
    exact: Tensor,
    start: Tensor,
    magnitude: Tensor,
    dtype: torch.dtype,
) -> None:
    """Raise where `ours` breaks the rule.

    ours, plain: results in the same types; exact: the result in float64; start: the value before the
    step; magnitude: the result in float64 from the inputs' absolute values, whose change is the size of
    the terms that a step adds up and that may cancel; dtype: the parameter's.
    """
    if exact.numel() == 0:
        return
    if exact.is_complex():
        ours, plain, exact, start, magnitude = map(
            torch.view_as_real, (ours, plain, exact, start, magnitude)
        )
    ours_error = (ours.double() - exact).abs()
    plain_error = (plain.double() - exact).abs().max()
    compute = arithmetic(dtype)
    stored = torch.finfo(ours.dtype).eps * STORED_ULPS * (exact.abs() + start.double().abs())
    terms = (magnitude - start.double().abs()).abs()
    change = torch.finfo(compute).eps * CHANGE_ULPS[compute] * terms
    tolerance = stored + change + 4 * torch.finfo(ours.dtype).smallest_normal
    excess = ours_error - plain_error - tolerance
    worst = excess.argmax()
    assert excess.max() <= 0, (
        f"{name}: {ours.flatten()[worst]} where {exact.flatten()[worst]} is exact and "
        f"plain torch gives {plain.flatten()[worst]}"
    )
