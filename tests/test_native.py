"""The native kernels against the equations, over everything a user may give them."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optimizer_cases import ADAMS, each_of, every_optimizer
from tolerances import assert_as_good_as_plain

from friction_kernels import OPTIMIZERS, RSGDM, _native

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64)
LAYOUTS = ("contiguous", "reversed", "offset", "gaps", "channels_last")
CHUNK = 2048  # kChunk of csrc/tensor_lists.h

shapes = st.one_of(
    st.lists(st.integers(0, 9), max_size=4).map(tuple),
    st.sampled_from(
        [(), (1,), (0,), (3, 0), (CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (2, CHUNK), (3, CHUNK + 1)]
    ),
    st.sampled_from(
        [(255, 3), (7, 1, 123), (1, 5000), (5000, 1), (13, 509), (2, 3, 5, 7), (64, 3, 3, 3)]
    ),
)


@dataclass(frozen=True)
class TensorCase:
    shape: tuple[int, ...]
    dtype: torch.dtype
    param_layout: str
    grad_layout: str
    state_layout: str
    group: int
    param_scale: float
    grad_scale: float
    has_grad: bool


tensor_cases = st.builds(
    TensorCase,
    shape=shapes,
    dtype=st.sampled_from(DTYPES),
    param_layout=st.sampled_from(LAYOUTS),
    grad_layout=st.sampled_from(LAYOUTS),
    state_layout=st.sampled_from(LAYOUTS),
    group=st.integers(0, 2),
    param_scale=st.sampled_from([1.0, 1e-3, 10.0]),
    grad_scale=st.sampled_from([1.0, 1e-4, 30.0]),
    has_grad=st.sampled_from([True, True, True, False]),
)

VALUES = {
    "lr": [1e-3, 0.1, 0.0],
    "betas": [(0.9, 0.999), (0.0, 0.0), (0.5, 0.9), (0.99, 0.5)],
    "beta3": [1.0, 0.0, 5.0, 1000.0],
    "eps": [1e-8, 1e-3],
    "momentum": [0.9, 0.0, 0.5, 0.999],
    "weight_decay": [0.0, 0.01, 1.0],
    "decoupled_weight_decay": [False, True],
    "friction_input": ["product", "normalized"],
    "delta": [0.1, 1.0, 3.0, 100.0],
    "wd_ratio": [0.1, 1.0],
    "nesterov": [False, True],
    "maximize": [False, True],
}


def options_of(name: str, **values: list) -> st.SearchStrategy[dict]:
    """A group's options, of VALUES or of those given instead."""
    own = set(inspect.signature(OPTIMIZERS[name]).parameters)
    if name == "Adam":
        own.remove("decoupled_weight_decay")  # only False
    choices = {key: st.sampled_from(some) for key, some in (VALUES | values).items() if key in own}
    return st.fixed_dictionaries(choices).filter(
        lambda options: options.get("momentum") != 0 or not options.get("nesterov")
    )


@st.composite
def steps(draw) -> tuple:
    name = draw(st.sampled_from(sorted(OPTIMIZERS)))
    options = options_of(name)
    cases = draw(st.lists(tensor_cases, min_size=1, max_size=5))
    groups = draw(st.lists(options, min_size=3, max_size=3))
    instruction_set = draw(st.sampled_from(_native.instruction_sets()))
    step = draw(st.sampled_from([0, 1, 7, 1000]))
    return (
        name,
        cases,
        groups,
        instruction_set,
        draw(st.integers(1, 2)),
        step,
        draw(st.integers(0, 9999)),
    )


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """A copy in other strides."""
    tensor = tensor.clone()
    if layout == "reversed":  # a transpose, where there are two dimensions
        backwards = tuple(reversed(range(tensor.dim())))
        return tensor.permute(backwards).contiguous().permute(backwards)
    if layout == "offset":  # one element off any vector's alignment
        return torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
    if layout == "gaps":
        return torch.stack([tensor, torch.full_like(tensor, 77.0)], dim=-1)[..., 0]
    if layout == "channels_last" and tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor.contiguous()


def random(case: TensorCase, scale: float, generator: torch.Generator) -> torch.Tensor:
    dtype = torch.complex128 if case.dtype.is_complex else torch.float64
    return (torch.randn(case.shape, dtype=dtype, generator=generator) * scale).to(case.dtype)


def default_type(param: torch.Tensor, wide: bool) -> torch.dtype:
    """Of a state, where no option asks for another."""
    return torch.promote_types(param.dtype, torch.float32) if wide else param.dtype


