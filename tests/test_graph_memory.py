"""GraphMemory: what it keeps, what GLoss does with it, and how it is saved."""

import math
import warnings

import pytest
import torch
from graph_cases import clusters, relative

from friction_kernels.graph.dense import normalize
from friction_kernels.losses import GLoss, GraphMemory

pytestmark = pytest.mark.filterwarnings("ignore:.*without ids")


def batches(count, num_nodes=20, dim=6, num_classes=3):
    e, labels = clusters(count * num_nodes, dim, num_classes)
    return list(zip(e.float().split(num_nodes), labels.split(num_nodes), strict=True))


def test_keeps_the_last_rows_at_length_one():
    memory = GraphMemory(50, 6)
    assert len(memory) == 0
    seen = []
    for e, labels in batches(4):
        memory.add(e, labels)
        seen = [*seen, *zip(normalize(e).tolist(), labels.tolist(), strict=True)][-50:]
        rows, of_rows = memory.rows()
        assert sorted(zip(rows.tolist(), of_rows.tolist(), strict=True)) == sorted(seen)
    assert len(memory) == memory.capacity == 50


def test_a_batch_beyond_capacity_and_documents_without_label():
    memory = GraphMemory(4, 2)
    e = torch.tensor([[float(i), 1.0] for i in range(10)])
    labels = torch.arange(10)
    labels[9] = -100
    memory.add(e, labels)
    assert sorted(memory.rows()[1].tolist()) == [5, 6, 7, 8]
    memory.add(e[:0], labels[:0])
    assert len(memory) == 4
    memory.clear()
    assert len(memory) == 0


