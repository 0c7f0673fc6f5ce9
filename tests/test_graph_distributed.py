"""Two processes (gloo) against one that has all rows."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.deep

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

PRELUDE = """
import datetime, json, sys, traceback, warnings
import torch
import torch.distributed as dist

sys.path.insert(0, TESTS)
from graph_cases import clusters, relative
from friction_kernels.losses import GLoss, GraphMemory

warnings.simplefilter("ignore")
torch.set_num_threads(1)
rank = int(sys.argv[1])
timeout = datetime.timedelta(seconds=60)
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2, timeout=timeout)
e, labels = clusters(31, 6, 3)
mine = slice(0, 13) if rank == 0 else slice(13, 31)  # uneven batches
labelled = torch.arange(31) % 3 > 0
"""

GATHERED = """
def GATHERED():
    for options in ({}, {"form": "log"}, {"solver": "iterate"}, {"reduction": "sum"}):
        whole = e.clone().requires_grad_()
        sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        expected = GLoss(3, sigma=sigma, **options)(whole, labels, labelled=labelled)
        expected.backward()
        local = e[mine].clone().requires_grad_()
        my_sigma = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        loss_fn = GLoss(3, sigma=my_sigma, gather=True, **options)
        loss = loss_fn(local, labels[mine], labelled=labelled[mine])
        loss.backward()
        assert loss_fn.last.num_nodes == 31
        assert torch.equal(loss, expected), (loss, expected)
        assert torch.equal(local.grad, whole.grad[mine])
        assert torch.equal(my_sigma.grad, sigma.grad)
"""

DRAWN = """
def DRAWN():
    torch.manual_seed(rank)  # ranks that differ
    loss_fn = GLoss(3, gather=True)
    return [loss_fn(e[mine], labels[mine]).item() for _ in range(5)]
"""

AVERAGED = """
def AVERAGED():
    def head():
        torch.manual_seed(0)
        return torch.nn.Linear(6, 4).double()

    alone = head()
    GLoss(3)(alone(e), labels, labelled=labelled).backward()
    model = torch.nn.parallel.DistributedDataParallel(head())
    loss = GLoss(3, gather=True)(model(e[mine]), labels[mine], labelled=labelled[mine])
    (loss * dist.get_world_size()).backward()
    assert relative(model.module.weight.grad, alone.weight.grad) < 1e-9
"""

REMEMBERED = """
def REMEMBERED():
    contents = []
    for gather in (False, True):
        memory = GraphMemory(20, 6)
        loss_fn = GLoss(3, memory=memory, gather=gather)
        loss_fn(e[mine].float(), labels[mine])
        assert len(memory) == 20
        # 31 rows in rank order; the last 20 stay, in the ring's places.
        expected = torch.nn.functional.normalize(e[11:].float(), dim=1)
        assert relative(memory.rows()[0], expected) < 1e-6
        assert torch.equal(memory.rows()[1], labels[11:])
        few = slice(0, 3) if rank == 0 else slice(3, 3)  # rank 1 has no rows
        memory.add(e[few].float(), labels[few])
        loss_fn(e[mine].float(), labels[mine])
        contents.append((memory.embeddings.tolist(), memory.labels.tolist()))
    return contents
"""

IDENTIFIED = """
def IDENTIFIED():
    contents = []
    ids = torch.arange(31) + 100
    for gather in (False, True):
        memory = GraphMemory(40, 6)
        loss_fn = GLoss(3, memory=memory, gather=gather)
        for _ in range(2):
            for rows in (slice(0, 7) if rank == 0 else slice(7, 10), mine):
                of_rows = ids[rows].to(torch.int64 if rank else torch.int32)
                loss_fn(e[rows].float(), labels[rows], ids=of_rows)
        assert len(memory) == 31  # a row a document, from whichever rank
        assert loss_fn.last.num_nodes == 31  # the batch's older rows are none of them
        same = ids[:5]  # a document on both ranks
        memory.add(e[:5].float(), (labels[:5] + rank) % 3, ids=same)
        assert len(memory) == 31
        assert torch.equal(memory.labels[memory.ids.argsort()][9:14], (labels[:5] + 1) % 3)
        contents.append([t.tolist() for t in memory.state_dict().values() if torch.is_tensor(t)])
    try:
        loss_fn(e[mine].float(), labels[mine], ids=ids[mine] if rank else None)
    except ValueError as error:
        assert "`ids` differ" in str(error)
    else:
        raise AssertionError("nothing was raised")
    return contents
"""

REFUSED = """
def REFUSED():
    for rows, mask in ((e[:, : 5 + rank], None), (e, labels > 0 if rank else None)):
        try:
            GLoss(3, gather=True)(rows, labels, labelled=mask)
        except ValueError as error:
            assert "the ranks' rows cannot be gathered" in str(error)
        else:
            raise AssertionError("nothing was raised")
"""

EPILOGUE = """
for scenario in (GATHERED, DRAWN, AVERAGED, REMEMBERED, IDENTIFIED, REFUSED):
    try:
        result = {"returned": scenario()}
    except Exception:
        result = {"raised": traceback.format_exc()}
    print(json.dumps({scenario.__name__: result}), flush=True)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each scenario returned or raised: one dictionary a rank. Processes are started once."""
    scenarios = (GATHERED, DRAWN, AVERAGED, REMEMBERED, IDENTIFIED, REFUSED)
    program = "".join((PRELUDE, *scenarios, EPILOGUE))
    program = program.replace("TESTS", repr(str(Path(__file__).parent / "support")))
    store = tmp_path_factory.mktemp("ranks") / "store"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(store)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [
        {name: result for line in lines.splitlines() for name, result in json.loads(line).items()}
        for lines, _ in outputs
    ]


def returned(ranks, scenario):
    for rank in ranks:
        assert "raised" not in rank[scenario], rank[scenario]["raised"]
    return [rank[scenario]["returned"] for rank in ranks]


def test_gathered_loss_and_gradient_equal_those_of_one_process(ranks):
    returned(ranks, "GATHERED")


def test_the_draw_is_the_same_on_all_ranks(ranks):
    of_first, of_second = returned(ranks, "DRAWN")
    assert of_first == of_second
    assert len(set(of_first)) == 5


def test_averaged_gradients_times_the_world_size_are_those_of_one_process(ranks):
    """As the docs say of DistributedDataParallel."""
    returned(ranks, "AVERAGED")


def test_memories_are_identical_and_in_rank_order(ranks):
    of_first, of_second = returned(ranks, "REMEMBERED")
    assert of_first == of_second


def test_a_document_has_one_row_whichever_rank_has_it(ranks):
    of_first, of_second = returned(ranks, "IDENTIFIED")
    assert of_first == of_second


def test_batches_that_cannot_be_gathered_raise_on_every_rank(ranks):
    returned(ranks, "REFUSED")
