"""What tests/test_gpu.py checks on a card, as functions of a device: test_gpu_report.py runs them on the
processor too, so that the checks themselves are proven where no card is."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from optimizer_cases import FRICTION, PROJECTED
from test_native import (
    CHUNK,
    LAYOUTS,
    TensorCase,
    Twins,
    far_from_adamps_bounds,
    lay_out,
    options_of,
    same_bits,
)
from tolerances import assert_as_good_as_plain

from friction_kernels import OPTIMIZERS, count_launches, friction_stats

ELEMENTWISE = [name for name in OPTIMIZERS if name not in PROJECTED]
DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    *(torch.complex64, torch.complex128),
)
GRAD_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SHAPES = [
    *((), (0,), (1,), (3,), (3, 0), (1, 1)),
    *((CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (3 * CHUNK + 1,), (2, CHUNK), (97, 89)),
    # AdamP's rows are summed by a thread, a warp or a block.
    *((5000, 1), (255, 3), (7, 31), (64, 40), (13, 509), (2, 5000), (1, 70_000), (8, 3, 3, 3)),
]


def launches_of(name: str) -> dict[str, int]:
    rule = OPTIMIZERS[name].rule.name
    parts = ("_reduce", "_decide", "_apply") if name in PROJECTED else ("",)
    return {f"{rule}{part}": 1 for part in parts}


# One step against the equations in float64.


@dataclass(frozen=True)
class DeviceCase(TensorCase):
    grad_dtype: torch.dtype | None = None  # None: the parameter's


@st.composite
def device_steps(draw) -> tuple:
    name = draw(st.sampled_from(sorted(OPTIMIZERS)))
    layout = st.sampled_from(LAYOUTS)

    def case(dtype: torch.dtype, grad_dtype: torch.dtype | None) -> DeviceCase:
        return DeviceCase(
            shape=draw(st.sampled_from(SHAPES)),
            dtype=dtype,
            param_layout=draw(layout),
            grad_layout=draw(layout),
            state_layout=draw(layout),
            group=draw(st.integers(0, 2)),
            param_scale=draw(st.sampled_from([1.0, 1e-3, 10.0])),
            grad_scale=draw(st.sampled_from([1.0, 1e-4, 30.0])),
            has_grad=draw(st.sampled_from([True, True, True, False])),
            grad_dtype=None if dtype.is_complex else grad_dtype,
        )

    kinds = st.tuples(st.sampled_from(DTYPES), st.sampled_from([None, None, *GRAD_DTYPES]))
    cases = [case(*kind) for kind in draw(st.lists(kinds, min_size=1, max_size=5))]
    groups = draw(st.lists(options_of(name), min_size=3, max_size=3))
    return name, cases, groups, draw(st.sampled_from([0, 1, 7, 1000])), draw(st.integers(0, 9999))


class DeviceTwins(Twins):
    """The equations in float64 on the processor; everything else on a device."""

    def __init__(self, name, cases, groups, step, seed, device: str, capturable: bool):
        super().__init__(name, cases, groups, step, seed)
        self.device, self.capturable = device, capturable
        self.values = [
            (param, grad.to(case.grad_dtype or case.dtype), state)
            for case, (param, grad, state) in zip(self.cases, self.values, strict=True)
        ]

    def run(self, backend: str, exact: bool = False, magnitude: bool = False):
        options = self.group_options
        if magnitude:  # without projection, which takes away
            options = [{**group, "maximize": False} for group in options]
            options = [{**group, "delta": 0.0} if "delta" in group else group for group in options]
        device = "cpu" if exact else self.device
        leaves, groups = [], [[], [], []]
        for case, (param, grad, _) in zip(self.cases, self.values, strict=True):
            cast = self.caster(case, exact, magnitude)
            leaf = lay_out(cast(param).to(device), case.param_layout).requires_grad_()
            if case.has_grad:
                grad = lay_out(cast(grad).to(device), case.grad_layout)
                if grad.dtype != leaf.dtype:
                    leaf.grad_dtype = grad.dtype
                leaf.grad = grad
            leaves.append(leaf)
            groups[case.group].append(leaf)
        common = {"backend": backend, "capturable": self.capturable and not exact}
        groups = [{"params": params, **common, **options[i]} for i, params in enumerate(groups)]
        opt = self.cls(groups)
        for case, leaf, (_, _, state) in zip(self.cases, leaves, self.values, strict=True):
            for key, value in state.items() if case.has_grad else ():
                if key == "step":
                    opt.state[leaf][key] = value.clone().to(
                        device if common["capturable"] else "cpu"
                    )
                else:
                    value = self.caster(case, exact, magnitude)(value).to(device)
                    opt.state[leaf][key] = lay_out(value, case.state_layout)
        opt.step()
        return [
            (leaf.detach().cpu(), {k: v.cpu() for k, v in opt.state.get(leaf, {}).items()})
            for leaf in leaves
        ]


def check_step(example: tuple, device: str, capturable: bool) -> bool:
    """Whether the example proves anything; raises where it proves the step wrong."""
    name, cases, groups, step, seed = example
    twins = DeviceTwins(name, cases, groups, step, seed, device, capturable)
    if not far_from_adamps_bounds(twins, twins.cls):
        return False
    exact, plain = twins.run("reference", exact=True), twins.run("reference")
    ours, magnitudes = twins.run("native"), twins.run("reference", exact=True, magnitude=True)
    for case, (start, _, states), e, p, o, m in zip(
        twins.cases, twins.values, exact, plain, ours, magnitudes, strict=True
    ):
        if not case.has_grad:
            assert torch.equal(o[0], start) and not o[1]
            continue
        assert o[0].dtype == case.dtype
        assert_as_good_as_plain("param", o[0], p[0], e[0], start, m[0], case.dtype)
        for key in twins.cls.rule.states:
            ours_of, rest = o[1][key], (p[1][key], e[1][key], states[key], m[1][key], case.dtype)
            assert ours_of.dtype == states[key].dtype
            assert_as_good_as_plain(key, ours_of, *rest)
        assert o[1]["step"].item() == step + 1
    return True


# Some steps over a list of tensors, and the bits they leave.


def tensors(shapes, seed: int = 5, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return [torch.randn(shape, generator=generator, dtype=wide).to(dtype) for shape in shapes]


def make(shapes, device: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous"):
    """Parameters with gradients of their own, which later steps overwrite in place."""
    params = []
    for value, grad in zip(tensors(shapes, 5, dtype), tensors(shapes, 6, dtype), strict=True):
        params.append(lay_out(value.to(device), layout).requires_grad_())
        params[-1].grad = lay_out(grad.to(device), layout)
    return params


def new_gradients(params, step: int) -> None:
    shapes, dtype = [param.shape for param in params], params[0].dtype
    for param, grad in zip(params, tensors(shapes, 100 + step, dtype), strict=True):
        param.grad.copy_(grad)


def results(opt, params) -> list[torch.Tensor]:
    """Parameters and states, on the processor."""
    found = [param.detach() for param in params]
    for param in params:
        found += [opt.state[param][key] for key in sorted(opt.state.get(param, {}))]
    return [tensor.cpu() for tensor in found]


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Its bits as integers: 0 and -0 differ."""
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.clone().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[real.itemsize])


