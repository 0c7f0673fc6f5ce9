"""What is measured, as data: every suite's scenarios, and who is compared in each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from bench import contenders, peers, states
from bench.contenders import COMPILED, COPY, IN_PLACE, Contender
from bench.gloss_contenders import CONTENDERS as GRAPHS
from bench.gloss_contenders import Graph
from bench.loss_contenders import SIZES
from bench.shapes import COUNTS, ZOO


@dataclass(frozen=True)
class StepScenario:
    """Steps over a model's parameters.

    seconds: in which rounds may begin; default: part of a run that names no models or types.
    """

    model: str
    contenders: Sequence[Contender]
    dtype: torch.dtype = torch.float32
    rounds: int = 24
    seconds: float = 30
    default: bool = True
    bound_by_memory: bool = True  # a bandwidth says something

    @property
    def name(self) -> str:
        return f"{self.model} {str(self.dtype).removeprefix('torch.')}"

    def miniature(self) -> "StepScenario":
        few = tuple(c for c in self.contenders if not c.compiles)
        return replace(self, model="miniature", contenders=few, rounds=2, seconds=5)


@dataclass(frozen=True)
class GraphScenario:
    """Forward and backward of G-Loss over N embeddings in d dimensions and C classes.

    own_process: whether ours is run once more by itself, for the memory of a whole process.
    """

    nodes: int
    contenders: Sequence[Graph]
    dim: int = 384
    classes: int = 8
    precision: str = "fp32"
    rounds: int = 50
    seconds: float = 10
    step_seconds: float = 20  # that a contender's step may take, else it is left out and named
    own_process: bool = False
    default: bool = True

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def name(self) -> str:
        return f"N = {self.nodes:,}, d = {self.dim}, C = {self.classes}, {self.precision}"

    def miniature(self) -> "GraphScenario":
        few = tuple(g for g in self.contenders if not g.compiles)
        return replace(self, nodes=min(self.nodes, 256), contenders=few, rounds=3, seconds=1)


@dataclass(frozen=True)
class OwnScenario:
    """One model of a suite that measures in a way of its own; quick: in miniature."""

    model: str
    seconds: float
    quick: bool = False
    contenders: Sequence[Contender] = ()
    dtype: torch.dtype = torch.float32
    default: bool = True

    @property
    def name(self) -> str:
        return self.model

    def miniature(self) -> "OwnScenario":
        return replace(self, seconds=5, quick=True)


Scenario = StepScenario | GraphScenario | OwnScenario

BF16 = torch.bfloat16
STEPS = (*contenders.OPTIMIZERS, *peers.OF_OPTIMIZERS)
CARD_STEPS = (*STEPS, *contenders.CAPTURED)
# What a step costs here is bookkeeping: compiling and copying say nothing, new gradients do.
TINY = (*(c for c in STEPS if c.name not in (COPY, IN_PLACE, COMPILED)), *contenders.CHANGING)
HOST = (
    *(contenders.RSGDM, contenders.SIG_ADAMW, contenders.SIG_ADAMP),
    *(contenders.TORCH_FUSED, contenders.TORCH_FOR_LOOP, contenders.TORCH_FOREACH),
    *contenders.CHANGING,
)


def optimizers(device: str) -> list[Scenario]:
    on_card = device == "cuda"
    everyone = CARD_STEPS if on_card else STEPS
    tiny = (*TINY, *contenders.CAPTURED) if on_card else TINY
    large = ["gpt2", "llama_1b"] + (["llama_7b_8_of_32_layers"] if on_card else [])
    return [
        StepScenario("vit_b_16", (*everyone, *contenders.CHANGING), seconds=50),
        StepScenario("resnet50", STEPS, rounds=32, seconds=20),
        StepScenario("tiny", tiny, rounds=60, seconds=25, bound_by_memory=False),
        *(StepScenario(model, STEPS, rounds=16, seconds=40) for model in large),
        # The same shapes in fewer layers, for machines that do not hold them all.
        StepScenario("llama_1b_4_of_16_layers", STEPS, rounds=8, default=False, seconds=60),
        StepScenario("vit_b_16", everyone, BF16, seconds=30),
        *(
            StepScenario(model, STEPS, BF16, default=on_card and model == "llama_1b")
            for model in ("resnet50", "gpt2", "llama_1b", "llama_1b_4_of_16_layers")
        ),
    ]


def scale(device: str) -> list[Scenario]:
    models = ("vit_b_16", "resnet50", "gpt2", "llama_1b", "llama_1b_4_of_16_layers")
    return [
        StepScenario(m, states.WAYS, rounds=16, seconds=60, default=m == "vit_b_16") for m in models
    ]


def host(device: str) -> list[Scenario]:
    return [StepScenario(f"vectors_{n}", HOST, seconds=12, bound_by_memory=False) for n in COUNTS]


NODES = {
    "cpu": (64, 128, 256, 512, 1024, 2048, 4096, 8192, 20_000),
    "cuda": (128, 512, 2048, 8192, 32_768),  # few, because most contenders compile for each
}


def graph_of(device: str, nodes: int, precision: str = "fp32") -> GraphScenario:
    if device == "cuda":
        return GraphScenario(nodes, GRAPHS, 768, precision=precision, seconds=6, step_seconds=3)
    seconds, own = 10 if nodes <= 2048 else 30, nodes == NODES["cpu"][-1]
    return GraphScenario(nodes, GRAPHS, precision=precision, seconds=seconds, own_process=own)


def gloss(device: str) -> list[Scenario]:
    found = [graph_of(device, nodes) for nodes in NODES[device]]
    if device == "cpu":
        return found
    ours = tuple(graph for graph in GRAPHS if graph.ours)
    large = GraphScenario(65_536, ours, 768, 52, "bf16", rounds=5, seconds=30, step_seconds=30)
    huge = replace(large, nodes=1_000_000, dim=384, classes=8, rounds=1, step_seconds=120)
    return [*found, large, replace(large, precision="tf32"), replace(huge, seconds=60)]


def lists(device: str) -> list[Scenario]:
    return [OwnScenario("vit_b_16", seconds=40), OwnScenario("tiny", seconds=15)]


def losses(device: str) -> list[Scenario]:
    return [OwnScenario(model, seconds=20) for model in SIZES[device]]


def plan(device: str) -> list[Scenario]:
    return [OwnScenario("20,000 tensors", seconds=20)]


def loop(device: str) -> list[Scenario]:
    return [OwnScenario(model, seconds=30) for model in ("small ViT", "wide ViT")]


def zoo(device: str) -> list[Scenario]:
    from examples.zoo.workload import NAMES  # the examples are no part of the package

    return [StepScenario(ZOO + name, TINY, seconds=12, bound_by_memory=False) for name in NAMES]


@dataclass(frozen=True)
class Suite:
    what: str
    scenarios: Callable[[str], list[Scenario]]  # of a device
    by_default: bool = True


SUITES = {
    "optimizers": Suite("a step over models, against eager code and every peer", optimizers),
    "scale": Suite("compressed states, bf16 parameters, clipping", scale),
    "gloss": Suite("G-Loss against forms that store N x N numbers, and other packages", gloss),
    "lists": Suite("products and sums of gradient lists, and PCGrad", lists),
    "losses": Suite(
        "losses of row softmaxes against stored scores: a vocabulary, a teacher, positives",
        losses,
        by_default=False,
    ),
    "host": Suite("time of a step against the number of tensors", host),
    "plan": Suite("what an optimizer keeps beside parameters, gradients and states", plan),
    "zoo": Suite("a step over the small models of examples/zoo", zoo, by_default=False),
    "loop": Suite("a step inside a training loop, and alone", loop, by_default=False),
}


def scenarios_of(suite: str, device: str) -> list[Scenario]:
    return SUITES[suite].scenarios(device)
