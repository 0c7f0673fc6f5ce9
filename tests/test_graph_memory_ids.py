"""Rows of a memory that have ids: a document never meets its own older row."""

import warnings

import pytest
import torch
from graph_cases import clusters, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from friction_kernels.losses import GLoss, GraphMemory

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*without ids"),
    pytest.mark.filterwarnings("ignore:no labelled node has class"),
]

DIM = 6


def direction(number: int) -> torch.Tensor:
    """A row of length one that can be told from others."""
    return torch.nn.functional.normalize(torch.tensor([1.0, number, 0, 0, 0, 0]), dim=0)


def rows_of(memory: GraphMemory) -> dict[int, tuple[float, int]]:
    """id -> (what tells the row apart, label)"""
    e, labels = memory.rows()
    ids = memory.ids[: len(memory)]
    assert len(set(ids.tolist())) == len(ids)
    numbers = (e[:, 1] / e[:, 0]).round(decimals=2)
    return dict(zip(ids.tolist(), zip(numbers.tolist(), labels.tolist(), strict=True), strict=True))


class Ring:
    """What a memory should hold, step by step on lists."""

    def __init__(self, capacity: int):
        self.places: list[int | None] = [None] * capacity  # ids
        self.rows: dict[int, tuple[float, int]] = {}
        self.next = 0

    def add(self, batch: list[tuple[int, float, int]]) -> None:
        last = {document: (number, label) for document, number, label in batch}
        replaced = {self.places.index(document) for document in last if document in self.rows}
        order = [
            document
            for k, (document, *_) in enumerate(batch)
            if document not in {d for d, *_ in batch[k + 1 :]}
        ]
        for document in order:
            if document not in self.rows:
                while self.next in replaced:
                    self.next = (self.next + 1) % len(self.places)
                self.rows.pop(self.places[self.next], None)
                self.places[self.next] = document
                self.next = (self.next + 1) % len(self.places)
            self.rows[document] = last[document]


@settings(max_examples=60)
@given(
    capacity=st.integers(1, 9),
    batches=st.lists(st.lists(st.integers(-12, 12), max_size=9), max_size=6),
)
def test_a_documents_row_is_replaced_and_the_oldest_make_room(capacity, batches):
    memory, ring, count = GraphMemory(capacity, DIM), Ring(capacity), 0
    for ids in batches:
        numbers = [float(count + k) for k in range(len(ids))]
        labels = [(count + k) % 7 for k in range(len(ids))]
        count += len(ids)
        if ids:
            e = torch.stack([3 * direction(number) for number in numbers])
            memory.add(e, torch.tensor(labels), ids=torch.tensor(ids))
        ring.add(list(zip(ids, numbers, labels, strict=True))[-capacity:])
        found = rows_of(memory)
        assert found.keys() == ring.rows.keys()
        for document, (number, label) in ring.rows.items():
            assert found[document] == (pytest.approx(number, abs=0.02), label)
        assert memory.ids.tolist()[: len(memory)] == ring.places[: len(memory)]


def documents(count: int = 40):
    e, labels = clusters(count, DIM, 3)
    return e.float(), labels, torch.arange(count) * 1000 - 7


def test_a_documents_own_row_is_no_node_of_its_graph():
    e, labels, ids = documents()
    memory = GraphMemory(100, DIM)
    memory.add(e, labels, ids=ids)
    labelled = torch.arange(20) < 4
    batch = e[:20].clone().requires_grad_()
    loss_fn = GLoss(3, memory=memory)
    loss = loss_fn(batch, labels[:20], labelled, ids[:20])
    others = GLoss(3)(
        torch.cat((batch, e[20:])), labels, torch.cat((labelled, torch.ones(20, dtype=bool)))
    )
    assert (loss_fn.last.num_nodes, loss_fn.last.num_labelled) == (40, 24)
    assert loss.item() == pytest.approx(others.item(), rel=1e-6)
    ours, theirs = (torch.autograd.grad(x, batch)[0] for x in (loss, others))
    assert relative(ours, theirs) < 1e-5
    assert len(memory) == 40


