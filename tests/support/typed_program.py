"""A user's program, typed strictly: what the public API takes and returns, as a type checker sees it.

It is read by mypy (test_types.py, and .ci/check_install.py where the package is installed) and never run. A
`type: ignore` that hides no error is itself an error there: each one says that a mistake is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from typing_extensions import assert_type

from friction_kernels import (
    OPTIMIZERS,
    RSGDM,
    SGD,
    Adam,
    AdamP,
    AdamW,
    AttentionAlignment,
    DiffGrad,
    DiffGradW,
    DirectionStats,
    DistillationLoss,
    FeatureAlignment,
    FrictionAdamW,
    FrictionStats,
    GLoss,
    GLossStats,
    GradientGuidance,
    GraphMemory,
    InfoNCELoss,
    LinearCrossEntropyLoss,
    RetrievalLoss,
    RowSoftmaxStats,
    SigSignAdamP,
    SigSignAdamW,
    SigSignGrad,
    SupConLoss,
    TanhSignAdamP,
    TanhSignAdamW,
    TanhSignGrad,
    __version__,
    clip_grad_norm_,
    count_launches,
    direction_stats,
    friction_stats,
    gaussian_sigma,
    label_propagation,
    lists,
    lora_param_groups,
    losses,
    optim,
    release_gradients,
    row_softmax_loss,
    targets,
    tasks,
)


def construct(model: nn.Module) -> list[torch.optim.Optimizer]:
    groups = [{"params": model.parameters(), "lr": 1e-2}, {"params": [], "weight_decay": 0.0}]
    return [
        SigSignGrad(model.parameters()),
        TanhSignGrad(model.named_parameters(), lr=torch.tensor(1e-3), maximize=True),
        SigSignAdamW(groups, 1e-3, (0.9, 0.999), beta3=2.0, friction_input="normalized"),
        TanhSignAdamW(model.parameters(), betas=(torch.tensor(0.9), 0.999), capturable=True),
        SigSignAdamP(model.parameters(), delta=0.1, wd_ratio=0.1, nesterov=True),
        TanhSignAdamP(model.parameters(), state_dtype={"prev_grad": "8bit", "exp_avg": None}),
        RSGDM(model.parameters(), momentum=0.9, master="split", max_grad_norm=1.0),
        DiffGrad(model.parameters(), beta3=torch.tensor(1.0)),
        DiffGradW(model.parameters(), 1e-3, (0.9, 0.999), 1e-8, 0.1),
        Adam(model.parameters(), 1e-3, (0.9, 0.999), 1e-8, 0.1, False, foreach=None),
        AdamW(model.parameters(), fused=False, differentiable=False, master="split"),
        AdamP(model.parameters(), 1e-3, (0.9, 0.999), 1e-8, 0.0, 0.1, 0.1, True),
        SGD(model.parameters(), 0.1, 0.9, 0, 1e-4, True, state_dtype="8bit"),
        FrictionAdamW(model.parameters(), friction="diff", take_gradients=True),
        FrictionAdamW(model.parameters(), friction=None, max_grad_norm=1.0),
        optim.RSGDM(model.parameters(), rounding="stochastic", seed=3, skip_nonfinite=True),
        OPTIMIZERS["SigSignAdamW"](model.parameters(), lr=1e-3),
    ]


def train(model: nn.Module, batch: Tensor) -> None:
    opt = SigSignAdamW(model.parameters(), max_grad_norm=1.0)
    scheduler = CosineAnnealingLR(opt, T_max=10)

    def closure() -> float:
        opt.zero_grad()
        loss: Tensor = model(batch).square().mean()
        loss.backward()
        return loss.item()

    assert_type(opt.step(closure), float)
    opt.step()
    scheduler.step()
    assert_type(opt.grad_norm, Tensor | None)
    assert_type(opt.memory_report().bytes_per_parameter, float)
    assert_type(opt.memory_report().bytes_per_trainable_parameter, float)
    assert_type(friction_stats(opt), list[FrictionStats])
    assert_type(friction_stats(opt)[0].count, int)
    assert_type(clip_grad_norm_(model.parameters(), 1.0), Tensor)
    with count_launches() as launches:
        opt.step()
    assert_type(launches.total, int)
    assert_type(launches["friction_adam"], int)
    opt.load_state_dict(opt.state_dict())
    release = release_gradients(model, opt)
    assert_type(release, optim.GradientRelease)
    release.remove()


def graph(embeddings: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    loss_fn = GLoss(num_classes=4, sigma="root", gamma=0.7, form="log", generator=generator)
    assert_type(loss_fn(embeddings, labels), Tensor)
    assert_type(loss_fn.last, GLossStats | None)
    assert_type(loss_fn.sigma, float | Tensor | str)
    memory = GraphMemory(capacity=100, dim=embeddings.shape[1])
    memory.add(embeddings, labels, ids=labels)
    assert_type(loss_fn(embeddings, labels, ids=labels), Tensor)
    assert_type(loss_fn.num_skipped, int)
    assert_type(len(memory), int)
    assert_type(memory.rows(), tuple[Tensor, Tensor])
    losses.GLoss(4, sigma=nn.Parameter(torch.ones(())), class_weight=torch.ones(4), memory=memory)
    assert_type(gaussian_sigma(embeddings, rule="median"), float)
    assert_type(label_propagation(embeddings, labels, 4, sigma=0.5), Tensor)
    assert_type(__version__, str)


def contrast(embeddings: Tensor, labels: Tensor, memory: GraphMemory) -> None:
    supcon = SupConLoss(nn.Parameter(torch.tensor(0.1)), memory=memory, gather=True)
    assert_type(supcon(embeddings, labels, mask=labels[:, None] >= 0, ids=labels), Tensor)
    assert_type(supcon.without_positives, Tensor | None)
    assert_type(InfoNCELoss(0.05, symmetric=True)(embeddings, embeddings, embeddings), Tensor)
    retrieval = RetrievalLoss(temperature=0.5, normalize=True)
    assert_type(retrieval(embeddings, embeddings, labels), Tensor)
    assert_type(retrieval.mix(embeddings, embeddings), Tensor)


def score(hidden: Tensor, head: nn.Linear, labels: Tensor) -> None:
    assert_type(LinearCrossEntropyLoss(shift=True)(hidden, head.weight, labels, head.bias), Tensor)
    teacher = targets.Scores(hidden, head.weight, bias=head.bias)
    assert_type(DistillationLoss(alpha=0.7)(hidden, head.weight, labels, teacher), Tensor)
    stored = targets.TopK(labels[:, None], hidden[:, :1], rest="bucket")
    assert_type(DistillationLoss()(hidden, head.weight, labels, stored), Tensor)
    assert_type(AttentionAlignment(causal=True)(hidden, hidden, hidden, hidden), Tensor)
    assert_type(FeatureAlignment(64, 96)(hidden, hidden), Tensor)
    row_softmax_loss(hidden, head.weight, targets.Index(labels), kind="ce", reduction="none")
    found = row_softmax_loss(hidden, hidden, targets.SameLabel(labels), statistics=True)
    assert_type(found, Tensor | RowSoftmaxStats)


def combine_lists(model: nn.Module, losses_of: list[Tensor]) -> None:
    grads = [p.grad for p in model.parameters()]
    assert_type(lists.gram(grads, grads, by="tensor", missing="zero"), Tensor)
    assert_type(lists.combine([grads, grads], [0.5, 0.5]), list[Tensor | None])
    assert_type(lists.norm(model.parameters(), by=["trunk", "head"]), Tensor)
    assert_type(lists.interpolate(model.parameters(), model.parameters(), 0.1), list[Tensor])
    assert_type(lists.adapt(dict(model.named_parameters()), grads, 0.1), dict[str, Tensor])
    assert_type(lists.allocate_ranks([0.2, 0.8], budget=16), list[int])
    several = tasks.MultiTask(model.parameters(), tasks.weightings.pcgrad(), keep="8bit")
    for number, loss in enumerate(losses_of):
        with several.task(number):
            loss.backward()
    several.combine()
    assert_type(several.cosines, Tensor | None)
    opt = AdamW(lora_param_groups(model, lr=1e-3, weight_decay=0.0))
    guidance = GradientGuidance(opt, consistency=0.1, mode="exact")
    assert_type(guidance.backward(lambda: losses_of[0]), Tensor)
    assert_type(direction_stats(opt), DirectionStats)


def mistakes(model: nn.Module, embeddings: Tensor, labels: Tensor) -> None:
    SigSignAdamW(model.parameters(), lr="fast")  # type: ignore[arg-type]
    SigSignAdamW(model.parameters(), beta_3=1.0)  # type: ignore[call-arg]
    SigSignAdamW(model.parameters(), betas=0.9)  # type: ignore[arg-type]
    SigSignAdamW(model.parameters(), 1e-3, (0.9, 0.999), 1e-8, 0.1, False)  # type: ignore[call-arg]
    SigSignAdamW(model.parameters(), friction_input="normalised")  # type: ignore[arg-type]
    SigSignGrad(model.parameters(), master="bf16")  # type: ignore[arg-type]
    TanhSignGrad(model.parameters(), rounding="random")  # type: ignore[arg-type]
    SigSignAdamP(model.parameters(), backend="cuda")  # type: ignore[arg-type]
    SigSignAdamP(model.parameters(), state_dtype="fp8")  # type: ignore[arg-type]
    TanhSignAdamW(model.parameters(), state_dtype={"exp_avg": "16bit"})  # type: ignore[dict-item]
    RSGDM(model.parameters(), 0.1, 0.9, 0.01)  # type: ignore[call-arg]
    SigSignAdamW()  # type: ignore[call-arg]
    TanhSignGrad(model)  # type: ignore[arg-type]
    RSGDM(model.parameters(), beta3=1.0)  # type: ignore[call-arg]
    RSGDM(model.parameters(), state_dtype=torch.bfloat16)  # type: ignore[arg-type]
    RSGDM(model.parameters()).grad_norm.item()  # type: ignore[union-attr]
    friction_stats(RSGDM(model.parameters()))  # type: ignore[arg-type]
    FrictionAdamW(model.parameters(), friction="sign")  # type: ignore[arg-type]
    DiffGrad(model.parameters(), friction_input="product")  # type: ignore[call-arg]
    AdamW(model.parameters(), beta3=1.0)  # type: ignore[call-arg]
    release_gradients(model, torch.optim.SGD(model.parameters()))  # type: ignore[arg-type]
    GLoss()  # type: ignore[call-arg]
    GLoss(4, memory=100)  # type: ignore[arg-type]
    GLoss(4, sigma="mean")  # type: ignore[arg-type]
    GLoss(4, form="paper")  # type: ignore[arg-type]
    GLoss(4, solver="lu")  # type: ignore[arg-type]
    GLoss(4, precision="fp16")  # type: ignore[arg-type]
    GLoss(4, reduction="average")  # type: ignore[arg-type]
    GLoss(4, backend="cuda")  # type: ignore[arg-type]
    gaussian_sigma(embeddings, rule="mean")  # type: ignore[arg-type]
    label_propagation(embeddings, labels, 4, solver="lu")  # type: ignore[arg-type]
    label_propagation(embeddings, labels, 4, backend="native")  # type: ignore[arg-type]
    GLoss(4)(embeddings)  # type: ignore[call-arg]
    SupConLoss("low")  # type: ignore[arg-type]
    SupConLoss(memory=100)  # type: ignore[arg-type]
    SupConLoss()(embeddings)  # type: ignore[call-arg]
    InfoNCELoss(reduction="average")  # type: ignore[arg-type]
    _ = GLoss(4).last.accuracy  # type: ignore[union-attr]
    label_propagation(embeddings, labels)  # type: ignore[call-arg]
    label_propagation(embeddings, labels, 4, 0.5)  # type: ignore[call-arg]
