"""The loss of one graph: how well propagation recovers the labels of its scored nodes."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, nll_loss

from friction_kernels.graph.constants import PROBABILITY_FLOOR
from friction_kernels.graph.nodes import Nodes, check_sizes, first_of
from friction_kernels.graph.propagation import graph_of, inverse_square, propagate_nodes
from friction_kernels.graph.route import Graph, Route, Settings, choose_route
from friction_kernels.losses.fused import FusedStats, fused_loss
from friction_kernels.losses.statistics import GLossStats

Form = Literal["official", "log"]
FORMS = get_args(Form)


class Options(NamedTuple):
    """The arguments of GLoss that determine a graph's loss."""

    num_classes: int
    form: str
    class_weight: Tensor | None  # on the graph's device
    reduction: str
    ignore_index: int
    settings: Settings


def check_nodes(nodes: Nodes) -> None:
    """Raise if nothing can be propagated or scored."""
    check_sizes(nodes)
    if nodes.num_scored == 0:
        raise ValueError(
            "no unlabelled node has a known label: there is nothing to score; set labelled to False "
            "for some nodes that have a label"
        )


def loss_of_nothing(
    nodes: Nodes, sigma: float | Tensor, reduction: str
) -> tuple[Tensor, GLossStats]:
    """A zero loss whose gradients are zero rather than missing."""
    nan, zero = nodes.z.new_full((), math.nan), nodes.z.new_zeros(())
    stats = GLossStats(0, zero, nan, len(nodes.z), nodes.num_labelled, 0, zero)
    loss = zero + 0 * nodes.z.sum()  # adding to zero avoids -0
    if isinstance(sigma, Tensor):
        loss = loss + 0 * sigma.to(loss).reshape(())
    return loss.reshape(1) if reduction == "none" else loss, stats


def loss_of_nodes(
    nodes: Nodes,
    embeddings: Tensor,
    labels: Tensor,
    sigma: float | Tensor,
    options: Options,
    num_new: int,
) -> tuple[Tensor, GLossStats | FusedStats]:
    """Return the loss of checked nodes, and its statistics.

    embeddings, labels: the rows that nodes.order indexes; num_new: how many of them are the batch's.
    """
    graph = graph_of(nodes, options.num_classes, options.reduction)
    route = choose_route(graph, options.settings)
    if route.name != "batch_kernel":
        return _loss_in_passes(nodes, sigma, options, route, num_new)
    labelled = first_of(nodes.order, nodes.num_labelled)
    if len(nodes.order) < len(embeddings):  # some rows of a memory are not nodes
        embeddings, labels = embeddings.index_select(0, nodes.order), nodes.labels
        labelled = torch.arange(len(labels), device=labels.device) < nodes.num_labelled
    return _loss_of_a_batch(embeddings, labels, labelled, sigma, options, route)


def unchecked_loss(
    embeddings: Tensor, labels: Tensor, labelled: Tensor, sigma: float | Tensor, options: Options
) -> tuple[Tensor, FusedStats] | None:
    """The same for an unchecked batch, or None if the batch kernels cannot serve it."""
    graph = Graph(
        embeddings.device,
        torch.promote_types(embeddings.dtype, torch.float32),
        len(embeddings),
        0,  # unknown, and not used by the batch kernel's route
        options.num_classes,
        None,
        options.reduction,
    )
    route = choose_route(graph, options.settings)
    if route.name != "batch_kernel":
        return None
    return _loss_of_a_batch(embeddings, labels, labelled, sigma, options, route)


def _loss_of_a_batch(
    embeddings: Tensor,
    labels: Tensor,
    labelled: Tensor,
    sigma: float | Tensor,
    options: Options,
    route: Route,
) -> tuple[Tensor, FusedStats]:
    return fused_loss(
        embeddings,
        inverse_square(sigma, embeddings.device, torch.float32),
        labelled,
        route,
        labels=labels,
        num_classes=options.num_classes,
        class_weight=options.class_weight,
        log_form=options.form == "log",
        tol=options.settings.tol,
        max_iter=options.settings.max_iter,
        ignore_index=options.ignore_index,
        precision=options.settings.precision,
    )


def _loss_in_passes(
    nodes: Nodes, sigma: float | Tensor, options: Options, route: Route, num_new: int
) -> tuple[Tensor, GLossStats]:
    f, report = propagate_nodes(nodes, options.num_classes, sigma, options.settings, route)
    f_scored, scored = f[: nodes.num_scored], slice(nodes.num_labelled, nodes.num_known)
    truth = nodes.labels[scored]
    stats = GLossStats(
        iterations=report.iterations,
        residual=report.residual,
        accuracy=(f_scored.detach().argmax(dim=1) == truth).to(f.dtype).mean(),
        num_nodes=len(nodes.z),
        num_labelled=nodes.num_labelled,
        num_scored=nodes.num_scored,
        num_unreached=report.unreached,
        route=report.route,
    )
    loss = _reduce(f_scored, truth, options)
    if options.reduction == "none":
        loss = loss.new_zeros(num_new).index_copy(0, nodes.order[scored], loss)
    return loss, stats


def _reduce(f: Tensor, truth: Tensor, options: Options) -> Tensor:
    weight = None if options.class_weight is None else options.class_weight.to(f.dtype)
    if options.form == "official":
        return cross_entropy(f, truth, weight, reduction=options.reduction)
    log_f = f.clamp(PROBABILITY_FLOOR, 1).log()  # rounding may push F above one
    return nll_loss(log_f, truth, weight, reduction=options.reduction)
