"""What the suite `gloss` compares, as data."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.gloss_forms import Loss, Ours, Problem, authors, compiled, keops, lean, scikit_learn


@dataclass(frozen=True)
class Graph:
    """A way to compute G-Loss.

    power: of N, with which a step's time grows at most; bytes_per_pair: of nodes, at its peak; sure_up_to:
    nodes of which it is tried, however long a step may take.
    """

    name: str
    build: Callable[[Problem], Loss]
    power: float = 3
    bytes_per_pair: float = 0
    most_nodes: float = math.inf
    needs: str | None = None  # a module that may be missing
    devices: tuple[str, ...] = ("cpu", "cuda")
    sure_up_to: float = 0
    compiles: bool = False  # for half a minute and more
    backward: bool = True
    ours: bool = False
    baseline: str | None = None


OURS = "GLoss"
OURS_FORWARD = "GLoss, forward only"
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

    return Graph(name, build, ours=True, **{"power": 2, "baseline": AUTHORS, **fields})


def dense(name: str, build: Callable[[Problem], Loss], bytes_per_pair: float, **fields) -> Graph:
    return Graph(name, build, bytes_per_pair=bytes_per_pair, **{"baseline": AUTHORS, **fields})


def of_scikit_learn(name: str, cls: str, **options) -> Graph:
    return dense(
        name,
        lambda problem: scikit_learn(problem, cls, **options),
        40,
        needs="sklearn",
        devices=("cpu",),
        backward=False,
        baseline=OURS_FORWARD,
    )


CONTENDERS = (
    ours(OURS, sure_up_to=math.inf),
    ours("GLoss, validate=False", {"validate": False}, devices=("cuda",), most_nodes=256),
    ours("GLoss, bf16", {"precision": "bf16"}, devices=("cuda",), most_nodes=32_768),
    dense(AUTHORS, authors, 110, sure_up_to=2048, baseline=None),  # goals are set up to there
    dense(LEAN, lambda problem: lean(problem, torch.float64), 105),
    dense(FP32, lambda problem: lean(problem, torch.float32), 62),
    dense(COMPILED, compiled, 62, most_nodes=4096, compiles=True),
    Graph(KEOPS, keops, power=2, needs="pykeops", compiles=True, baseline=AUTHORS),
    ours(OURS_FORWARD, backward=False, devices=("cpu",), baseline=OURS),
    of_scikit_learn(LABEL_PROPAGATION, "LabelPropagation"),
    of_scikit_learn(LABEL_SPREADING, "LabelSpreading", max_iter=1000),
)
