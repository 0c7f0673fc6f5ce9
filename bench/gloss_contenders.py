"""What the suite `gloss` compares, as data."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.gloss_forms import Loss, Ours, Problem, authors, compiled, lean, one_pass, scikit_learn
from bench.gloss_keops import keops_loss


@dataclass(frozen=True)
class Graph:
    """A way to compute G-Loss.

    power: of N, with which a step's time grows at most; bytes_per_pair: of nodes, at its peak; sure_up_to:
    nodes of which it is tried, however long a step may take; counted_as: whose matrix operations it has.
    """

    name: str
    build: Callable[[Problem], Loss]
    power: float = 3
    bytes_per_pair: float = 0
    fewest_nodes: int = 0
    most_nodes: float = math.inf
    needs: str | None = None  # a module that may be missing
    devices: tuple[str, ...] = ("cpu", "cuda")
    sure_up_to: float = 0
    compiles: bool = False  # for half a minute and more
    backward: bool = True
    ours: bool = False
    counted_as: str | None = None
    baseline: str | None = None
    optimizer: str = "GLoss"
    state: str = "plain"


OURS = "GLoss"
OURS_FORWARD = "GLoss, forward only"
OURS_UNCHECKED = "GLoss, validate=False"
OURS_BF16 = "GLoss, bf16"
OURS_STORED = "GLoss, 1 GB for T_UU"
AUTHORS = "dense float64, as the authors do it"
LEAN = "dense float64, lean"
FP32 = "dense fp32, eager"
COMPILED = "dense fp32, torch.compile"
KEOPS = "PyKeOps"
LABEL_PROPAGATION = "scikit-learn LabelPropagation, forward only"
LABEL_SPREADING = "scikit-learn LabelSpreading, forward only"


def ours(name: str, options: dict | None = None, **fields) -> Graph:
    def build(problem: Problem) -> Ours:
        return Ours(problem, **(options or {}))

    fields = {"power": 2, "baseline": AUTHORS, "counted_as": OURS, **fields}
    return Graph(name, build, ours=True, **fields)


def of_scikit_learn(name: str, cls: str, **options) -> Graph:
    return Graph(
        name,
        lambda problem: scikit_learn(problem, cls, **options),
        bytes_per_pair=40,
        needs="sklearn",
        devices=("cpu",),
        backward=False,
        baseline=OURS_FORWARD,
    )


CONTENDERS = (
    ours(OURS, counted_as=None, sure_up_to=math.inf),
    ours(OURS_UNCHECKED, {"validate": False}, devices=("cuda",), most_nodes=256),
    ours(OURS_BF16, {"precision": "bf16"}, devices=("cuda",), most_nodes=32_768),
    ours(OURS_STORED, {"memory_budget": 1_000_000_000}, fewest_nodes=65_536, most_nodes=65_536),
    Graph(AUTHORS, authors, bytes_per_pair=110, sure_up_to=2048),  # where goals are set
    Graph(LEAN, lambda p: lean(p, torch.float64), bytes_per_pair=105, baseline=AUTHORS),
    Graph(FP32, lambda p: lean(p, torch.float32), bytes_per_pair=62, baseline=AUTHORS),
    Graph(
        COMPILED,
        compiled,
        bytes_per_pair=62,
        most_nodes=4096,
        compiles=True,
        counted_as=FP32,
        baseline=AUTHORS,
    ),
    Graph(KEOPS, keops_loss, power=2, needs="pykeops", compiles=True, baseline=AUTHORS),
    ours(OURS_FORWARD, backward=False, devices=("cpu",), baseline=OURS, counted_as=None),
    of_scikit_learn(LABEL_PROPAGATION, "LabelPropagation"),
    of_scikit_learn(LABEL_SPREADING, "LabelSpreading", max_iter=1000),
)
PASSES = tuple(
    Graph(f"pass {name}", one_pass(name), power=2, backward=False, ours=True)
    for name in ("logsumexp", "apply", "gradient")
)


class Step:
    """Forward and backward of one contender; gradients do not accumulate."""

    slow = new_gradients = False

    def __init__(self, contender: Graph, problem: Problem) -> None:
        self.contender, self.name, self.repeats = contender, contender.name, 1
        self.loss = contender.build(problem)
        self.embeddings = problem.embeddings.detach().requires_grad_(contender.backward)

    def prepare(self) -> None:
        self.embeddings.grad = None

    def step(self) -> Tensor:
        self.embeddings.grad = None
        loss = self.loss(self.embeddings)
        if self.contender.backward:
            loss.backward()
        return loss.detach()
