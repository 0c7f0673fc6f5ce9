"""Gradients at the ends of their type: what overflows in the friction must not reach the parameter."""

import itertools
import math

import adamp
import pytest
import torch
from optimizer_cases import (
    FRICTION,
    MEASURED,
    both_backends,
    case_of,
    every_friction,
    every_measured,
)

from friction_kernels import (
    OPTIMIZERS,
    SigSignAdamP,
    TanhSignAdamP,
    TanhSignAdamW,
    _native,
    friction_stats,
)

# Around what overflows or vanishes: a number, its product with another, its square's share of exp_avg_sq.
MAGNITUDES = {
    torch.float32: (0.0, 1e-30, 1.0, 1e20, 3e38),
    torch.float64: (0.0, 1e-200, 1.0, 1e155, 1.5e308),
    torch.bfloat16: (0.0, 1e-30, 1.0, 1e20, 3e38),
    torch.float16: (0.0, 6e-8, 1.0, 65504.0),
}
# The native kernels of each instruction set, and the equations.
KERNELS = (*_native.instruction_sets(), "reference")
INPUTS = ("product", "normalized")


def inputs_of(name: str) -> list[dict]:
    return [{"friction_input": kind} for kind in INPUTS] if name in FRICTION else [{}]


of_each_input = pytest.mark.parametrize(
    ("name", "friction_input"),
    [case_of(name, given) for name in MEASURED for given in inputs_of(name)],
)


def gradients_in_turn(dtype: torch.dtype) -> torch.Tensor:
    """Every three gradients, one after the other: [3, cases]."""
    values = [sign * x for x in MAGNITUDES[dtype] for sign in (1, -1) if x or sign > 0]
    return torch.tensor(list(itertools.product(values, repeat=3)), dtype=torch.float64).T.to(dtype)


def after_each(opt, param, grads) -> torch.Tensor:
    points = []
    for grad in grads:
        param.grad = grad.reshape(param.shape).to(param.dtype)
        opt.step()
        points.append(param.detach().reshape(-1).clone())
    return torch.stack(points)


def ours_after_each(name, kernels, grads, shape=None, param=None, **options) -> torch.Tensor:
    backend = "reference"
    if kernels != "reference":
        _native.use_instruction_set(kernels)
        backend = "native"
    start = torch.ones(grads.shape[1], dtype=grads.dtype) if param is None else param
    leaf = torch.nn.Parameter(start.reshape(shape or start.shape).clone())
    return after_each(OPTIMIZERS[name]([leaf], backend=backend, **options), leaf, grads)


def torchs_after_each(name: str, grads, *, half_rate: bool = False, **options) -> torch.Tensor:
    """What the friction is added to, in the type the arithmetic runs in."""
    wide = torch.promote_types(grads.dtype, torch.float32)
    leaf = torch.nn.Parameter(torch.ones(grads.shape[1], dtype=wide))
    cls = torch.optim.Adam if name.endswith("Grad") else torch.optim.AdamW
    factor = 0.5 if half_rate else 1.0
    opt = cls([leaf], lr=1e-3 * factor, weight_decay=0.0, foreach=False, **options)
    return after_each(opt, leaf, grads)