class Twins:
    """One optimizer of each backend, and the equations in float64, from the same start."""

    def __init__(self, name, cases, groups, step, seed):
        self.cls = OPTIMIZERS[name]
        self.cases = [case for case in cases if case.group < 3]
        self.group_options = groups
        generator = torch.Generator().manual_seed(seed)
        self.values = []
        for case in self.cases:
            param, grad = (
                random(case, scale, generator) for scale in (case.param_scale, case.grad_scale)
            )
            state = {
                key: random(case, case.grad_scale, generator).to(default_type(param, wide))
                for key, wide in self.cls.rule.states.items()
            }
            if "exp_avg_sq" in state:
                squares = state["exp_avg_sq"]
                if squares.is_complex():
                    squares = torch.view_as_complex(torch.view_as_real(squares).square())
                else:
                    squares = squares.square()
                state["exp_avg_sq"] = squares
            state["step"] = torch.tensor(float(step))
            self.values.append((param, grad, state))

    @staticmethod
    def caster(case: TensorCase, exact: bool, magnitude: bool):
        if not exact:
            return lambda tensor: tensor

        def cast(tensor: torch.Tensor) -> torch.Tensor:
            if not case.dtype.is_complex:
                return tensor.double().abs() if magnitude else tensor.double()
            pairs = torch.view_as_real(tensor.to(torch.complex128))
            return torch.view_as_complex(pairs.abs() if magnitude else pairs)

        return cast

    def run(
        self, backend: str, exact: bool = False, magnitude: bool = False
    ) -> list[tuple[torch.Tensor, dict]]:
        """Parameters and states after one step; `magnitude`: from the absolute values of all inputs."""
        options = self.group_options
        if magnitude:  # without projection, which takes away
            options = [{**group, "maximize": False} for group in options]
            options = [{**group, "delta": 0.0} if "delta" in group else group for group in options]
        params = []
        group_params = [[], [], []]
        for case, (param, grad, _) in zip(self.cases, self.values, strict=True):
            cast = self.caster(case, exact, magnitude)
            leaf = lay_out(cast(param), case.param_layout).requires_grad_()
            if case.has_grad:
                leaf.grad = lay_out(cast(grad), case.grad_layout)
            params.append(leaf)
            group_params[case.group].append(leaf)
        opt = self.cls(
            [{"params": group_params[i], "backend": backend, **options[i]} for i in range(3)]
        )
        for case, leaf, (_, _, state) in zip(self.cases, params, self.values, strict=True):
            if not case.has_grad:
                continue
            for key, value in state.items():
                if key == "step":
                    opt.state[leaf][key] = value.clone()
                else:
                    cast = self.caster(case, exact, magnitude)
                    opt.state[leaf][key] = lay_out(cast(value), case.state_layout)
        opt.step()
        return [(leaf.detach(), opt.state.get(leaf, {})) for leaf in params]


def far_from_adamps_bounds(twins: Twins, cls: type) -> bool:
    """Near |cos| = delta / sqrt(len) rounding may decide either way; such a case proves nothing."""
    if not cls.__name__.endswith("AdamP"):
        return True
    for case, (param, grad, _) in zip(twins.cases, twins.values, strict=True):
        if len(case.shape) < 2 or param.numel() == 0:
            continue
        if param.is_complex():
            param, grad = torch.view_as_real(param), torch.view_as_real(grad)
        for rows in (param.shape[0], 1):
            p, g = param.double().reshape(rows, -1), grad.double().reshape(rows, -1)
            cosine = torch.nn.functional.cosine_similarity(p, g, eps=1e-8).abs().max()
            bound = twins.group_options[case.group]["delta"] / p.shape[1] ** 0.5
            if abs(cosine / bound - 1) < 1e-3:
                return False
    return True


@given(steps())
def test_a_step_is_as_exact_as_plain_torch(example):
    name, cases, groups, instruction_set, threads, step, seed = example
    twins = Twins(name, cases, groups, step, seed)
    assume(far_from_adamps_bounds(twins, twins.cls))
    torch.set_num_threads(threads)
    _native.use_instruction_set(instruction_set)
    exact, plain, ours = (
        twins.run("reference", exact=True),
        twins.run("reference"),
        twins.run("native"),
    )
    magnitudes = twins.run("reference", exact=True, magnitude=True)
    for case, (start, _, start_state), e, p, o, m in zip(
        twins.cases, twins.values, exact, plain, ours, magnitudes, strict=True
    ):
        if not case.has_grad:
            assert torch.equal(o[0], start)
            assert not o[1]
            continue
        assert o[0].dtype == case.dtype
        assert_as_good_as_plain("param", o[0], p[0], e[0], start, m[0], case.dtype)
        for key in twins.cls.rule.states:
            assert o[1][key].dtype == start_state[key].dtype
            assert_as_good_as_plain(
                key, o[1][key], p[1][key], e[1][key], start_state[key], m[1][key], case.dtype
            )
        assert o[1]["step"].item() == step + 1


def native_steps(name: str, params, grads, group_of=None, steps: int = 3, **options):
    """Parameters and states after some steps, from the same start."""
    leaves = [p.clone().requires_grad_() for p in params]
    groups = group_of or [0] * len(leaves)
    opt = OPTIMIZERS[name](
        [
            {"params": [leaf for leaf, at in zip(leaves, groups, strict=True) if at == group]}
            for group in range(max(groups) + 1)
        ],
        backend="native",
        **options,
    )
    for step in range(steps):
        for leaf, grad in zip(leaves, grads, strict=True):
            leaf.grad = grad * (1 + step)
        opt.step()
    return [
        tensor
        for leaf in leaves
        for tensor in (leaf.detach(), *(opt.state[leaf][key] for key in opt.rule.states))
    ]


