"""Problems of row softmax losses, and the same losses from stored scores."""

import math

import torch
from hypothesis import strategies as st
from torch.nn import functional

from friction_kernels.targets import Index, SameLabel, Scores, TopK

SIZES = [1, 2, 5, 33, 127, 129]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scores(x, w, scale=1.0, bias=None, mask=None, softcap=None):
    z = scale * (x @ w.T)
    z = z if bias is None else z + bias
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    if isinstance(mask, str):
        diagonal = mask == "diagonal"
        full = torch.ones(z.shape, dtype=torch.bool)
        mask = ~full.triu().tril() if diagonal else full.tril()
    return z if mask is None else z.masked_fill(~mask, -math.inf)


def distribution(target, z, label_smoothing=0.0, ignore_index=-100):
    """q (N, M) with zero rows for those that do not count."""
    if isinstance(target, Index):
        counted = target.labels != ignore_index
        q = functional.one_hot(target.labels.clamp_min(0), z.shape[1]).to(z.dtype)
        return ((1 - label_smoothing) * q + label_smoothing / z.shape[1]) * counted[:, None]
    if isinstance(target, SameLabel):
        columns = target.rows_of if target.columns_of is None else target.columns_of
        same = (target.rows_of[:, None] == columns) & (z > -math.inf)
        return same.to(z.dtype) / same.sum(1, keepdim=True).clamp_min(1)
    if isinstance(target, TopK):
        q = target.logprobs.to(z.dtype).exp()
        if target.rest == "renormalise":
            q = q / q.sum(1, keepdim=True)
        return torch.zeros_like(z).scatter(1, target.ids, q)
    raise TypeError


def stored(x, w, target, kind="ce", beta=0.5, reduction="mean", label_smoothing=0.0, **options):
    """The same loss from all scores."""
    z = scores(x, w, **options)
    if getattr(target, "exclude_self", False):
        z = z.masked_fill(torch.eye(*z.shape, dtype=torch.bool), -math.inf)
    log_p = z.log_softmax(1)
    finite = log_p.masked_fill(log_p == -math.inf, 0)
    if isinstance(target, Scores):
        masked = {key: value for key, value in options.items() if key == "mask"}
        z_t = scores(target.x, target.w, target.scale, target.bias, **masked)
        log_q = z_t.log_softmax(1)
        finite_q = log_q.masked_fill(log_q == -math.inf, 0)
        p, q = log_p.exp(), log_q.exp()
        m = (beta * q + (1 - beta) * p).clamp_min(1e-300).log()
        loss = {
            "ce": -(q * finite),
            "kl": q * (finite_q - finite),
            "reverse_kl": p * (finite - finite_q),
            "jsd": beta * q * (finite_q - m) + (1 - beta) * p * (finite - m),
        }[kind].sum(1)
        counted = torch.ones(len(x), dtype=torch.bool)
    else:
        q = distribution(target, z, label_smoothing)
        loss = -(q * finite).sum(1) + (torch.xlogy(q, q).sum(1) if kind == "kl" else 0)
        counted = q.sum(1) > 0
        if isinstance(target, TopK) and target.rest == "bucket":
            rest = 1 - q.sum(1)
            others = z.scatter(1, target.ids, -math.inf).logsumexp(1) - z.logsumexp(1)
            loss = loss - rest * others + (torch.xlogy(rest, rest) if kind == "kl" else 0)
            counted = torch.ones_like(counted)
    total = loss[counted].sum()
    return {"mean": total / counted.sum().clamp_min(1), "sum": total, "none": loss * counted}[
        reduction
    ]


@st.composite
def problems(draw):
    n, m = (draw(st.sampled_from(SIZES)) for _ in range(2))
    d, seed = draw(st.sampled_from([1, 2, 33, 129])), draw(st.integers(0, 99))
    options = {
        "scale": draw(st.sampled_from([1.0, 0.3])),
        "bias": random(m, seed=seed + 1) if draw(st.booleans()) else None,
        "softcap": draw(st.sampled_from([None, 2.0])),
    }
    masks = [None, "causal", torch.arange(m) % 7 < 6, random(n, m, seed=seed) < 1.5]
    masks = [m for m in masks if not isinstance(m, torch.Tensor) or bool(m.any(-1).all())]
    which = draw(st.sampled_from(["index", "labels", "self", "topk", "scores"]))
    generator = torch.Generator().manual_seed(seed)
    kinds = ["ce", "kl"]
    if which == "index":
        labels = torch.randint(m, (n,), generator=generator)
        labels[torch.rand(n, generator=generator) < 0.2] = -100
        target = Index(labels)
        options["label_smoothing"] = draw(st.sampled_from([0.0, 0.1]))
    elif which in ("labels", "self"):
        m = n if which == "self" else m
        of = [torch.randint(5, (k,), generator=generator) for k in (n, m)]
        target = SameLabel(of[0], exclude_self=True) if which == "self" else SameLabel(*of)
        options["mask"] = draw(st.sampled_from([None, "causal"]))
        if which == "self" and options["bias"] is not None:
            options["bias"] = random(m, seed=seed + 1)
    elif which == "topk":
        k = min(m, draw(st.integers(1, 4)))
        logprobs, ids = random(n, m, seed=seed + 2).log_softmax(1).topk(k)
        rests = ["drop", "renormalise"] + (["bucket"] if k < m else [])
        target = TopK(ids, logprobs, draw(st.sampled_from(rests)))
    else:
        other = random(n, 7, seed=seed + 3), random(m, 7, seed=seed + 4)
        target = Scores(*other, scale=0.5, bias=random(m, seed=seed + 5))
        options["mask"] = draw(st.sampled_from(masks))
        kinds += ["reverse_kl", "jsd"]
    options |= {"kind": draw(st.sampled_from(kinds)), "beta": draw(st.sampled_from([0.5, 0.1]))}
    options["reduction"] = draw(st.sampled_from(["mean", "sum", "none"]))
    return random(n, d, seed=seed), random(m, d, seed=seed + 9), target, options


def with_gradients(function, x, w, target, options):
    """The loss and the gradients of what takes part, weighted where there are several losses."""
    inputs = [t.clone().requires_grad_() for t in (x, w, torch.tensor(options["scale"]).to(x))]
    options = options | {"scale": inputs[2]}
    if options["bias"] is not None:
        inputs.append(options["bias"].clone().requires_grad_())
        options["bias"] = inputs[-1]
    loss = function(inputs[0], inputs[1], target, **options)
    (loss * torch.arange(1.0, 1 + loss.numel()).view(loss.shape).to(loss)).sum().backward()
    return [loss.detach(), *(t.grad for t in inputs)]
