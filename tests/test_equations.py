"""The equations against golden trajectories and against free oracles."""

import json

import adamp
import numpy as np
import pytest
import torch

from friction_kernels import (
    OPTIMIZERS,
    RSGDM,
    AdamP,
    SigSignAdamW,
    TanhSignAdamP,
    TanhSignAdamW,
    equations,
)

BACKENDS = ("reference", "native")
GOLDEN_CASES = (
    "rsgdm",
    "sigsigngrad",
    "tanhsigngrad",
    "sigsignadamw",
    "tanhsignadamw_maximize",
    "sigsignadamp",
)


def gradients(steps: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        steps, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def trajectory(make_optimizer, start: torch.Tensor, grads: torch.Tensor) -> torch.Tensor:
    param = torch.nn.Parameter(start.clone())
    opt = make_optimizer([param])
    points = []
    for grad in grads:
        param.grad = grad.clone()
        opt.step()
        points.append(param.detach().clone())
    return torch.stack(points)


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, bound: float) -> None:
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_golden_trajectories(golden_dir, case, backend):
    with np.load(golden_dir / "optimizers.npz") as golden:
        options = json.loads(str(golden[f"{case}/config"]))
        start, grads, expected = (
            torch.from_numpy(golden[f"{case}/{part}"]) for part in ("param", "grads", "trajectory")
        )
    cls = OPTIMIZERS[options.pop("class")]
    ours = trajectory(lambda p: cls(p, backend=backend, **options), start, grads)
    assert_close(ours, expected, 1e-12)


def test_every_golden_case_is_tested(golden_dir):
    with np.load(golden_dir / "optimizers.npz") as golden:
        assert {key.split("/")[0] for key in golden} == set(GOLDEN_CASES)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("friction_input", ["product", "normalized"])