def bits(opt, params) -> list[torch.Tensor]:
    return [raw(tensor) for tensor in results(opt, params)]


def steps(name, device, shapes=SHAPES, dtype=torch.float32, layout="contiguous", **options):
    params = make(shapes, device, dtype, layout)
    opt = OPTIMIZERS[name](params, backend="native", **options)
    for step in range(3):
        new_gradients(params, step)
        opt.step()
    return bits(opt, params)


def check_same_bits_as_cpu(name, device, dtype, layout, **options) -> None:
    ours = steps(name, device, dtype=dtype, layout=layout, **options)
    assert same_bits(ours, steps(name, "cpu", dtype=dtype, layout=layout, **options))


def check_same_bits_twice(name, device, **options) -> None:
    assert same_bits(steps(name, device, **options), steps(name, device, **options))


def check_extreme_numbers(name, device) -> None:
    """Subnormals, the largest numbers and NaN: division and root are rounded alike everywhere."""
    special = [0.0, -0.0, 1e-45, -1e-40, 1.2e-38, 1e-20, 1.0, 3e18, 3.4e38, -3.4e38]
    special += [float("inf"), -float("inf"), float("nan")]
    values = torch.tensor(special).repeat(len(special))
    grads = torch.tensor(special).repeat_interleave(len(special))
    found = []
    for where in (device, "cpu"):
        param = values.clone().to(where).requires_grad_()
        opt = OPTIMIZERS[name]([param], backend="native")
        for sign in (1.0, -1.0):
            param.grad = (grads * sign).to(where)
            opt.step()
        numbers = [tensor.where(~tensor.isnan(), 123.0) for tensor in results(opt, [param])]
        found.append([raw(tensor) for tensor in numbers])  # a NaN's sign and payload are free
    assert same_bits(*found)


def check_infinite_parameters_stay(name, device) -> None:
    masks = [torch.zeros(4, 6), torch.zeros(5)]
    for mask in masks:
        mask.view(-1)[::2] = -float("inf")
    params = [mask.clone().to(device).requires_grad_() for mask in masks]
    for param in params:
        param.grad = torch.zeros_like(param)
    OPTIMIZERS[name](params, backend="native").step()
    assert same_bits([param.detach().cpu() for param in params], masks)


