"""What tests of distillation share: data, and divergences of distributions that are stored."""

import math

import torch

KINDS = ["kl", "reverse_kl", "jsd"]
# Relative to the largest of each result.
TOLERANCE = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-5, 5e-5)}


def random(*shape, seed=0, dtype=torch.float64, by=1.0):
    return (by * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def some_labels(*shape, below=41, ignored=-100):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(below, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < 0.3, ignored)


def with_gradients(function, tensors):
    """The loss, weighted where there are several, and the gradients of all tensors."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    loss = function(*leaves)
    weights = torch.arange(1.0, 1 + loss.numel(), dtype=loss.dtype).view(loss.shape)
    (loss * weights).sum().backward()
    return loss.detach(), *(t.grad for t in leaves)


def assert_equal(found, expected, tolerances):
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        bound = tolerances[min(number, 1)] * max(theirs.abs().max().item(), 1e-30)
        assert (mine.double() - theirs).abs().max().item() <= bound, number


def divergence(log_q, log_p, kind="kl", beta=0.5):
    """Of rows, with the logarithms of a teacher's and a student's probabilities."""

    def kl(of, to):
        difference = torch.where(of == -math.inf, 0, of - to)
        return (of.exp() * difference).sum(-1)

    if kind != "jsd":
        return kl(log_q, log_p) if kind == "kl" else kl(log_p, log_q)
    log_m = torch.logaddexp(log_q + math.log(beta), log_p + math.log(1 - beta))
    return beta * kl(log_q, log_m) + (1 - beta) * kl(log_p, log_m)


def reduced(losses, counted, reduction):
    losses = losses.where(counted, 0)
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / counted.sum().clamp_min(1)}[
        reduction
    ]
