"""GLoss: how well a batch's labels are recovered by propagation on the graph of its embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

from friction_kernels.graph import checks
from friction_kernels.graph.checks import Solver
from friction_kernels.graph.compiling import uncompiled
from friction_kernels.graph.nodes import Nodes, arrange, draw_keys, first_of, rank_nodes
from friction_kernels.graph.propagation import inverse_square, propagate_nodes
from friction_kernels.graph.select import GRAPH_BACKENDS, GraphBackend, choose
from friction_kernels.graph.sigma import RULES, Rule, gaussian_sigma
from friction_kernels.graph.tiles import PRECISIONS, Precision
from friction_kernels.losses.batch import Launched, one_launch_loss, one_launch_serves
from friction_kernels.losses.distributed import gather_rows, same_on_all_ranks
from friction_kernels.losses.memory import GraphMemory
from friction_kernels.losses.statistics import GLossStats
from friction_kernels.warn import warn

Form = Literal["official", "log"]
Reduction = Literal["mean", "sum", "none"]
FORMS, REDUCTIONS = get_args(Form), get_args(Reduction)
SIGMA_AT_FIRST = 0.5  # of sigma="learnable"
PROBABILITY_FLOOR = 1e-6  # of the log form, whose slope would be infinite at F = 0


class GLoss(torch.nn.Module):
    """Graph-guided loss: hide a part of the batch's labels, and score how propagation recovers them.

    Equals, with a drawn part L of the labelled documents and the rest as U:

        F = label_propagation(embeddings, labels, num_classes, sigma=sigma, labelled=drawn)
        loss = cross_entropy(F[U], labels[U], class_weight)        # form="official"
        loss = nll_loss(F[U].log(), labels[U], class_weight)       # form="log"

    Call: loss = loss_fn(embeddings, labels, labelled=None), see `forward`. `loss_fn.last` has what the
    call did (`GLossStats`).

    Source: Sharma, Agarwal, Kumar, "G-Loss: Graph-Guided Fine-Tuning of Language Models", LoG 2025,
    arXiv 2604.25853, and their code. From the paper: the graph, the propagation, the log form. From the
    code: the official form, the draw, the rules "root" and "mst". Ours: memory, gather, "learnable",
    ignore_index, the floor of the log form, solving without stored matrices.

    Args:
        num_classes: C, at least 2.
        sigma: width of the Gaussian, in units of distance between normalised embeddings: a float; a
            tensor of one element (a Parameter becomes this module's, gradients flow to it); "learnable", a
            positive parameter that starts at 0.5; or a rule of `gaussian_sigma`, applied anew at each call
            (default 0.5).
        gamma: share of the nodes with a known label that is drawn as labelled, in [0, 1): at each call
            anew, uniformly, rounded up as in the authors' code, but at least one node and at most all but
            one. With a memory that has rows, none need be drawn (default 0.7).
        form: "official", what the authors' code computes: F are taken as logits, so the loss cannot fall
            below log(1 + (C - 1) / e). "log", what the paper prints: -log F of the right class, F from
            1e-6; a scored node whose class no labelled node has counts in the mean with -log 1e-6 = 13.8,
            whatever the embeddings are, and has no gradient (default "official").
        class_weight: (C,), finite and not negative: the mean is weighted as
            torch.nn.functional.cross_entropy weights it; None weights all alike (default None).
        solver: "cg" or "iterate", as in `label_propagation` (default "cg").
        tol: residual at which "cg" ends, as there, above 0 (default 1e-5).
        max_iter: iterations of "cg" at most, at least 1 (default 64).
        num_iters: steps of "iterate", at least 1 (default 10).
        precision: of the products of embeddings: "fp32", "tf32" or "bf16" (default "fp32").
        reduction: "mean" or "sum" over the scored nodes; "none" gives (N,), 0 at nodes that are not
            scored (default "mean").
        ignore_index: documents with this label are nodes of the graph, and neither labelled nor scored
            (default -100).
        memory: a `GraphMemory`, whose rows join each graph as labelled nodes (default None).
        backend: "auto", "triton", "chunked" or "dense", as in `label_propagation` (default "auto").
        generator: of the draw, on any device; None is the default generator of the embeddings' device
            (default None).
        gather: build the graph over the batches of all ranks (torch.distributed), the draw made by rank
            0. Every rank computes the same loss, and its own rows get exactly the gradient that one
            process with all rows would give them. DistributedDataParallel then averages what the ranks'
            rows contribute, where one process would sum it: multiply the loss by the world size to have
            the same step. (A trained sigma gets its whole gradient on every rank.) Without
            torch.distributed nothing changes (default False).
        memory_budget: bytes that may hold T_UU while it is solved for; 0 recomputes it (default 0).
        validate: on a GPU, where the call is one launch and there is no memory, False leaves out the
            checks of values, their warnings, and the wait for them; elsewhere it changes nothing
            (default True).

    On a GPU the host waits once a call for the checks, and once an iteration of "cg". With Triton, up to
    256 nodes and 64 classes, solver "cg" and reduction "mean" loss and gradient are one launch, for which
    nothing waits: then the next call warns of a solve that did not converge.

    Warns: once, of classes that are to be recovered and have no labelled node; of a solve that does not
    converge, with its residual.

    Raises:
        ValueError, TypeError: an argument out of range, from the constructor; embeddings or labels without
            meaning, from the call, which names the rows.
        RuntimeError: a backend that cannot serve; from backward(), a second derivative.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        sigma: float | Tensor | Literal["learnable"] | Rule = 0.5,
        gamma: float = 0.7,
        form: Form = "official",
        class_weight: Tensor | None = None,
        solver: Solver = "cg",
        tol: float = 1e-5,
        max_iter: int = 64,
        num_iters: int = 10,
        precision: Precision = "fp32",
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        memory: GraphMemory | None = None,
        backend: GraphBackend = "auto",
        generator: torch.Generator | None = None,
        gather: bool = False,
        memory_budget: int = 0,
        validate: bool = True,
    ) -> None:
        super().__init__()
        checks.check_integer("num_classes", num_classes, 2)
        checks.check_share("gamma", gamma)
        checks.check_choice("form", form, FORMS)
        checks.check_class_weight(class_weight, num_classes)
        checks.check_solver(solver, tol, max_iter, num_iters)
        checks.check_choice("precision", precision, PRECISIONS)
        checks.check_choice("reduction", reduction, REDUCTIONS)
        checks.check_choice("backend", backend, GRAPH_BACKENDS)
        checks.check_integer("memory_budget", memory_budget, 0)
        if memory is not None and not isinstance(memory, GraphMemory):
            raise TypeError(f"memory must be a GraphMemory, got {type(memory).__name__}")
        self.num_classes, self.gamma, self.form = num_classes, gamma, form
        self.solver, self.tol, self.max_iter, self.num_iters = solver, tol, max_iter, num_iters
        self.precision, self.backend, self.memory_budget = precision, backend, memory_budget
        self.reduction, self.ignore_index = reduction, ignore_index
        self.generator, self.gather, self.validate = generator, gather, validate
        self.memory = memory
        if class_weight is not None:
            class_weight = class_weight.detach()
        self.register_buffer("class_weight", class_weight, persistent=False)
        self._set_sigma(sigma)
        self._last: GLossStats | None = None
        self._launched: Launched | None = None  # in its place, where the last call was one launch
        self._warned_of_classes = False

    def _set_sigma(self, sigma: float | Tensor | Literal["learnable"] | Rule) -> None:
        self.sigma_rule: Rule | None = None
        if not isinstance(sigma, str):
            checks.check_sigma(sigma)
            self._sigma = sigma
            return
        checks.check_choice("sigma", sigma, ("learnable", *RULES))
        if sigma == "learnable":
            self.log_sigma = torch.nn.Parameter(torch.tensor(math.log(SIGMA_AT_FIRST)))
        else:
            self.sigma_rule = sigma

    @property
    def sigma(self) -> float | Tensor | str:
        """The width in use, or the name of the rule that gives it at each call."""
        return self._own_sigma() if self.sigma_rule is None else self.sigma_rule

    def _own_sigma(self) -> float | Tensor:
        return self.log_sigma.exp() if hasattr(self, "log_sigma") else self._sigma

    if TYPE_CHECKING:  # Module's takes and returns anything

        def __call__(
            self, embeddings: Tensor, labels: Tensor, labelled: Tensor | None = None
        ) -> Tensor: ...

    @uncompiled
    def forward(self, embeddings: Tensor, labels: Tensor, labelled: Tensor | None = None) -> Tensor:
        """The loss of a batch, differentiable in embeddings and sigma.

        Args:
            embeddings: (N, d), float16, bfloat16, float32 or float64, of any length but zero.
            labels: (N,), integers in [0, C), or ignore_index.
            labelled: bool (N,), the nodes that keep their label; None draws them (default None).

        Returns:
            (), or (N,) for reduction "none"; float32, or float64 where embeddings are.

        Raises:
            ValueError, TypeError: embeddings, labels or labelled without meaning; rows are named.
            RuntimeError: the backend that was asked for cannot serve.
        """
        checks.check_batch(embeddings, labels, labelled)
        if self.memory is not None:
            self.memory.check_rows(embeddings)
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.gather:
                embeddings, labels, labelled = gather_rows(embeddings, labels, labelled)
            return self._loss_of_graph(embeddings, labels, labelled)

    def _loss_of_graph(self, embeddings: Tensor, labels: Tensor, labelled: Tensor | None) -> Tensor:
        num_new, num_remembered = len(embeddings), 0
        if self.memory is not None:
            num_remembered = len(self.memory)
            embeddings, labels, labelled = self.memory.join(embeddings, labels, labelled)
        backend = choose(self.backend, embeddings)
        in_one_launch = self._one_launch_serves(backend, len(embeddings))
        keys = None
        if labelled is None:
            keys = draw_keys(len(labels), labels.device, self.generator)
            keys = same_on_all_ranks(keys) if self.gather else keys
        if self.sigma_rule is None:
            sigma = self._own_sigma()
        else:
            sigma = gaussian_sigma(
                embeddings, labels, self.sigma_rule, ignore_index=self.ignore_index
            )
        if in_one_launch and not self.validate and self.memory is None:
            if labelled is None:
                known = labels != self.ignore_index
                labelled = first_of(*rank_nodes(known, None, keys, self.gamma, 0))
            return self._loss_in_one_launch(embeddings, labels, labelled, sigma)
        nodes = arrange(
            embeddings,
            labels,
            labelled=labelled,
            num_classes=self.num_classes,
            sigma=sigma,
            ignore_index=self.ignore_index,
            keys=keys,
            gamma=self.gamma,
            num_remembered=num_remembered,
            count_missing_classes=not self._warned_of_classes,
        )
        if nodes.num_scored == 0:
            raise ValueError(
                "no unlabelled node has a known label: there is nothing to score; set labelled to False "
                "for some nodes that have a label"
            )
        self._warn_of_missing_classes(nodes)
        if in_one_launch:
            if self._launched is not None:  # the checks have waited for it
                self._launched.warn(self.tol)
            labelled = first_of(nodes.order, nodes.num_labelled)
            loss = self._loss_in_one_launch(embeddings, labels, labelled, sigma)
        else:
            loss = self._loss_in_passes(nodes, sigma, backend, num_new)
        if self.memory is not None and self.training:
            self.memory.remember(nodes, num_new, gathered=self.gather)
        return loss

    def _loss_in_passes(
        self, nodes: Nodes, sigma: float | Tensor, backend: str, num_new: int
    ) -> Tensor:
        f, report = propagate_nodes(
            nodes,
            self.num_classes,
            sigma,
            solver=self.solver,
            tol=self.tol,
            max_iter=self.max_iter,
            num_iters=self.num_iters,
            precision=self.precision,
            backend=backend,
            memory_budget=self.memory_budget,
        )
        scored = f[: nodes.num_scored]
        truth = nodes.labels[nodes.num_labelled : nodes.num_labelled + nodes.num_scored]
        self._launched = None
        self._last = GLossStats(
            iterations=report.iterations,
            residual=report.residual,
            accuracy=(scored.detach().argmax(dim=1) == truth).to(f.dtype).mean(),
            num_nodes=len(nodes.z),
            num_labelled=nodes.num_labelled,
            num_scored=nodes.num_scored,
            num_unreached=report.unreached,
        )
        return self._reduce(scored, truth, nodes, num_new)

    def _one_launch_serves(self, backend: str, num_nodes: int) -> bool:
        return (
            backend == "triton"
            and self.solver == "cg"
            and self.reduction == "mean"
            and one_launch_serves(num_nodes, self.num_classes)
        )

    def _loss_in_one_launch(
        self, embeddings: Tensor, labels: Tensor, labelled: Tensor, sigma: float | Tensor
    ) -> Tensor:
        loss, self._launched = one_launch_loss(
            embeddings,
            labelled,
            inverse_square(sigma, embeddings.device, torch.float32),
            labels=labels,
            num_classes=self.num_classes,
            class_weight=self._class_weight_on(embeddings.device),
            form=self.form,
            tol=self.tol,
            max_iter=self.max_iter,
            ignore_index=self.ignore_index,
            precision=self.precision,
        )
        return loss

    @property
    def last(self) -> GLossStats | None:
        """What the last call did; None before the first."""
        return self._last if self._launched is None else self._launched.stats()

    def _reduce(self, f: Tensor, truth: Tensor, nodes: Nodes, num_new: int) -> Tensor:
        weight = self._class_weight_on(f.device)
        weight = None if weight is None else weight.to(f.dtype)
        if self.form == "official":
            loss = cross_entropy(f, truth, weight, reduction=self.reduction)
        else:
            log_f = f.clamp_min(PROBABILITY_FLOOR).log()
            loss = nll_loss(log_f, truth, weight, reduction=self.reduction)
        if self.reduction != "none":
            return loss
        places = nodes.order[nodes.num_labelled : nodes.num_labelled + nodes.num_scored]
        return loss.new_zeros(num_new).index_copy(0, places, loss)

    def _class_weight_on(self, device: torch.device) -> Tensor | None:
        if self.class_weight is not None and self.class_weight.device != device:
            self.class_weight = self.class_weight.to(device)  # once, not at every call
        return self.class_weight

    def _warn_of_missing_classes(self, nodes: Nodes) -> None:
        if not nodes.num_missing_classes:
            return
        self._warned_of_classes = True
        present = nodes.labels[: nodes.num_labelled]
        wanted = nodes.labels[nodes.num_labelled : nodes.num_labelled + nodes.num_scored]
        missing = sorted(set(wanted.tolist()) - set(present.tolist()))
        warn(
            f"no labelled node has class {', '.join(map(str, missing))}, which unlabelled nodes have: "
            "they cannot be recovered; use larger or stratified batches, a larger gamma, or a "
            "GraphMemory (said once)"
        )

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, sigma={self.sigma}, gamma={self.gamma}, "
            f"form={self.form!r}, solver={self.solver!r}, precision={self.precision!r}"
        )