def test_tanh_adamw_without_friction_is_torch_adamw(backend, maximize, friction_input):
    start, grads = gradients(1, 7, 5)[0], gradients(20, 7, 5, seed=1)
    options = {"lr": 3e-3, "betas": (0.8, 0.95), "weight_decay": 0.1, "maximize": maximize}
    ours = trajectory(
        lambda p: TanhSignAdamW(
            p, beta3=0.0, friction_input=friction_input, backend=backend, **options
        ),
        start,
        grads,
    )
    assert_close(ours, trajectory(lambda p: torch.optim.AdamW(p, **options), start, grads), 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sigmoid_without_friction_is_torch_adamw_at_half_the_rate(backend):
    start, grads = gradients(1, 7, 5)[0], gradients(20, 7, 5, seed=1)
    # The decay is eta * lambda: half the rate wants twice the weight decay.
    ours = trajectory(
        lambda p: SigSignAdamW(p, lr=2e-3, beta3=0.0, weight_decay=0.1, backend=backend),
        start,
        grads,
    )
    torchs = trajectory(lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.2), start, grads)
    assert_close(ours, torchs, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coupled_tanh_without_friction_is_torch_adam(backend):
    start, grads = gradients(1, 7, 5)[0], gradients(20, 7, 5, seed=1)
    cls = OPTIMIZERS["TanhSignGrad"]
    ours = trajectory(lambda p: cls(p, beta3=0.0, weight_decay=0.1, backend=backend), start, grads)
    assert_close(
        ours, trajectory(lambda p: torch.optim.Adam(p, weight_decay=0.1), start, grads), 1e-12
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("delta", [0.01, 0.1, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("shape", [(6, 5), (6,), (4, 3, 2, 2), (1, 9), (9, 1), (3, 1500)])
@pytest.mark.parametrize(("cls", "silent"), [(AdamP, {}), (TanhSignAdamP, {"beta3": 0.0})])
def test_adamp_without_friction_is_adamp(cls, silent, backend, nesterov, delta, shape):
    start, grads = gradients(1, *shape)[0], gradients(8, *shape, seed=1)
    options = {"lr": 1e-2, "weight_decay": 0.1, "delta": delta, "nesterov": nesterov}
    ours = trajectory(lambda p: cls(p, backend=backend, **silent, **options), start, grads)
    assert_close(ours, trajectory(lambda p: adamp.AdamP(p, **options), start, grads), 1e-12)


def test_the_adamp_cases_take_every_branch():
    """Else the test above might never see one: rows projected, the tensor projected, neither."""
    from friction_kernels.equations import project

    def branch(delta: float) -> str:
        p, g = gradients(1, 6, 5)[0], gradients(8, 6, 5, seed=1)[0]
        rows, whole = (
            torch.nn.functional.cosine_similarity(p.reshape(n, -1), g.reshape(n, -1)).abs().max()
            < delta / (30 / n) ** 0.5
            for n in (6, 1)
        )
        assert project(p, g, g.clone(), delta=delta, eps=1e-8)[1] == bool(rows or whole)
        return "rows" if rows else "whole" if whole else "none"

    assert {branch(delta) for delta in (0.01, 0.1, 1.0, 3.0, 100.0)} == {"rows", "whole", "none"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 0.99])
def test_rsgdm_is_torch_nesterov_sgd(backend, maximize, momentum):
    start, grads = gradients(1, 7, 5)[0], gradients(30, 7, 5, seed=1)
    shared = {"momentum": momentum, "weight_decay": 0.1, "maximize": maximize}
    ours = trajectory(lambda p: RSGDM(p, lr=0.3, backend=backend, **shared), start, grads)
    torchs = trajectory(
        lambda p: torch.optim.SGD(p, lr=0.3 * (1 - momentum), nesterov=momentum > 0, **shared),
        start,
        grads,
    )
    assert_close(ours, torchs, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("decoupled", [False, True])
def test_one_buffer_is_the_papers_history(backend, decoupled):
    """The paper's z and g_{t-1}, kept through all steps, lead where the one buffer leads."""
    start, grads = gradients(1, 7, 5)[0], gradients(30, 7, 5, seed=1)
    shared = {"lr": 0.3, "momentum": 0.8, "weight_decay": 0.1, "maximize": False}
    param, m, z, previous = start.clone(), *(torch.zeros(3, 7, 5, dtype=torch.float64))
    literal = []
    for grad in grads:
        equations.rsgdm(param, grad, m, z, previous, decoupled=decoupled, **shared)
        literal.append(param.clone())
    ours = trajectory(
        lambda p: RSGDM(p, decoupled_weight_decay=decoupled, backend=backend, **shared),
        start,
        grads,
    )
    assert_close(ours, torch.stack(literal), 1e-12)


@pytest.mark.parametrize("friction_input", ["product", "normalized"])
@pytest.mark.parametrize("kind", ["Grad", "AdamW", "AdamP"])
def test_tanh_is_sigmoid_of_twice_the_argument_at_twice_the_rate(kind, friction_input):
    start, grads = gradients(1, 7, 5)[0], gradients(10, 7, 5, seed=1)
    shared = {"friction_input": friction_input, "weight_decay": 0.0, "backend": "reference"}
    tanh = trajectory(
        lambda p: OPTIMIZERS[f"TanhSign{kind}"](p, lr=1e-3, beta3=0.7, **shared), start, grads
    )
    sigmoid = trajectory(
        lambda p: OPTIMIZERS[f"SigSign{kind}"](p, lr=2e-3, beta3=1.4, **shared), start, grads
    )
    assert_close(tanh, sigmoid, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalized_friction_does_not_depend_on_the_gradients_scale(backend):
    start, grads = gradients(1, 7, 5)[0], gradients(10, 7, 5, seed=1)
    options = {"friction_input": "normalized", "eps": 0.0, "backend": backend}
    small, large = (
        trajectory(lambda p: SigSignAdamW(p, **options), start, scale * grads)
        for scale in (2.0**-10, 2.0**10)
    )
    assert_close(small, large, 1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_friction_grows_with_agreeing_gradients(backend):
    """Same sign of consecutive gradients: a longer step than after a change of sign."""
    after = {}
    for second in (1.0, -1.0):
        param = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        opt = SigSignAdamW([param], beta3=3.0, betas=(0.0, 0.999), backend=backend)
        for grad in (1.0, second):
            before = param.item()
            param.grad = torch.full((1,), grad, dtype=torch.float64)
            opt.step()
        after[second] = abs(param.item() - before)
    assert after[1.0] > 5 * after[-1.0]