def some_tensors():
    generator = torch.Generator().manual_seed(5)
    shapes = [(300, 700), (CHUNK + 1,), (1,), (64, 32, 3, 3), (129, 1000), (5,)]
    params = [torch.randn(shape, generator=generator) for shape in shapes]
    params[3] = params[3].contiguous(memory_format=torch.channels_last)
    # Nearly orthogonal rows for some, so that AdamP projects.
    grads = [torch.randn(shape, generator=generator) for shape in shapes]
    rows = params[0]
    grads[0] -= rows * (grads[0] * rows).sum(1, keepdim=True) / (rows * rows).sum(1, keepdim=True)
    return params, grads


def same_bits(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@every_optimizer
def test_every_instruction_set_gives_the_same_bits(name):
    results = []
    for instruction_set in _native.instruction_sets():
        _native.use_instruction_set(instruction_set)
        results.append(native_steps(name, *some_tensors()))
    assert all(same_bits(results[0], other) for other in results[1:])


@every_optimizer
def test_one_and_two_threads_give_the_same_bits(name):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(native_steps(name, *some_tensors()))
    assert same_bits(*results)


@every_optimizer
@settings(max_examples=100)
@given(group_of=st.lists(st.integers(0, 3), min_size=6, max_size=6))
def test_any_split_into_groups_gives_the_same_bits(name, group_of):
    params, grads = some_tensors()
    params, grads = [p[:9] for p in params], [g[:9] for g in grads]
    whole = native_steps(name, params, grads)
    assert same_bits(whole, native_steps(name, params, grads, group_of=sorted(group_of)))
    assert same_bits(whole, native_steps(name, params, grads, group_of=group_of))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
def test_every_low_precision_number_is_read_exactly(dtype, instruction_set):
    _native.use_instruction_set(instruction_set)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[~every.isnan()]
    param = torch.zeros(len(every), dtype=dtype, requires_grad=True)
    param.grad = every.clone()
    opt = RSGDM([param], lr=1.0, momentum=0.0, backend="native")
    opt.step()
    assert torch.equal(opt.state[param]["momentum_buffer"], every.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("instruction_set", _native.instruction_sets())
def test_low_precision_results_are_rounded_to_nearest_even(dtype, instruction_set):
    _native.use_instruction_set(instruction_set)
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).float()
    # Around every number of the type: itself, its neighbours in float32, and the ties in between.
    finite = every[every.isfinite()]
    ties = (finite.sort().values[1:] + finite.sort().values[:-1]) / 2
    infinity = torch.tensor(float("inf"))
    values = torch.cat(
        [
            every,
            *(torch.nextafter(x, y) for x in (finite, ties) for y in (infinity, -infinity)),
            ties,
            torch.tensor([65519.9, 65520.0, 65535.0, 3.4e38, 1e-45, 2.0**-25, 2.0**-25 * 1.0001]),
        ]
    )
    param = torch.zeros(len(values), dtype=dtype, requires_grad=True)
    param.grad = torch.zeros_like(param)
    # p - lr (b^2 m + (1 - b^2) g) = -m exactly, for b^2 = 1/4, lr = 4 and p = g = 0.
    opt = RSGDM([param], lr=4.0, momentum=0.5, backend="native")
    opt.state[param]["momentum_buffer"] = values.clone() / 4 * 4
    opt.state[param]["step"] = torch.zeros(())
    opt.step()
    expected = (0.0 - 4 * (0.25 * values)).to(dtype)
    assert torch.equal(param.detach().nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(param.isnan(), expected.isnan())


@each_of(ADAMS)
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
def test_extreme_gradients_do_as_in_plain_torch(name, special):
    """NaN stays in its element, and a gradient whose square overflows stops only its own element."""
    results = {}
    for backend in ("native", "reference"):
        leaf = torch.linspace(-1, 1, 40).requires_grad_()
        opt = OPTIMIZERS[name]([leaf], backend=backend, weight_decay=0.0)
        for sign in (1.0, -1.0):
            leaf.grad = torch.linspace(1, 2, 40)
            leaf.grad[7] = sign * special
            opt.step()
        results[backend] = leaf.detach()
    assert torch.equal(results["native"].isnan(), results["reference"].isnan())
    finite = ~results["native"].isnan()
    torch.testing.assert_close(results["native"][finite], results["reference"][finite])


def test_infinite_parameters_stay():
    """A mask of minus infinities without gradient is a parameter like any other."""
    mask = torch.tensor([float("-inf"), 1.0]).requires_grad_()
    mask.grad = torch.tensor([0.0, 1.0])
    OPTIMIZERS["SigSignAdamW"]([mask], backend="native").step()
    assert mask[0].item() == float("-inf") and mask[1].item() < 1.0
