"""diffGrad against its authors' code and against another library's."""

import pytest
import torch
from optimizer_cases import both_backends, noise

from friction_kernels import Adam, AdamW, DiffGrad, DiffGradW

OPTIONS = [
    {},
    {"lr": 1e-2, "weight_decay": 0.1},
    {"lr": 1e-2, "betas": (0.8, 0.5), "eps": 1e-2, "weight_decay": 0.1},
]


class Published(torch.optim.Optimizer):
    """The authors' diffgrad.py, but for eps, which they add to the root of exp_avg_sq and not of v_hat."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)

    @torch.no_grad()
    def step(self):
        [group] = self.param_groups
        beta1, beta2 = group["betas"]
        for p in group["params"]:
            state = self.state[p]
            if not state:
                state["step"] = 0
                state.update({key: torch.zeros_like(p) for key in ("m", "v", "previous_grad")})
            state["step"] += 1
            grad = p.grad + group["weight_decay"] * p
            state["m"].mul_(beta1).add_(grad, alpha=1 - beta1)
            state["v"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            bias_correction1 = 1 - beta1 ** state["step"]
            bias_correction2 = 1 - beta2 ** state["step"]
            denom = state["v"].sqrt().add_(group["eps"] * bias_correction2**0.5)
            diff = abs(state["previous_grad"] - grad)
            dfc = 1.0 / (1.0 + torch.exp(-diff))
            state["previous_grad"] = grad
            step_size = group["lr"] * bias_correction2**0.5 / bias_correction1
            p.addcdiv_(state["m"] * dfc, denom, value=-step_size)


def trajectory(make, steps=20):
    param = noise((7, 5), 0, torch.float64).requires_grad_()
    opt, points = make([param]), []
    for step in range(steps):
        param.grad = noise((7, 5), 1 + step, torch.float64)
        opt.step()
        points.append(param.detach().clone())
    return torch.stack(points)


def assert_alike(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()


@both_backends
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_steps_are_those_of_the_authors_code(options, backend):
    ours = trajectory(lambda params: DiffGrad(params, backend=backend, **options))
    assert_alike(ours, trajectory(lambda params: Published(params, **options)))


@both_backends
@pytest.mark.parametrize("cls", [DiffGrad, DiffGradW])
def test_steps_are_those_of_pytorch_optimizer(cls, backend):
    reason = "pytorch_optimizer is not installed: its DiffGrad is not compared"
    theirs = pytest.importorskip("pytorch_optimizer", reason=reason).DiffGrad
    # It adds 1e-15 to exp_avg_sq, which is lost only beside large squares.
    options = {"lr": 1e-2, "betas": (0.9, 0.1), "eps": 0.0, "weight_decay": 0.1}
    decoupled = {"weight_decouple": cls is DiffGradW}
    assert_alike(
        trajectory(lambda params: cls(params, backend=backend, **options)),
        trajectory(lambda params: theirs(params, **options, **decoupled)),
    )


@both_backends
@pytest.mark.parametrize(("cls", "base"), [(DiffGrad, Adam), (DiffGradW, AdamW)])
def test_it_is_its_base_at_half_the_rate_where_no_gradient_changes(cls, base, backend):
    """And at the whole rate where all change much."""
    same = {"weight_decay": 0.0, "backend": backend}
    without = trajectory(lambda params: cls(params, lr=0.02, beta3=0.0, **same))
    assert_alike(without, trajectory(lambda params: base(params, lr=0.01, **same)))
    with_all = trajectory(lambda params: cls(params, lr=0.01, beta3=1e9, **same))
    assert_alike(with_all, trajectory(lambda params: base(params, lr=0.01, **same)))