def test_loss_equals_that_of_a_graph_with_the_rows_as_labelled_nodes():
    (first, first_labels), (e, labels) = batches(2)
    memory = GraphMemory(100, 6)
    memory.add(first, first_labels)
    labelled = torch.arange(20) < 4
    e = e.clone().requires_grad_()
    loss_fn = GLoss(3, memory=memory)
    loss = loss_fn(e, labels, labelled=labelled)
    assert loss_fn.last.num_nodes == 40
    assert loss_fn.last.num_labelled == 24
    joined = torch.cat((e, first))
    expected = GLoss(3)(
        joined,
        torch.cat((labels, first_labels)),
        labelled=torch.cat((labelled, torch.ones(20, dtype=bool))),
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    of_loss, of_expected = (torch.autograd.grad(x, e)[0] for x in (loss, expected))
    assert relative(of_loss, of_expected) < 1e-5


def test_each_training_batch_joins_after_its_loss():
    memory = GraphMemory(1000, 6)
    loss_fn = GLoss(3, memory=memory, gamma=0.5)
    sizes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for e, labels in batches(3):
            labels = labels.clone()
            labels[0] = -100
            loss_fn(e, labels)
            sizes.append((loss_fn.last.num_nodes, loss_fn.last.num_labelled, len(memory)))
        assert sizes == [(20, 10, 19), (39, 29, 38), (58, 48, 57)]
        loss_fn.eval()
        loss_fn(e, labels)
    assert len(memory) == 57
    rows, of_rows = memory.rows()
    assert relative(rows[-19:], normalize(e[1:])) < 1e-6
    assert torch.equal(of_rows[-19:], labels[1:])


def test_nothing_need_be_drawn_beside_a_memory():
    (first, first_labels), (e, labels) = batches(2)
    memory = GraphMemory(100, 6)
    memory.add(first, first_labels)
    loss_fn = GLoss(3, memory=memory, gamma=0.0, reduction="none")
    losses = loss_fn(e, labels)
    assert losses.shape == (20,)
    assert (losses > 0).all()
    one = loss_fn(e[:1], labels[:1])  # a batch of one document
    assert one.shape == (1,)
    with pytest.raises(ValueError, match="no unlabelled node has a known label"):
        loss_fn(e[:2], torch.full((2,), -100))


def test_half_precision_batches():
    (first, first_labels), (e, labels) = batches(2)
    memory = GraphMemory(100, 6)
    loss_fn = GLoss(3, memory=memory)
    loss_fn(first.bfloat16(), first_labels)
    e = e.bfloat16().requires_grad_()
    loss_fn(e, labels).backward()
    assert memory.embeddings.dtype == torch.float32
    assert e.grad.dtype == torch.bfloat16


def test_state_dict():
    (first, first_labels), (second, second_labels) = batches(2)
    memory = GraphMemory(25, 6)
    memory.add(first, first_labels)
    state = {
        k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in memory.state_dict().items()
    }
    memory.add(second, second_labels)
    restored = GraphMemory(25, 6)
    restored.load_state_dict(state)
    assert len(restored) == 20
    restored.add(second, second_labels)
    for ours, expected in zip(restored.rows(), memory.rows(), strict=True):
        assert torch.equal(ours, expected)
    with pytest.raises(RuntimeError, match="size mismatch"):
        GraphMemory(30, 6).load_state_dict(state)
    loss_fn = GLoss(3, memory=GraphMemory(25, 6))
    assert "memory.embeddings" in loss_fn.state_dict()


def test_a_memory_made_on_meta_is_empty_until_it_is_loaded():
    (e, labels), _ = batches(2)
    filled = GraphMemory(25, 6)
    filled.add(e, labels)
    with torch.device("meta"):
        emptied, assigned = GraphMemory(25, 6), GraphMemory(25, 6)
    assert emptied.state_dict()["_extra_state"] == {"filled": 0, "next": 0}
    GLoss(3, memory=emptied).to_empty(device="cpu")
    assert len(emptied) == 0 and emptied.get_extra_state()["next"] == 0
    assert (emptied.ids == filled.ids).all()  # nobody's
    assigned.load_state_dict(filled.state_dict(), assign=True)
    emptied.load_state_dict(filled.state_dict())
    for memory in (emptied, assigned, filled.to_empty(device="cpu")):
        assert len(memory) == 20
        assert relative(memory.rows()[0], normalize(e)) < 1e-6


@pytest.mark.parametrize("sigma", (0.5, "root"))
def test_rows_at_fault_are_the_batchs_or_the_memorys(sigma):
    (first, first_labels), (e, labels) = batches(2)
    memory = GraphMemory(100, 6)
    memory.add(first, first_labels + 3)
    with pytest.raises(
        ValueError, match=r"memory's labels lie outside \[0, 3\) in its rows 0, .*clear"
    ):
        GLoss(3, sigma=sigma, memory=memory)(e, labels)
    with pytest.raises(ValueError, match=r"^labels lie outside \[0, 3\) in row 2;"):
        GLoss(3, sigma=sigma, memory=memory)(e, labels.index_fill(0, torch.tensor(2), 3))
    memory.embeddings[4] = math.nan
    loss_fn = GLoss(6, sigma=sigma, memory=memory)
    with pytest.raises(ValueError, match=r"memory's embeddings have NaN.* in its row 4;.*clear"):
        loss_fn(e, labels)
    with pytest.raises(ValueError, match=r"^embeddings have NaN.* in row 7 of 20;"):
        loss_fn(e.index_fill(0, torch.tensor(7), math.nan), labels)
    assert len(memory) == 20


def test_input_without_meaning_raises_and_changes_nothing():
    memory = GraphMemory(10, 6)
    e, labels = batches(1)[0]
    with pytest.raises(ValueError, match="5 columns and the memory has dim=6"):
        memory.add(e[:, :5], labels)
    with pytest.raises(ValueError, match="5 columns and the memory has dim=6"):
        GLoss(3, memory=memory)(e[:, :5], labels)
    bad = e.clone()
    bad[3] = 0
    with pytest.raises(ValueError, match="zero length in row 3"):
        memory.add(bad, labels)
    assert len(memory) == 0
    with pytest.raises(ValueError, match="capacity must be at least 1"):
        GraphMemory(0, 6)
    with pytest.raises(TypeError, match="memory must be a GraphMemory"):
        GLoss(3, memory=[])
