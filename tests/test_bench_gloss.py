"""GLoss's benchmark: that its baselines compute what GLoss computes, and who is left out and why."""

import time

import numpy as np
import pytest
import torch
from graph_cases import relative

from bench.gloss import Step, measure_gloss, peak_in_process, skip_reason
from bench.gloss_contenders import (
    AUTHORS,
    CONTENDERS,
    FP32,
    LABEL_PROPAGATION,
    LABEL_SPREADING,
    LEAN,
    OURS,
    OURS_FORWARD,
    Graph,
)
from bench.gloss_forms import Problem, authors, make_problem
from bench.scenarios import GraphScenario
from friction_kernels import label_propagation

pytestmark = [pytest.mark.deep, pytest.mark.usefixtures("one_thread")]

by_name = {contender.name: contender for contender in CONTENDERS}


@pytest.mark.parametrize("name", (LEAN, FP32, OURS))
def test_contenders_compute_the_same(name):
    problem = make_problem(90, 24, 4)
    theirs, ours = Step(by_name[AUTHORS], problem), Step(by_name[name], problem)
    assert ours.step().item() == pytest.approx(theirs.step().item(), rel=1e-5)
    assert relative(ours.embeddings.grad, theirs.embeddings.grad) < 5e-5


@pytest.mark.parametrize("name", ("gloss_r8_n128", "gloss_r8_n512"))
def test_the_authors_form_is_theirs(golden_dir, name):
    golden = np.load(golden_dir / f"{name}.npz")
    embeddings = torch.from_numpy(golden["embeddings"]).double().requires_grad_()
    labels = torch.from_numpy(golden["labels"]).long()
    num_labelled, classes = int(golden["num_labelled"]), len(golden["class_weights"])
    problem = Problem(embeddings, labels, num_labelled, classes, float(golden["sigma"]))
    # The golden loss weights its classes, so the gradient is compared per document of a weighted sum.
    weight = torch.from_numpy(golden["class_weights"]).double()
    recovered = {}

    def weighted(f, truth):
        recovered["f"] = f
        return torch.nn.functional.cross_entropy(f, truth, weight)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.gloss_forms.cross_entropy", weighted)
        loss = authors(problem)(embeddings)
    loss.backward()
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-10)
    assert relative(recovered["f"].detach(), torch.from_numpy(golden["propagated"])) < 1e-9
    assert relative(embeddings.grad, torch.from_numpy(golden["grad_embeddings"])) < 1e-8


def test_problems_are_like_documents():
    problem = make_problem(400, 384, 8)
    z = torch.nn.functional.normalize(problem.embeddings, dim=1)
    cosine, same = z @ z.T, problem.labels[:, None] == problem.labels
    others = ~torch.eye(400, dtype=torch.bool)
    assert cosine[same & others].mean().item() == pytest.approx(0.38, abs=0.03)
    assert cosine[~same].mean().item() == pytest.approx(0.19, abs=0.03)
    assert problem.labelled.sum() == 280 and problem.labelled[:280].all()
    assert make_problem(2, 3, 8).num_labelled == 1


@pytest.mark.parametrize("name", (LABEL_PROPAGATION, LABEL_SPREADING))
def test_scikit_learn_recovers_what_gloss_recovers(name, monkeypatch):
    """Its T is another, so that only the classes can agree."""
    problem, found = make_problem(200, 24, 3), {}

    def keep(f, truth):
        found["f"] = f
        return torch.zeros(())

    monkeypatch.setattr("bench.gloss_forms.cross_entropy", keep)
    Step(by_name[name], problem).step()
    ours = label_propagation(problem.embeddings, problem.labels, 3, labelled=problem.labelled)
    same = found["f"].argmax(dim=1) == ours[problem.num_labelled :].argmax(dim=1)
    assert same.double().mean() > 0.9


def scenario(nodes, *contenders, **options):
    return GraphScenario(nodes, contenders, dim=16, classes=3, rounds=2, seconds=1, **options)


def test_who_is_left_out_and_why(monkeypatch):
    monkeypatch.setattr("bench.memory.available_bytes", lambda device: 1e6 / 0.85 + 1)

    def reason(graph, nodes, last):
        last = {graph.name: last} if last else {}
        return skip_reason(graph, scenario(nodes, graph, step_seconds=1), "cpu", last)

    graph = Graph("x", authors, power=3, bytes_per_pair=100, most_nodes=1000)
    assert reason(graph, 100, None) is None
    assert reason(graph, 100, (50, 0.124)) is None
    assert "a step would take about 1 s" in reason(graph, 100, (50, 0.126))
    assert "needs about" in reason(graph, 101, None)
    assert "not tried beyond N = 1,000" in reason(graph, 2000, None)
    patient = Graph("x", authors, bytes_per_pair=1, sure_up_to=100)
    assert reason(patient, 100, (50, 1e9)) is None
    absent = Graph("y", authors, needs="no_such_module")
    assert reason(absent, 2, None) == "ModuleNotFoundError: No module named 'no_such_module'"


def measured(*contenders, nodes=20, last=None, seconds=60):
    deadline = time.monotonic() + seconds
    return measure_gloss(
        scenario(nodes, *contenders), "cpu", None, deadline, {} if last is None else last
    )


def test_a_contender_that_fails_is_named_and_the_others_go_on():
    def broken(problem):
        raise RuntimeError("no such card\nand more")

    last = {}
    found = measured(Graph("broken", broken), by_name[OURS], by_name[OURS_FORWARD], last=last)
    assert found["missing"] == {"broken": "RuntimeError: no such card"}
    assert list(found["rows"]) == [OURS, OURS_FORWARD]
    row = found["rows"][OURS]
    assert row["rounds"] == 2 and row["ours"] and row["operators"] > 20
    assert found["rows"][OURS_FORWARD]["ratios"].keys() == {OURS}
    assert last[OURS] == (20, row["seconds"])


def test_what_is_late_is_not_begun():
    found = measured(by_name[OURS], seconds=-1)
    assert found["missing"] == {OURS: "the time was used up"} and not found["rows"]


def test_memory_of_a_form_that_stores_the_graph():
    row = measured(by_name[FP32], nodes=1024)["rows"][FP32]
    # It keeps several N x N matrices of float32 for backward.
    assert 3 * 4 * 1024**2 < row["peak_bytes"] < 40 * 4 * 1024**2


def test_peak_of_a_process():
    small, large = (peak_in_process(FP32, scenario(n)) for n in (64, 1024))
    assert large["process_bytes"] - small["process_bytes"] > 3 * 4 * 1024**2
    broken = peak_in_process("nobody", scenario(64))
    assert "invalid choice" in broken["process_missing"]
