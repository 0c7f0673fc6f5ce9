"""GLoss: how well propagation on the graph of a batch's embeddings recovers its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from friction_kernels.choices import check_choice
from friction_kernels.graph import checks
from friction_kernels.graph.nodes import arrange, draw_keys, draw_labelled, first_copies
from friction_kernels.graph.route import GraphBackend, Settings, Solver, check_backend
from friction_kernels.graph.torch_modes import refuse_recomputation, refuse_transforms, uncompiled
from friction_kernels.losses import notices
from friction_kernels.losses.distributed import gather_rows, same_on_all_ranks
from friction_kernels.losses.document_ids import NO_ID, int64_ids
from friction_kernels.losses.fused import FusedStats
from friction_kernels.losses.memory import GraphMemory
from friction_kernels.losses.recovery import (
    FORMS,
    Form,
    Options,
    check_nodes,
    loss_of_nodes,
    loss_of_nothing,
    unchecked_loss,
)
from friction_kernels.losses.row_softmax import REDUCTIONS, Reduction
from friction_kernels.losses.statistics import GLossStats
from friction_kernels.losses.width import Width, WidthModule
from friction_kernels.scores.chunked import Precision


class GLoss(WidthModule):
    """Graph-guided loss: hide some of the batch's labels and score how well propagation recovers them.

    Equals, with a random subset L of the labelled documents and the rest as U:

        F = label_propagation(
            embeddings, labels, num_classes, sigma=sigma, labelled=drawn
        )
        loss = cross_entropy(F[U], labels[U], class_weight)        # form="official"
        loss = nll_loss(F[U].log(), labels[U], class_weight)       # form="log"

    Call: loss = loss_fn(embeddings, labels, labelled=None, ids=None), see `forward`. `loss_fn.last` holds
    statistics of the last call (`GLossStats`), `loss_fn.num_skipped` the number of calls with one document.

    Source: Sharma, Agarwal, Kumar, "G-Loss: Graph-Guided Fine-Tuning of Language Models", LoG 2025,
    arXiv 2604.25853, and their code. From the paper: the graph, the propagation, the log form. From the
    code: the official form, the draw, the rules "root" and "mst". Ours: memory, gather, "learnable",
    ignore_index, the floor of the log form, solving without stored matrices.

    Args:
        num_classes: C, at least 2.
        sigma: width of the Gaussian, in units of distance between normalised embeddings: a float; a
            tensor of one element (a Parameter is registered in this module, and gradients flow to it);
            "learnable", a positive parameter initialised to 0.5; or a rule of `gaussian_sigma`, applied at
            each call (default 0.5).
        gamma: fraction of the nodes with a known label that is drawn as labelled, in [0, 1). Each call draws
            uniformly and rounds up as the authors' code does, but takes at least one node and at most all
            but one. With a non-empty memory, none need be drawn (default 0.7).
        form: "official", as computed by the authors' code: F is used as logits, so the loss cannot fall
            below log(1 + (C - 1) / e). "log", as printed in the paper: -log F of the correct class, with F
            clamped to [1e-6, 1], so the loss is never below zero. If no labelled node has a scored node's
            class, that node contributes -log 1e-6 = 13.8 to the mean, whatever the embeddings, and has no
            gradient (default "official").
        class_weight: (C,), finite and not negative: the mean is weighted as in
            torch.nn.functional.cross_entropy; None weights all classes equally (default None).
        solver: "cg" or "iterate", as in `label_propagation` (default "cg").
        tol: residual at which "cg" stops, as in `label_propagation`, above 0 (default 1e-5).
        max_iter: maximum number of iterations of "cg", at least 1 (default 64).
        num_iters: steps of "iterate", at least 1 (default 10).
        precision: of the products of embeddings: "fp32", "tf32" or "bf16" (default "fp32").
        reduction: "mean" or "sum" over the scored nodes; "none" gives (N,), 0 at nodes that are not
            scored (default "mean").
        ignore_index: documents with this label are nodes of the graph, but neither labelled nor scored
            (default -100).
        memory: a `GraphMemory`, whose rows join each graph as labelled nodes. It stores each batch in
            training mode if gradients are enabled. Pass `ids` to the call, or a document's own older row
            reveals its hidden label (default None).
        backend: "auto", "triton", "chunked" or "dense", as in `label_propagation` (default "auto").
        generator: for the draw, on any device; None is the default generator of the embeddings' device
            (default None).
        gather: build the graph over the batches of all ranks (torch.distributed), with rank 0's draw. Every
            rank computes the same loss, and its own rows get exactly the gradient that they would get in a
            single process with all rows. DistributedDataParallel then averages the contributions of the
            ranks' rows, where a single process would sum them: multiply the loss by the world size to get
            the same step. (A trained sigma gets its whole gradient on every rank.) Has no effect without
            torch.distributed (default False).
        memory_budget: bytes that may hold weights between passes, as in `label_propagation`. None uses a
            sixteenth of the free memory in plain torch, and nothing with `gather`, because all ranks must
            compute alike (default None).
        validate: False skips the checks of values, their warnings, and the wait for them, if the batch
            kernels serve the call, on a GPU, and there is no memory; otherwise it has no effect
            (default True).

    On a GPU the host waits once per call for the checks, and once per iteration of "cg". With Triton, up to
    256 nodes and 64 classes, solver "cg" and reduction "mean", loss and gradient take three launches, for
    which the host does not wait: the next call then warns if a solve did not converge.

    A call inside a function that torch.utils.checkpoint recomputes repeats its draw if it uses the default
    generator; with a generator, or a memory that it adds to, backward() raises. torch.func's transforms are
    not supported.

    Warns: once about classes to be recovered that have no labelled node, about a call with a memory but no
    ids, and about a single document; each time a solve does not converge, with its residual, and if
    unlabelled nodes are not reached by any labelled node.

    Raises:
        ValueError, TypeError: an argument out of range, from the constructor; invalid embeddings or labels,
            from the call, which names the rows.
        RuntimeError: a backend that cannot serve; a transform of torch.func; from backward(), a second
            derivative, and the recomputation of a loss with a generator, or a memory that it adds to.
            derivative, and the recomputation of a loss with a generator, or a memory that it adds to.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        sigma: Width = 0.5,
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
        memory_budget: int | None = None,
        validate: bool = True,
    ) -> None:
        super().__init__()
        checks.check_integer("num_classes", num_classes, 2)
        checks.check_share("gamma", gamma)
        check_choice("form", form, FORMS)
        checks.check_class_weight(class_weight, num_classes)
        Settings(solver, tol, max_iter, num_iters, precision, backend, memory_budget).check()
        check_choice("reduction", reduction, REDUCTIONS)
        checks.check_ignore_index(ignore_index)
        if memory is not None and not isinstance(memory, GraphMemory):
            raise TypeError(f"memory must be a GraphMemory, got {type(memory).__name__}")
        self.num_classes, self.gamma, self.form = num_classes, gamma, form
        self.solver, self.tol, self.max_iter, self.num_iters = solver, tol, max_iter, num_iters
        self.precision, self.backend, self.memory_budget = precision, backend, memory_budget
        self.reduction, self.ignore_index = reduction, ignore_index
        self.generator, self.gather, self.validate = generator, gather, validate
        self.memory = memory
        weight = None if class_weight is None else class_weight.detach()
        self.register_buffer("class_weight", weight, persistent=False)
        self._set_sigma(sigma)
        self._last: GLossStats | FusedStats | None = None
        self.num_skipped = 0  # calls with a single document, whose loss was zero
        self._warned_of_classes = self._warned_of_ids = False

    if TYPE_CHECKING:  # Module.__call__ is untyped

        def __call__(
            self,
            embeddings: Tensor,
            labels: Tensor,
            labelled: Tensor | None = None,
            ids: Tensor | None = None,
        ) -> Tensor: ...

    @uncompiled
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        labelled: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, differentiable in embeddings and sigma.

        Args:
            embeddings: (N, d), float16, bfloat16, float32 or float64, of any nonzero length (subnormal
                numbers count as zero).
            labels: (N,), integers of any type, in [0, C), or ignore_index.
            labelled: bool (N,), the nodes that keep their label; None draws them (default None).
            ids: (N,), integers between -2^63 and 2^63 that identify documents, such as their index in the
                data set. Rows of the memory with one of these ids are left out of this graph and replaced
                afterwards. Copies of a document within the batch are labelled together, and the last one is
                stored. None: a memory does not recognise its documents (default None).

        Returns:
            (), or (N,) for reduction "none"; float32, or float64 if the embeddings are. A single document,
            as at the end of a data set, has no graph: its loss and its gradient are zero.

        Raises:
            ValueError, TypeError: invalid embeddings, labels, labelled or ids; the message names the rows.
            RuntimeError: as the class says.
        """
        checks.check_batch(embeddings, labels, labelled, ids)
        if self.memory is not None:
            self.memory.check_rows(embeddings)
        refuse_transforms("GLoss", embeddings, self.sigma)
        if self._remembers():
            refuse_recomputation("GLoss", "this call would add to its memory")
        if self.generator is not None and labelled is None:
            refuse_recomputation("GLoss", "its generator draws anew")
        labels = checks.int64_labels(labels)
        ids = None if ids is None else int64_ids(ids)
        with torch.autocast(embeddings.device.type, enabled=False):
            if self.gather:
                embeddings, labels, labelled, ids = gather_rows(embeddings, labels, labelled, ids)
            return self._loss_of_graph(embeddings, labels, labelled, ids)

    def _loss_of_graph(
        self, embeddings: Tensor, labels: Tensor, labelled: Tensor | None, ids: Tensor | None
    ) -> Tensor:
        num_new, memory, past = len(embeddings), self.memory, None
        if memory is not None:
            embeddings, labels, labelled, past = memory.join(
                embeddings, labels, labelled, ids, self.ignore_index
            )
        check_backend(self.backend, embeddings)
        keys = self._draw(num_new, labels, ids) if labelled is None else None
        present = slice(None) if past is None else ~past.absent
        sigma = self._sigma_of(embeddings, labels, present, self.ignore_index)
        options = self._options(embeddings.device)
        if memory is None and not self.validate:
            known, chosen = labels != self.ignore_index, labelled
            if chosen is None:
                chosen = draw_labelled(known, keys, self.gamma, ids is not None)
            result = unchecked_loss(embeddings, labels, chosen, sigma, options)
            if result is not None:
                loss, self._last = result
                return loss
        nodes = arrange(
            embeddings,
            labels,
            labelled=labelled,
            num_classes=self.num_classes,
            sigma=sigma,
            ignore_index=self.ignore_index,
            keys=keys,
            gamma=self.gamma,
            past=past,
            ids_outside=None if ids is None else ids == NO_ID,
            equal_keys_together=ids is not None,
            count_missing_classes=not self._warned_of_classes,
        )
        if num_new == 1 and (len(nodes.z) == 1 or nodes.num_scored == 0):
            self.num_skipped += 1
            if self.num_skipped == 1:
                notices.warn_of_one_document()
            loss, self._last = loss_of_nothing(nodes, sigma, self.reduction)
        else:
            check_nodes(nodes)
            if nodes.num_missing_classes:
                self._warned_of_classes = True
                notices.warn_of_missing_classes(nodes)
            if isinstance(self._last, FusedStats):  # the checks above have already waited
                self._last.warn(self.tol)
            loss, self._last = loss_of_nodes(nodes, embeddings, labels, sigma, options, num_new)
        if memory is not None:
            remembers = self._remembers()
            if ids is None and (remembers or past is not None) and not self._warned_of_ids:
                self._warned_of_ids = True
                notices.warn_without_ids(memory.capacity)
            if remembers:
                memory.remember(nodes, num_new, ids, gathered=self.gather)
        return loss

    def _remembers(self) -> bool:
        return self.memory is not None and self.training and torch.is_grad_enabled()

    def _draw(self, num_new: int, labels: Tensor, ids: Tensor | None) -> Tensor:
        """(N,): random keys, one per document, 0 for a memory's rows. The smallest keys are labelled."""
        keys = draw_keys(num_new, labels.device, self.generator)
        keys = same_on_all_ranks(keys) if self.gather else keys
        keys = keys if ids is None else keys[first_copies(ids)]
        return torch.cat((keys, keys.new_zeros(len(labels) - num_new)))

    def _options(self, device: torch.device) -> Options:
        if self.class_weight is not None and self.class_weight.device != device:
            self.class_weight = self.class_weight.to(device)  # moved once, not at every call
        settings = Settings(*(getattr(self, name) for name in Settings._fields))
        if self.gather and self.memory_budget is None:
            settings = settings._replace(memory_budget=0)
        of_loss = self.num_classes, self.form, self.class_weight, self.reduction, self.ignore_index
        return Options(*of_loss, settings)

    @property
    def last(self) -> GLossStats | None:
        """Statistics of the last call, or None before the first."""
        return self._last.read() if isinstance(self._last, FusedStats) else self._last

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, sigma={self.sigma}, gamma={self.gamma}, "
            f"form={self.form!r}, solver={self.solver!r}, precision={self.precision!r}"
        )