@pytest.mark.parametrize("sigma", (0.4, "root", "mst"))
def test_a_second_forward_of_a_batch_sees_the_same_graph(sigma):
    """As SAM and closures of LBFGS do it."""
    e, labels, ids = documents()
    loss_fn = GLoss(3, sigma=sigma, memory=GraphMemory(100, DIM))
    labelled = torch.arange(20) < 8
    loss_fn(e[20:], labels[20:], ids=ids[20:])
    first, second = (loss_fn(e[:20], labels[:20], labelled, ids[:20]) for _ in range(2))
    assert first.item() == pytest.approx(second.item(), rel=1e-6)
    assert len(loss_fn.memory) == 40


class Waits(TorchDispatchMode):
    """Counts the operators that make the host wait for a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8)
            for t in (args[1] if isinstance(args[1], (list, tuple)) else ())
        )
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2")
        self.count += by_mask or name in waits
        return function(*args, **(kwargs or {}))


def test_ids_make_the_host_wait_no_more_often():
    e, labels, ids = documents()
    waited = []
    for of_batch in (None, ids):
        loss_fn = GLoss(3, memory=GraphMemory(100, DIM), solver="iterate", backend="chunked")
        for _ in range(2):
            with Waits() as waits, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loss_fn(e, labels, torch.arange(40) < 20, of_batch)
        waited.append(waits.count)
    assert waited[0] == waited[1] == 1  # the rows in use, which a GPU's memory is not asked for


def test_random_labels_stay_hidden():
    torch.manual_seed(0)
    e, labels = torch.randn(128, 32), torch.randint(8, (128,))
    loss_fn = GLoss(8, sigma=0.3, form="log", memory=GraphMemory(256, 32))
    for _ in range(3):
        accuracies = []
        for rows in torch.randperm(128).split(32):
            loss_fn(e[rows], labels[rows], ids=rows)
            accuracies.append(loss_fn.last.accuracy.item())
    assert sum(accuracies) / len(accuracies) < 0.3
    assert len(loss_fn.memory) == 128


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int16, torch.uint64, torch.int32))
def test_ids_are_the_same_in_every_integer_type(dtype):
    e, labels, _ = documents()
    memory = GraphMemory(100, DIM)
    memory.add(e, labels, ids=torch.arange(40))
    memory.add(e, labels, ids=torch.arange(40).to(dtype))
    assert len(memory) == 40


BOUNDS = torch.iinfo(torch.int64)


def test_ids_are_told_apart_or_refused():
    e, labels, _ = documents()
    memory = GraphMemory(100, DIM)
    some = [BOUNDS.min + 1, -1, 0, 1, BOUNDS.max - 1, BOUNDS.max]
    for _ in range(2):
        memory.add(e[:6], labels[:6], ids=torch.tensor(some))
        memory.add(e[:3], labels[:3], ids=torch.tensor(some[3:], dtype=torch.uint64))
    assert len(memory) == 6
    for none in (
        torch.tensor([3, BOUNDS.min]),
        torch.tensor([3, 2**63], dtype=torch.uint64),
        torch.tensor([3, 2**64 - 1], dtype=torch.uint64),
    ):
        for call in (
            lambda ids: memory.add(e[:2], labels[:2], ids=ids),
            lambda ids: GLoss(3, memory=memory)(e[:2], labels[:2], ids=ids),
            lambda ids: GLoss(3)(e[:2], labels[:2], ids=ids),
        ):
            with pytest.raises(ValueError, match=r"ids must be above -2\^63 .*not in row 1;"):
                call(none)
    assert len(memory) == 6


def test_nothing_is_remembered_where_gradients_are_off():
    e, labels, ids = documents()
    loss_fn = GLoss(3, memory=GraphMemory(100, DIM))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            loss_fn(e, labels, ids=ids)
        assert len(loss_fn.memory) == 0
    loss_fn.eval()(e, labels, ids=ids)
    assert len(loss_fn.memory) == 0
    loss_fn.train()(e, labels, ids=ids)
    assert len(loss_fn.memory) == 40


def test_without_ids_one_warning_says_what_will_happen():
    e, labels, ids = documents()
    loss_fn = GLoss(3, memory=GraphMemory(100, DIM))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            loss_fn(e, labels)  # remembers nothing
    with pytest.warns(UserWarning, match=r"without ids.*gives its hidden label away.*pass ids="):
        loss_fn(e, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_fn(e, labels)
        GLoss(3, memory=GraphMemory(100, DIM))(e, labels, ids=ids)
        GLoss(3)(e, labels)
    assert len(loss_fn.memory) == 80


def test_rows_without_ids_that_are_only_read_are_warned_of():
    e, labels, ids = documents()
    with_ids, without = GraphMemory(100, DIM), GraphMemory(100, DIM)
    with pytest.warns(UserWarning, match=r"add was given rows without ids.*pass ids="):
        without.add(e, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without.add(e, labels)
        with_ids.add(e, labels, ids=ids)
    for memory in (with_ids, without):
        loss_fn = GLoss(3, sigma=0.1, memory=memory).eval()
        with pytest.warns(
            UserWarning, match=r"without ids.*gives its hidden label away.*pass ids="
        ):
            loss_fn(e, labels, torch.arange(40) < 20)
        assert loss_fn.last.accuracy == 1


def test_rows_without_ids_are_not_recognised():
    e, labels, ids = documents()
    memory = GraphMemory(60, DIM)
    memory.add(e[:30], labels[:30])
    memory.add(e[30:], labels[30:], ids=ids[30:])
    loss_fn = GLoss(3, memory=memory)
    loss_fn(e, labels, torch.arange(40) < 20, ids)
    assert loss_fn.last.num_nodes == 70
    assert len(memory) == 60  # ten rows were replaced, thirty put in, of which ten over the oldest
    assert sorted(memory.ids[:10].tolist()) == ids[20:30].tolist()


def test_copies_of_a_document_are_labelled_together():
    e, labels, _ = documents(60)
    ids = torch.arange(60) // 3
    loss_fn = GLoss(3, gamma=0.5, reduction="none", form="log", memory=GraphMemory(100, DIM))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes
        for _ in range(20):
            loss_fn.memory.clear()
            hidden = loss_fn(e, labels, ids=ids) != 0
            assert (hidden.view(20, 3).sum(dim=1) % 3 == 0).all()
            assert loss_fn.last.num_labelled == 30
    assert len(loss_fn.memory) == 20
    assert relative(loss_fn.memory.rows()[0], torch.nn.functional.normalize(e[2::3], dim=1)) < 1e-6
    assert loss_fn.memory.rows()[1].tolist() == labels[2::3].tolist()


def test_one_document_beside_a_memory():
    e, labels, ids = documents()
    loss_fn = GLoss(3, memory=GraphMemory(100, DIM))
    with pytest.warns(UserWarning, match="one document"):
        assert loss_fn(e[:1], labels[:1], ids=ids[:1]) == 0
    assert len(loss_fn.memory) == 1
    loss_fn(e[:1], labels[:1], ids=ids[:1])  # its own row is no node
    assert loss_fn.num_skipped == 2
    loss_fn(e[1:2], labels[1:2], ids=ids[1:2])
    assert loss_fn.num_skipped == 2 and loss_fn.last.num_scored == 1


def test_ids_without_meaning_are_refused_before_anything_is_changed():
    e, labels, ids = documents()
    memory = GraphMemory(100, DIM)
    loss_fn = GLoss(3, memory=memory)
    for call in (
        lambda ids: loss_fn(e, labels, ids=ids),
        lambda ids: memory.add(e, labels, ids=ids),
    ):
        with pytest.raises(TypeError, match="ids must be an integer tensor"):
            call(ids.float())
        with pytest.raises(ValueError, match=r"ids must have shape \(40,\)"):
            call(ids[:39])
    assert len(memory) == 0


def test_a_state_is_loaded_whole_or_not_at_all():
    e, labels, ids = documents()
    memory = GraphMemory(50, DIM)
    memory.add(e, labels, ids=ids)
    state = {k: v.clone() if k != "_extra_state" else v for k, v in memory.state_dict().items()}
    restored = GraphMemory(50, DIM)
    restored.load_state_dict(state)
    for m in (memory, restored):
        m.add(e[5:30], labels[5:30], ids=ids[5:30] + 5000)
    assert rows_of(memory) == rows_of(restored)
    assert torch.equal(memory.ids, restored.ids)

    other = GraphMemory(60, DIM)
    other.add(e[:3], labels[:3], ids=ids[:3])
    before = rows_of(other)
    sound = GraphMemory(60, DIM).state_dict()
    faulty = {
        "size mismatch for embeddings.*of its own capacity": state,
        "Missing key.*_extra_state": {k: v for k, v in state.items() if k != "_extra_state"},
        "_extra_state has .*no place": {
            **sound,
            "_extra_state": {"filled": 61, "next": 0},
        },
        "Unexpected key.*sizes": {**sound, "sizes": sound["ids"]},
        "ids must be a tensor with values.*NoneType": {**sound, "ids": None},
        "embeddings must be a tensor with values.*list": {**sound, "embeddings": [1]},
        "embeddings must be .*one on meta": {**sound, "embeddings": sound["embeddings"].to("meta")},
        "labels must be torch.int64.*torch.float32": {**sound, "labels": sound["labels"].float()},
    }
    places = (None, {}, torch.zeros(2), {"filled": None, "next": 0}, {"filled": 1.5, "next": 0})
    for place in places:
        with pytest.raises(RuntimeError, match=r"_extra_state has .*no place in 60 rows"):
            other.load_state_dict({**sound, "_extra_state": place})
        assert rows_of(other) == before
    for message, of_fault in faulty.items():
        with pytest.raises(RuntimeError, match=message):
            other.load_state_dict(of_fault)
        assert rows_of(other) == before

    old = {k: v for k, v in state.items() if k != "ids"}
    with pytest.warns(UserWarning, match="40 rows are not recognised"):
        restored.load_state_dict(old)
    assert len(restored) == 40
    restored.add(e, labels, ids=ids)  # as new documents: ten places were free
    assert len(restored) == 50


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_a_state_of_other_types_is_loaded_in_those_of_the_memory(dtype):
    e, labels, ids = documents()
    memory, restored = GraphMemory(60, DIM), GraphMemory(60, DIM)
    memory.add(e, labels, ids=ids)
    state = memory.state_dict()
    state.update(embeddings=state["embeddings"].to(dtype), labels=state["labels"].int())
    state.update(ids=state["ids"].clamp_min(-(2**31)).int())
    restored.load_state_dict(state, assign=True)
    restored.add(e, labels, ids=ids)
    assert len(restored) == 40
    for (name, ours), (_, theirs) in zip(
        restored.named_buffers(), memory.named_buffers(), strict=True
    ):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours[:40], theirs[:40])


def test_rows_are_float32_whatever_the_default_or_the_model_is():
    torch.set_default_dtype(torch.float64)
    try:
        memory = GraphMemory(10, DIM)
    finally:
        torch.set_default_dtype(torch.float32)
    e, labels, ids = documents(10)
    memory.add(e, labels, ids=ids)
    assert memory.embeddings.dtype == torch.float32
    before = {name: buffer.clone() for name, buffer in memory.named_buffers()}
    for cast in (
        lambda module: module.to(torch.bfloat16),
        lambda module: module.to(torch.float64),
        lambda module: module.type(torch.float64),
        lambda module: module.type(torch.int32),
    ):
        cast(GLoss(3, memory=memory))
        for name, buffer in memory.named_buffers():
            assert buffer.dtype == before[name].dtype and torch.equal(buffer, before[name])
