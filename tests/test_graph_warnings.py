"""Where warnings point: at the line of the user's program that asked for the propagation."""

import inspect
import warnings

import pytest
import torch
from graph_cases import clusters

from friction_kernels.graph import label_propagation, route
from friction_kernels.losses import GLoss

UNFINISHED = {"sigma": 0.5, "tol": 1e-14, "max_iter": 3, "backend": "chunked"}
LABELLED = torch.arange(200) < 5


def here() -> int:
    """The line that calls this."""
    return inspect.currentframe().f_back.f_lineno


def graph():
    e, labels = clusters(200, 3, 2)
    return e.requires_grad_(), labels


@pytest.fixture
def caught():
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield found


def places(caught) -> list[tuple[str, int, str]]:
    return [(w.filename, w.lineno, str(w.message).split(":")[0]) for w in caught]


FORWARD = "label propagation did not converge"
BACKWARD = "the gradient of label propagation did not converge"


def test_unfinished_propagation(caught):
    e, labels = graph()
    f = label_propagation(e, labels, 2, labelled=LABELLED, **UNFINISHED)
    forward = here() - 1
    f[:, 0].square().sum().backward()
    backward = here() - 1
    assert places(caught) == [(__file__, forward, FORWARD), (__file__, backward, BACKWARD)]


def test_unfinished_loss_of_a_module(caught):
    e, labels = graph()
    loss_fn = GLoss(2, **UNFINISHED)

    class Model(torch.nn.Module):
        def forward(self, e):
            self.line = here() + 1
            return loss_fn(e, labels, labelled=LABELLED)

    model = Model()
    model(e)
    assert places(caught) == [(__file__, model.line, FORWARD)]


def test_classes_that_cannot_be_recovered(caught):
    e, labels = graph()
    GLoss(2)(e, labels, labelled=labels == 0)
    assert places(caught)[0][:2] == (__file__, here() - 1)
    assert "no labelled node has class 1" in str(caught[0].message)


def test_within_a_compiled_step(caught):
    e, labels = graph()
    loss_fn = GLoss(2, **UNFINISHED)

    @torch.compile(backend="aot_eager")
    def step(e):
        return loss_fn(2 * e, labels, labelled=LABELLED)

    step(e)
    ours = [place for place in places(caught) if place[2] == FORWARD]
    assert ours and {place[0] for place in ours} == {__file__}


def on_gpu(num_nodes):
    """float64 on a GPU, which Triton's kernels do not take."""
    gpu = torch.device("cuda", 0)
    return route.Graph(gpu, torch.float64, num_nodes, num_nodes // 3, 2, 0.5)


def test_a_gpu_without_the_kernels_is_warned_of(caught):
    chosen = route.choose_route(on_gpu(300), route.Settings())
    assert chosen.name == "dense_lu"
    line = here() + 1
    route.warn_of_fallback(chosen, 300)
    assert places(caught) == [(__file__, line, "backend='triton' cannot serve")]
    assert "backend='dense' asks for that" in str(caught[0].message)
    asked_for = route.choose_route(on_gpu(300), route.Settings(backend="dense"))
    assert asked_for.name == "dense_lu" and asked_for.fallback_reason is None
    route.warn_of_fallback(asked_for, 300)
    assert len(caught) == 1
