"""What GLoss is compared with, as data: each computes the official form of one batch and its gradient.

The form of the authors is their operations in their order and types, written anew from
https://github.com/saditya13/G-Loss-LoG ("Standalone"): similarities in the embeddings' type, everything
after them in float64, D^(-1/2) as a diagonal matrix, guards against NaN. `LEAN` is the same mathematics in
float64 without what is not needed for it, so that a speed-up can be told from a clean-up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from bench.gloss_keops import keops_loss
from friction_kernels import GLoss
from friction_kernels.graph import dense

Loss = Callable[[Tensor], Tensor]  # embeddings -> the mean over U

OURS = "GLoss"
OURS_UNCHECKED = "GLoss, validate=False"
OURS_BF16 = "GLoss, bf16"
AUTHORS = "dense float64, as the authors do it"
LEAN = "dense float64, lean"
FP32 = "dense fp32, eager"
COMPILED = "dense fp32, torch.compile"
KEOPS = "PyKeOps"

SIGMA, GAMMA = 0.5, 0.7


@dataclass(frozen=True)
class Problem:
    """A batch whose first `num_labelled` rows are labelled."""

    embeddings: Tensor
    labels: Tensor
    num_labelled: int
    num_classes: int
    sigma: float = SIGMA

    @property
    def labelled(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device) < self.num_labelled


def make_problem(
    num_nodes: int,
    dim: int,
    num_classes: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Problem:
    """Clusters whose cosines are those of MiniLM's embeddings of R8: 0.38 within a class, 0.19 between."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    labels = torch.randint(num_classes, (num_nodes,), generator=generator, device=device)
    embeddings = normal(num_nodes, dim)
    embeddings.add_(normal(num_classes, dim)[labels], alpha=0.55).add_(normal(1, dim), alpha=0.55)
    num_labelled = min(math.ceil(GAMMA * num_nodes), num_nodes - 1)
    return Problem(embeddings.to(dtype), labels, num_labelled, num_classes)


def authors(problem: Problem) -> Loss:
    n, eps = problem.num_labelled, 1e-10

    def guarded(matrix: Tensor) -> Tensor:
        small = torch.tensor(eps, device=matrix.device, dtype=matrix.dtype)
        matrix = torch.where(matrix.isnan(), small, matrix)
        return torch.where(matrix.isinf(), small, matrix)

    def check(matrix: Tensor) -> None:
        if torch.sum(torch.isnan(matrix)) or torch.sum(torch.isinf(matrix)):
            raise ValueError("NaN in the graph")

    def loss(embeddings: Tensor) -> Tensor:
        z = embeddings / embeddings.norm(dim=1, keepdim=True)
        w = torch.exp(-(torch.cdist(z, z) ** 2) / (2 * problem.sigma**2))
        w = (w - torch.diag(torch.diag(w))).to(torch.float64)
        w = w + w.T  # twice what it was, which T does not see
        check(w)
        d = torch.diag(w.sum(dim=1) ** -0.5)
        s = guarded(w.mm(d).T.mm(d))
        check(s)
        t = s / s.sum(dim=0, keepdim=True)
        t = t / t.sum(dim=1, keepdim=True)
        y = one_hot(problem.labels[:n], problem.num_classes).to(torch.float64)
        identity = torch.eye(len(t) - n, dtype=torch.float64, device=t.device)
        f = torch.linalg.solve(identity - t[n:, n:], t[n:, :n].mm(y))
        check(f)
        return cross_entropy(f, problem.labels[n:])

    return loss


def lean(problem: Problem, dtype: torch.dtype) -> Loss:
    n = problem.num_labelled

    def loss(embeddings: Tensor) -> Tensor:
        t = dense.transition(embeddings.to(dtype), problem.sigma)
        f = dense.harmonic(t, problem.labels[:n], problem.num_classes)
        return dense.official_loss(f, problem.labels[n:])

    return loss


def compiled(problem: Problem) -> Loss:
    torch._dynamo.reset()  # each size is compiled for itself
    return torch.compile(lean(problem, torch.float32), dynamic=False)


class Ours:
    def __init__(self, problem: Problem, **options) -> None:
        self.problem, self.labelled = problem, problem.labelled
        self.gloss = GLoss(problem.num_classes, sigma=problem.sigma, gamma=GAMMA, **options)

    def __call__(self, embeddings: Tensor) -> Tensor:
        return self.gloss(embeddings, self.problem.labels, labelled=self.labelled)


@dataclass(frozen=True)
class Contender:
    """power: of N, with which a step's time grows at most; bytes_per_pair: of nodes, at its peak."""

    name: str
    build: Callable[[Problem], Loss]
    power: float = 3
    bytes_per_pair: float = 0
    most_nodes: int | None = None
    needs: str | None = None  # a module
    devices: tuple[str, ...] = ("cpu", "cuda")
    sure_up_to: float = 0  # nodes of which it is tried, however long a step may take
    compiles: bool = False  # for half a minute and more, so that quick runs leave it out


CONTENDERS = [
    Contender(OURS, Ours, power=2, sure_up_to=math.inf),
    Contender(
        OURS_UNCHECKED,
        lambda p: Ours(p, validate=False),
        power=2,
        devices=("cuda",),
        most_nodes=256,
    ),
    Contender(OURS_BF16, lambda p: Ours(p, precision="bf16"), power=2, devices=("cuda",)),
    Contender(AUTHORS, authors, bytes_per_pair=110, sure_up_to=2048),  # where goals are set
    Contender(LEAN, lambda p: lean(p, torch.float64), bytes_per_pair=105),
    Contender(FP32, lambda p: lean(p, torch.float32), bytes_per_pair=62),
    Contender(COMPILED, compiled, bytes_per_pair=62, most_nodes=4096, compiles=True),
    Contender(KEOPS, keops_loss, power=2, needs="pykeops", compiles=True),
]


def contenders_for(device: str) -> list[Contender]:
    return [contender for contender in CONTENDERS if device in contender.devices]


class Step:
    """Forward and backward of one contender; gradients do not accumulate."""

    def __init__(self, contender: Contender, problem: Problem) -> None:
        self.contender = contender
        self.loss = contender.build(problem)
        self.embeddings = problem.embeddings.detach().requires_grad_()

    def __call__(self) -> Tensor:
        self.embeddings.grad = None
        loss = self.loss(self.embeddings)
        loss.backward()
        return loss.detach()