def check_one_launch(name, device, count: int, groups: int = 1, **options) -> None:
    """Also at a step whose gradients and numbers changed, once the table is where it stays."""
    params = make([(3,)] * count, device)
    split = [{"params": params[i::groups], "lr": 0.01 * (i + 1)} for i in range(groups)]
    opt = OPTIMIZERS[name](split, backend="native", **options)
    for step in range(3):
        new_gradients(params, step)
        with count_launches() as launches:
            opt.step()
    assert dict(launches) == launches_of(name)
    ours = bits(opt, params)
    apart = make([(3,)] * count, "cpu")
    split = [{"params": apart[i::groups], "lr": 0.01 * (i + 1)} for i in range(groups)]
    opt = OPTIMIZERS[name](split, backend="native")
    for step in range(3):
        new_gradients(apart, step)
        opt.step()
    assert same_bits(ours, bits(opt, apart))


def check_nothing_to_do(name, device) -> None:
    params = make([(3, 4), (5,)], device)
    opt = OPTIMIZERS[name](params, backend="native")
    opt.step()
    before = bits(opt, params)
    for param in params:
        param.grad = None
    for _ in range(2):
        with count_launches() as launches:
            opt.step()
        assert launches.total == 0
    assert same_bits(before, bits(opt, params))


# AdamP's three decisions.


def projection_case(decision: str):
    """A parameter and a gradient orthogonal to its rows, to it as a whole only, or to neither."""
    param, grad = tensors([(48, 700), (48, 700)], seed=9, dtype=torch.float64)
    along = (param * grad).sum(1, keepdim=True) / (param * param).sum(1, keepdim=True)
    grad = grad - along * param
    if decision == "whole":  # each row along itself, with signs that cancel in the sum
        norms = param.square().sum(1, keepdim=True)
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(24)[:, None]
        grad = grad + 0.5 * signs * param * (norms.mean() / norms)
    if decision == "none":
        grad = grad + 0.5 * param
    return param, grad


def check_projection(name, device, decision, dtype) -> None:
    options = {"weight_decay": 0.1, "wd_ratio": 0.5, "lr": 0.1}
    values = {}
    for backend, where, kind in (
        ("native", device, dtype),
        ("reference", "cpu", torch.float64),
    ):
        for delta in (0.1, 0.0):
            param, grad = projection_case(decision)
            leaf = param.to(where, kind).requires_grad_()
            leaf.grad = grad.to(where, kind)
            OPTIMIZERS[name]([leaf], delta=delta, backend=backend, **options).step()
            values[backend, delta] = leaf.detach().cpu().double()
    epsilon = torch.finfo(dtype).eps
    torch.testing.assert_close(
        values["native", 0.1], values["reference", 0.1], rtol=4 * epsilon, atol=16 * epsilon
    )
    changed = (values["reference", 0.1] - values["reference", 0.0]).abs().max() > 1e-3
    assert changed == (decision != "none")


# What hangs on a step.


def check_friction_stats(name, device) -> None:
    found = []
    for where in (device, "cpu"):
        params = make([(40, 50), (7,), (2048,), (50_000,)], where)
        options = {"friction_input": "normalized"} if name in FRICTION else {}
        opt = OPTIMIZERS[name]([{"params": params[:2]}, {"params": params[2:]}], **options)
        for step in range(3):
            new_gradients(params, step)
            stats = friction_stats(opt)
            opt.step()
        found.append(stats)
    for ours, cpu in zip(*found, strict=True):
        assert ours.count == cpu.count
        torch.testing.assert_close((ours.mean, ours.std), (cpu.mean, cpu.std), rtol=1e-4, atol=1e-7)


def check_state_dict(name, devices: tuple[str, str], capturable: bool) -> None:
    """A run that moves from one device to another goes on with the same bits."""
    shapes = [(3, 4), (CHUNK + 1,), ()]
    moving, staying = devices
    params, twins = make(shapes, moving), make(shapes, staying)
    opt = OPTIMIZERS[name](params, capturable=capturable)
    twin = OPTIMIZERS[name](twins, backend="native")
    for step in range(2):
        for group, optimizer in ((params, opt), (twins, twin)):
            new_gradients(group, step)
            optimizer.step()
    moved = make(shapes, staying)
    for param, value in zip(moved, params, strict=True):
        param.data.copy_(value.data)
    loaded = OPTIMIZERS[name](moved, backend="native", capturable=capturable)
    loaded.load_state_dict(opt.state_dict())
    for group, optimizer in ((moved, loaded), (twins, twin)):
        new_gradients(group, 2)
        optimizer.step()
    assert same_bits(bits(loaded, moved), bits(twin, twins))
    for param in moved:
        expected = param.device.type if capturable else "cpu"
        assert loaded.state[param]["step"].device.type == expected
