"""What GLoss is compared with: each computes the official form of one batch, and most its gradient.

The form of the authors is their operations in their order and types, written anew from
https://github.com/saditya13/G-Loss-LoG ("Standalone"): similarities in the embeddings' type, everything
after them in float64, D^(-1/2) as a diagonal matrix, guards against NaN. `lean` is the same mathematics
without what is not needed for it, so that a speed-up can be told from a clean-up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from friction_kernels import GLoss
from friction_kernels.graph import dense, route
from friction_kernels.graph.transition import normalisers
from friction_kernels.scores.backend import Term

Loss = Callable[[Tensor], Tensor]  # embeddings -> the mean over U

SIGMA, GAMMA = 0.5, 0.7


@dataclass(frozen=True)
class Problem:
    """A batch whose first `num_labelled` rows are labelled."""

    embeddings: Tensor
    labels: Tensor
    num_labelled: int
    num_classes: int
    sigma: float = SIGMA
    precision: str = "fp32"

    @property
    def labelled(self) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device) < self.num_labelled


def make_problem(
    num_nodes: int,
    dim: int,
    num_classes: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    precision: str = "fp32",
) -> Problem:
    """Clusters whose cosines are those of MiniLM's embeddings of R8: 0.38 within a class, 0.19 between."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    labels = torch.randint(num_classes, (num_nodes,), generator=generator, device=device)
    embeddings = normal(num_nodes, dim)
    embeddings.add_(normal(num_classes, dim)[labels], alpha=0.55).add_(normal(1, dim), alpha=0.55)
    num_labelled = min(math.ceil(GAMMA * num_nodes), num_nodes - 1)
    embeddings = embeddings.to(dtype)
    return Problem(embeddings, labels, num_labelled, num_classes, precision=precision)


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
        options = {"precision": problem.precision, **options}
        self.problem, self.labelled = problem, problem.labelled
        self.gloss = GLoss(problem.num_classes, sigma=problem.sigma, gamma=GAMMA, **options)

    def __call__(self, embeddings: Tensor) -> Tensor:
        return self.gloss(embeddings, self.problem.labels, labelled=self.labelled)


def scikit_learn(problem: Problem, cls: str, **options) -> Loss:
    """Label propagation as a class of scikit-learn does it: no gradient, its own T (LabelPropagation:
    W with its diagonal, columns divided by their sums; LabelSpreading: D^(-1/2) W D^(-1/2), labels that
    may change), its own criterion for the end."""
    from sklearn import semi_supervised

    labels = problem.labels.masked_fill(~problem.labelled, -1).cpu().numpy()
    model = getattr(semi_supervised, cls)(gamma=1 / (2 * problem.sigma**2), **options)

    def loss(embeddings: Tensor) -> Tensor:
        z = normalize(embeddings.detach().float(), dim=1).cpu().numpy()
        found = model.fit(z, labels).label_distributions_[problem.num_labelled :]
        truth = problem.labels[problem.num_labelled :].cpu()
        return cross_entropy(torch.from_numpy(found), truth)

    return loss


class Passes:
    """The three passes that everything is made of, each once over all rows and columns."""

    def __init__(self, problem: Problem) -> None:
        z = normalize(problem.embeddings.detach().float(), dim=1)
        n, scale = len(z), z.new_tensor(problem.sigma**-2)
        graph = route.Graph(
            z.device, z.dtype, n, n - problem.num_labelled, problem.num_classes, problem.sigma
        )
        chosen = route.choose_route(
            graph, route.Settings(precision=problem.precision, memory_budget=0)
        )
        scores = route.make_scores(chosen, z, scale, problem.precision)
        zeros, every = z.new_zeros(n), range(n)
        values = z.new_ones(n, problem.num_classes)
        degree, u, r = normalisers(scores, 0)
        terms = (
            Term(-r, -u, zeros, values, values),
            Term(-u, -degree / 2, zeros),
            Term(-degree, zeros, zeros),
        )
        self.logsumexp = lambda: scores.logsumexp(-u)
        self.apply = lambda: scores.apply(every, every, -r, -u, values)
        self.gradient = lambda: scores.gradient(terms)[0]


def one_pass(name: str) -> Callable[[Problem], Loss]:
    def build(problem: Problem) -> Loss:
        run = getattr(Passes(problem), name)
        return lambda embeddings: run()

    return build