@pytest.mark.parametrize("dtype", MAGNITUDES, ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
@every_measured
def test_a_parameter_is_finite_where_adams_is(name, kernels, dtype):
    grads = gradients_in_turn(dtype)
    for eps, betas in ((1e-8, (0.9, 0.999)), (0.0, (0.9, 0.999)), (1e-8, (0.0, 0.0))):
        theirs = torchs_after_each(name, grads, eps=eps, betas=betas)
        assert theirs.isfinite().any()
        for friction_input, beta3 in itertools.product(inputs_of(name), (0.0, 1.0, 1e10)):
            options = {"eps": eps, "betas": betas, "beta3": beta3, "weight_decay": 0.0}
            ours = ours_after_each(name, kernels, grads, **friction_input, **options)
            bad = theirs.isfinite() & ~ours.isfinite()
            assert not bad.any(), (options, friction_input, grads[:, bad.any(dim=0)][:, 0].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kernels", KERNELS)
@of_each_input
def test_without_friction_any_gradient_does_as_in_adam(name, kernels, friction_input, dtype):
    grads = gradients_in_turn(dtype)
    theirs = torchs_after_each(name, grads, half_rate=not name.startswith("Tanh"))
    options = {"beta3": 0.0, "weight_decay": 0.0, **friction_input}
    ours = ours_after_each(name, kernels, grads, **options)
    finite, tolerance = theirs.isfinite(), 8 * torch.finfo(dtype).eps
    assert finite.double().mean() > 0.99  # torch's average overflows between opposite extremes
    torch.testing.assert_close(ours[finite], theirs[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("state_dtype", ["bf16", "8bit"])
@pytest.mark.parametrize("friction_input", INPUTS)
@both_backends
def test_states_in_few_bits_do_not_change_that(backend, friction_input, state_dtype):
    """Blocks of one gradient each, whose square does not overflow."""
    values = [sign * x for x in (1.0, 1e20) for sign in (1, -1)]
    turns = torch.tensor(list(itertools.product(values, repeat=3)), dtype=torch.float64).T.float()
    grads = turns.repeat_interleave(256, dim=1)
    for beta3 in (0.0, 1.0):
        ours = ours_after_each(
            "TanhSignAdamW",
            "reference" if backend == "reference" else _native.instruction_set(),
            grads,
            beta3=beta3,
            friction_input=friction_input,
            state_dtype=state_dtype,
        )
        assert ours.isfinite().all()


@pytest.mark.parametrize("kernels", KERNELS)
@of_each_input
def test_a_nan_gradient_gives_nan(name, kernels, friction_input):
    grads = torch.tensor([[1.0, 1.0], [math.nan, 1.0], [1.0, 1.0]])
    for beta3 in (0.0, 1.0):
        ours = ours_after_each(name, kernels, grads, beta3=beta3, **friction_input)
        assert ours[1:, 0].isnan().all() and ours[:, 1].isfinite().all()


@pytest.mark.parametrize("kernels", KERNELS)
@every_friction
def test_normalized_friction_is_right_where_its_product_overflows(name, kernels):
    """Powers of two change no bit, until exp_avg_sq itself overflows."""
    grads = torch.randn(6, 40, generator=torch.Generator().manual_seed(3))
    options = {"friction_input": "normalized", "eps": 0.0, "weight_decay": 0.0}
    plain, large = (
        ours_after_each(name, kernels, scale * grads, **options) for scale in (1.0, 2.0**66)
    )
    assert torch.equal(plain, large)


@pytest.mark.parametrize("friction_input", INPUTS)
@both_backends
def test_friction_statistics_are_those_of_the_limit(backend, friction_input):
    def mean_after(*grads: float, **options) -> float:
        param = torch.nn.Parameter(torch.zeros(5))
        opt = TanhSignAdamW([param], backend=backend, friction_input=friction_input, **options)
        for grad in grads:
            param.grad = torch.full((5,), grad)
            stats = friction_stats(opt)
            opt.step()
        return stats[0].mean

    assert mean_after(1e25, 1e25, beta3=0.0) == 1.0
    product = friction_input == "product"
    # A normalizer that overflowed, too, leaves nothing to go by.
    assert mean_after(1e25, 1e25) == (2.0 if product else 1.0)
    assert mean_after(1e25, -1e25) == (0.0 if product else 1.0)
    expected = 2.0 if product else math.tanh(1.0) + 1
    assert mean_after(1e20, 1e20) == pytest.approx(expected, rel=1e-6)
    assert math.isnan(mean_after(1.0, math.nan))


# AdamP


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("friction_input", INPUTS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_a_projected_matrix_is_finite_where_adamps_is(kernels, friction_input, nesterov):
    values = torch.tensor([s * x for x in MAGNITUDES[torch.float32] for s in (1.0, -1.0)])
    generator = torch.Generator().manual_seed(8)
    finite = 0
    for case in range(60):
        grads = values[torch.randint(len(values), (3, 6), generator=generator)]
        if case % 2:  # most gradients stay as they are in one step
            grads[1:] = grads[0]
        start = torch.randn(2, 3, generator=generator)
        options = {"eps": 1e-8, "delta": (0.1, 1.0, 100.0)[case % 3], "nesterov": nesterov}
        leaf = torch.nn.Parameter(start.clone())
        theirs = after_each(adamp.AdamP([leaf], **options), leaf, grads)
        ours = ours_after_each(
            *("TanhSignAdamP", kernels, grads, (2, 3), start),
            friction_input=friction_input,
            **options,
        )
        assert (ours.isfinite() | ~theirs.isfinite()).all(), grads
        finite += int(theirs.isfinite().sum())
    assert finite > 500


@pytest.mark.parametrize("shape", [(6, 5), (4, 40), (3, 3000)])
@pytest.mark.parametrize("delta", [0.1, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("kernels", KERNELS)
def test_adamps_verdict_does_not_depend_on_the_gradients_scale(kernels, delta, shape):
    """Powers of two change no bit of u; squares and products with them overflow in float32."""
    generator = torch.Generator().manual_seed(2)
    start, grads = (torch.randn(n, *shape, generator=generator) for n in (1, 3))
    plain, large = (
        ours_after_each(
            *("TanhSignAdamP", kernels, (scale * grads).flatten(1), shape, start[0]),
            beta3=0.0,
            eps=0.0,
            delta=delta,
            lr=0.1,
        )
        for scale in (1.0, 2.0**66)
    )
    torch.testing.assert_close(plain, large, rtol=1e-5, atol=1e-6)


@both_backends
@pytest.mark.parametrize("cls", [SigSignAdamP, TanhSignAdamP])
@pytest.mark.parametrize("state_dtype", [None, "8bit"])
def test_a_huge_parameter_is_projected_as_in_float64(cls, state_dtype, backend):
    """Its squares overflow in float32, and its product with the step does."""
    values = []
    for dtype in (torch.float32, torch.float64):
        start = torch.linspace(-1e25, 1e25, 600, dtype=torch.float64).reshape(2, 300).to(dtype)
        param = torch.nn.Parameter(start)
        kept = state_dtype if dtype == torch.float32 else None
        options = {"lr": 1e24, "delta": 100.0, "weight_decay": 0.0, "backend": backend}
        opt = cls([param], state_dtype=kept, **options)
        param.grad = torch.ones(2, 300, dtype=dtype)
        opt.step()
        values.append(param.detach().double())
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e19)


SPECIAL_BITS = {
    torch.float32: (0x0, 0x1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000),
    torch.float64: (0x0, 0x1, (1 << 52) - 1, 1 << 52, 1023 << 52, (2047 << 52) - 1, 2047 << 52),
}
# The first and last signalling and quiet NaN, and those that CPUs and GPUs make.
NAN_BITS = {
    torch.float32: (0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0x7FC00001, 0x7FFFFFFF),
    torch.float64: (
        (2047 << 52) + 1,
        (4095 << 51) - 1,
        4095 << 51,
        (4095 << 51) + 1,
        (1 << 63) - 1,
    ),
}


def of_bits(bits: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Those numbers and their negatives."""
    integer, size = {torch.float32: (torch.int32, 32), torch.float64: (torch.int64, 64)}[dtype]
    negative = tuple(each - (1 << size - 1) for each in bits)
    return torch.tensor(bits + negative, dtype=integer).view(dtype)


@pytest.mark.parametrize("dtype", NAN_BITS, ids=str)
@pytest.mark.parametrize("friction_input", INPUTS)
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_nan_is_one_whatever_its_bits(kernels, friction_input, dtype):
    """In a gradient it makes everything NaN; in the previous gradient it is no friction, as 0 is."""
    nans, special = of_bits(NAN_BITS[dtype], dtype), of_bits(SPECIAL_BITS[dtype], dtype)
    assert nans.isnan().all() and not special.isnan().any()
    numbers = torch.cat([nans, special])
    pairs = torch.cartesian_prod(numbers, numbers)

    def step(previous: torch.Tensor) -> dict[str, torch.Tensor]:
        """From previous gradients, and the second of each pair as gradient."""
        leaf = torch.nn.Parameter(torch.ones(len(pairs), dtype=dtype))
        backend = "reference" if kernels == "reference" else "native"
        if backend == "native":
            _native.use_instruction_set(kernels)
        opt = TanhSignAdamW([leaf], friction_input=friction_input, backend=backend)
        after_each(opt, leaf, [torch.ones(len(pairs), dtype=dtype)])
        opt.state[leaf]["prev_grad"].copy_(previous)
        after_each(opt, leaf, [pairs[:, 1]])
        return {"param": leaf.detach(), **opt.state[leaf]}

    found = step(pairs[:, 0])
    for key in ("param", "exp_avg", "exp_avg_sq", "prev_grad"):
        assert torch.equal(found[key].isnan() & pairs[:, 1].isnan(), pairs[:, 1].isnan()), key
    unknown = pairs[:, 0].isnan() & ~pairs[:, 1].isnan()
    without = step(pairs[:, 0].nan_to_num(0.0, math.inf, -math.inf))
    for key, tensor in found.items():
        if key != "step":
            assert torch.equal(
                tensor[unknown].nan_to_num(77.0), without[key][unknown].nan_to_num(77.0)
            )
