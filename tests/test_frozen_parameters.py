"""Parameters without gradient that are not trained: of any type, on any device, in any group."""

from types import SimpleNamespace

import pytest
import torch
from optimizer_cases import MEASURED, Odd, both_backends, every_optimizer
from torch import nn

from friction_kernels import OPTIMIZERS, friction_stats
from friction_kernels.optim import checks
from friction_kernels.optim.planning import StepPlan, _scaling_settings


def frozen(tensor):
    return nn.Parameter(tensor, requires_grad=False)


FROZEN = {
    "uint8": lambda: frozen(torch.zeros(8, dtype=torch.uint8)),
    "int64": lambda: frozen(torch.zeros(8, dtype=torch.int64)),
    "bool": lambda: frozen(torch.zeros(8, dtype=torch.bool)),
    "float8": lambda: frozen(torch.zeros(8, dtype=torch.float8_e4m3fn)),
    "float64": lambda: frozen(torch.zeros(8, dtype=torch.float64)),
    "complex64": lambda: frozen(torch.zeros(8, dtype=torch.complex64)),
    "meta": lambda: frozen(torch.zeros(8, device="meta")),
    "sparse": lambda: frozen(torch.eye(3).to_sparse()),
    "expanded": lambda: frozen(torch.zeros(1).expand(8)),
    "subclass": lambda: torch.zeros(8).as_subclass(Odd),
}
every_frozen = pytest.mark.parametrize("kind", FROZEN)


def trained():
    return nn.Parameter(torch.linspace(-1, 1, 300))


def step(opt, param, count=2):
    for number in range(count):
        param.grad = torch.full_like(param, 0.5 + number)
        opt.step()


OPTIONS = {
    "plain": {},
    "bf16 states": {"state_dtype": "bf16"},
    "clipping": {"max_grad_norm": 0.1, "skip_nonfinite": True},
    "tensor lr": {"lr": torch.tensor(0.1), "capturable": True},
}


@pytest.mark.filterwarnings("error")
@both_backends
@every_frozen
@pytest.mark.parametrize("options", OPTIONS)
def test_frozen_parameter_is_left_alone_in_any_place(kind, backend, options):
    options = {"backend": backend, **OPTIONS[options]}
    for name in ("SigSignAdamP", "AdamW", "RSGDM"):
        alone = trained()
        step(OPTIMIZERS[name]([alone], **options), alone)
        for place in (0, 1):
            ours, other = trained(), FROZEN[kind]()
            before = other if kind in ("meta", "sparse") else other.clone()
            params = [ours]
            params.insert(place, other)
            opt = OPTIMIZERS[name](params, **options)
            step(opt, ours)
            assert torch.equal(ours, alone)
            assert other not in opt.state
            assert kind in ("meta", "sparse") or torch.equal(other, before)
            report = opt.memory_report()
            assert report.parameters == 300 + other.numel()
            of_other = 0 if other.is_meta else other.numel() * other.element_size()
            assert report.sizes["parameter"] == 1200 + of_other
            opt.load_state_dict(opt.state_dict())
            step(opt, ours)


@every_frozen
@every_optimizer
def test_frozen_parameter_may_come_in_a_group_of_its_own(name, kind):
    ours = trained()
    opt = OPTIMIZERS[name]([ours])
    opt.add_param_group({"params": [FROZEN[kind]()], "weight_decay": 0.0})
    step(opt, ours)
    assert not torch.equal(ours, trained())
    if name in MEASURED:
        ours.grad = torch.ones_like(ours)
        assert friction_stats(opt)[0].count == ours.numel()


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["TanhSignAdamP", "RSGDM"])
@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("uint8", {}, "has type torch.uint8; only floating-point and complex parameters can be"),
        ("float8", {}, "has type torch.float8_e4m3fn; only floating-point and complex .* 16 bits"),
        ("meta", {}, "is on the meta device"),
        ("float64", {"state_dtype": "8bit"}, "cannot be kept as '8bit'"),
        ("complex64", {"state_dtype": "bf16"}, "no complex numbers of state_dtype 'bf16'"),
        ("expanded", {}, "share memory"),
    ],
)
def test_frozen_parameter_is_checked_when_it_gets_a_gradient(
    name, backend, warm, kind, options, says
):
    ours, other = trained(), FROZEN[kind]()
    opt = OPTIMIZERS[name]([("ours", ours), ("other", other)], backend=backend, **options)
    step(opt, ours, warm)
    ours.grad = torch.ones(300)
    if other.is_floating_point() or other.is_complex():
        other.requires_grad_()
    other.grad = torch.ones(other.shape, dtype=other.dtype, device=other.device)
    before = ours.detach().clone()
    with pytest.raises((RuntimeError, ValueError), match=rf"parameter 1 .*'other'.*{says}"):
        opt.step()
    assert torch.equal(ours, before)
    assert other not in opt.state
    other.grad = None
    opt.step()
    assert not torch.equal(ours, before)


@both_backends
@every_optimizer
def test_frozen_parameter_that_thaws_is_trained(name, backend):
    ours, thawed, twin = trained(), frozen(torch.ones(4)), nn.Parameter(torch.ones(4))
    opt = OPTIMIZERS[name]([thawed, ours], backend=backend, max_grad_norm=1e9)
    step(opt, ours)
    thawed.requires_grad_()
    twin_opt = OPTIMIZERS[name]([twin], backend=backend)
    for number in range(2):
        thawed.grad, twin.grad = torch.full((4,), 1.0 + number), torch.full((4,), 1.0 + number)
        opt.step()
        twin_opt.step()
    torch.testing.assert_close(thawed, twin, rtol=1e-6, atol=1e-7)


def test_a_frozen_parameter_without_a_shape_counts_for_nothing():
    ours, lazy = trained(), nn.UninitializedParameter(requires_grad=False)
    opt = OPTIMIZERS["RSGDM"]([ours, lazy])
    step(opt, ours)
    report = opt.memory_report()
    assert report.parameters == 300 and report.sizes["parameter"] == 1200


def stub(device, *, trains):
    """What is looked at of a parameter that may be on a GPU."""
    return SimpleNamespace(
        device=torch.device(device),
        is_cuda=device == "cuda",
        grad=torch.ones(3) if trains else None,
        requires_grad=trains,
        shape=(3,),
    )


def test_the_device_of_a_group_is_that_of_what_is_trained():
    offloaded, ours = stub("cpu", trains=False), stub("cuda", trains=True)
    group = {"params": [offloaded, ours], "capturable": True, "max_grad_norm": 2.0}
    factor = _scaling_settings(group, scaling=object(), factor=0.25)["grad_factor"]
    assert factor == 1.0  # the kernels have it
    checks.check_captured([group])
    checks.check_captured([{**group, "params": [stub("cuda", trains=False)], "capturable": False}])
    checks.check_capturable({**group, "lr": torch.empty((), device="meta")}, [offloaded])
    plan = StepPlan.__new__(StepPlan)
    plan.members = [[offloaded, ours]]
    assert plan._device_of_sums((), [True, True]) == ours.device
    assert plan._device_of_sums((), [True, False]) == offloaded.device
    named = checks.LateName(0, group, 1)
    with pytest.raises(ValueError, match="is on cpu and parameter 1 of the group on cuda"):
        checks.check_device("parameter 0", offloaded, named, ours)
