"""Which route serves a graph, what it stores, and that the page says the same."""

import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from graph_cases import Graph, clusters, loss_and_gradient, relative

from friction_kernels.graph import route
from friction_kernels.losses import GLoss
from friction_kernels.scores import devices

pytestmark = pytest.mark.filterwarnings("ignore:no labelled node has class")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PAGE = Path(__file__).parents[1] / "docs" / "gloss.md"


def choose(
    num_nodes=300,
    *,
    device=CPU,
    sigma=0.5,
    num_classes=8,
    reduction="mean",
    free=1 << 30,
    triton=True,
    **settings,
):
    unlabelled = num_nodes * 3 // 10
    graph = route.Graph(device, torch.float32, num_nodes, unlabelled, num_classes, sigma, reduction)
    reason = None if triton else "it is not installed"
    with (
        mock.patch.object(route, "triton_unavailable_reason", lambda device, dtype: reason),
        mock.patch.object(route, "free_memory", lambda device: free),
    ):
        return route.choose_route(graph, route.Settings(**settings))


@pytest.mark.parametrize(
    ("name", "settings"),
    (
        ("batch_kernel", {"num_nodes": 256, "device": GPU}),
        ("batch_kernel", {"num_nodes": 256, "device": GPU, "sigma": None}),
        ("batch_kernel", {"num_nodes": 256, "backend": "triton"}),
        ("triton", {"num_nodes": 257, "device": GPU}),
        ("triton", {"num_nodes": 256, "device": GPU, "num_classes": 65}),
        ("triton", {"num_nodes": 256, "device": GPU, "solver": "iterate"}),
        ("triton", {"num_nodes": 256, "device": GPU, "reduction": "sum"}),
        ("triton", {"num_nodes": 256, "device": GPU, "reduction": None}),  # label_propagation
        ("dense_lu", {"num_nodes": 512}),
        ("dense_lu", {"num_nodes": 512, "device": GPU, "triton": False}),
        ("dense_lu", {"num_nodes": 512, "device": GPU, "backend": "dense"}),
        ("exp_domain", {"num_nodes": 513}),
        ("exp_domain", {"backend": "chunked"}),
        ("exp_domain", {"solver": "iterate"}),
        ("exp_domain", {"sigma": 20**-0.5 + 1e-9, "num_nodes": 100_000}),
        ("log_domain", {"sigma": 20**-0.5 - 1e-9, "num_nodes": 100_000}),
        ("log_domain", {"sigma": 0.1}),
        ("log_domain", {"sigma": None}),
    ),
)
def test_the_first_route_of_the_table_that_serves(name, settings):
    chosen = choose(**settings)
    assert chosen.name == name
    assert chosen.reason == route.ROUTES[name].when


def bytes_of(num_nodes):
    return (num_nodes**2 + (num_nodes * 3 // 10) ** 2) * 4


@pytest.mark.parametrize(
    ("stored", "dtype", "settings"),
    (
        ("everything", torch.float32, {"num_nodes": 4096, "free": 0}),  # whatever is free
        ("everything", torch.float32, {"num_nodes": 4096, "memory_budget": 0}),
        ("everything", torch.float32, {"num_nodes": 4097, "free": 16 * bytes_of(4097)}),
        ("T_UU", torch.float32, {"num_nodes": 4097, "free": 16 * (bytes_of(4097) - 1)}),
        ("everything", torch.float32, {"num_nodes": 4097, "memory_budget": bytes_of(4097)}),
        ("T_UU", torch.float32, {"num_nodes": 4097, "memory_budget": bytes_of(4097) - 1}),
        ("T_UU", torch.float32, {"num_nodes": 4097, "memory_budget": 1229**2 * 4}),
        ("nothing", None, {"num_nodes": 4097, "memory_budget": 1229**2 * 4 - 1}),
        ("nothing", None, {"num_nodes": 4097, "memory_budget": 0}),
        (
            "T_UU",
            torch.bfloat16,
            {"num_nodes": 4097, "memory_budget": 1229**2 * 2, "precision": "bf16"},
        ),
        ("nothing", None, {"backend": "chunked"}),
        ("T_UU", torch.float32, {"backend": "chunked", "memory_budget": 1 << 20}),
        ("everything", torch.float32, {"backend": "dense", "num_nodes": 16384, "free": 0}),
        ("nothing", None, {"num_nodes": 9000, "device": GPU}),  # Triton stores where it is told to
        ("T_UU", torch.float32, {"num_nodes": 9000, "device": GPU, "memory_budget": 2700**2 * 4}),
    ),
)
def test_what_is_stored(stored, dtype, settings):
    chosen = choose(**settings)
    assert (chosen.stored, chosen.transition_dtype) == (stored, dtype)


def test_factors_are_made_of_a_stored_matrix_of_the_computations_type():
    assert choose(num_nodes=2560).factorises
    assert not choose(num_nodes=2564).factorises
    assert not choose(solver="iterate").factorises
    assert not choose(backend="chunked").factorises
    halves = {"backend": "chunked", "precision": "bf16", "memory_budget": 90 * 90 * 2}
    assert choose(**halves).stored == "T_UU" and not choose(**halves).factorises


@pytest.mark.parametrize("sigma", (0.15, 0.5))
def test_what_is_free_changes_results_within_rounding_and_tol(sigma):
    e, labels = clusters(600, 16, 4)
    case = Graph(e, labels, 400, 4, sigma)
    results = []
    for free in (0, 16 * 200**2 * 4, 1 << 30):
        with (
            mock.patch.object(route, "STORED_BY_AUTO", 0),
            mock.patch.object(route, "free_memory", lambda device, free=free: free),
        ):
            results.append(loss_and_gradient(case, torch.float32, tol=1e-6))
    for other in results[1:]:
        assert not other[4]
        assert relative(other[0], results[0][0]) < 2e-5
        assert relative(other[2], results[0][2]) < 5e-5


def test_the_last_call_says_its_route():
    e, labels = clusters(60, 8, 3)
    loss_fn = GLoss(3, sigma=0.5)
    loss_fn(e.float(), labels)
    assert loss_fn.last.route.name == "dense_lu"
    assert "dense_lu" in str(loss_fn.last) and "up to 512 nodes" in str(loss_fn.last)
    GLoss(3, sigma=0.1)(e.float(), labels)
    with pytest.warns(UserWarning, match="one document"):
        loss_fn(e[:1].float(), labels[:1])
    assert loss_fn.last.route is None


def test_factors_that_do_not_serve_are_no_route():
    e = torch.tensor([[1.0, 0.0], [1.0, 0.01], [-1.0, 0.0], [-1.0, 0.01]])
    loss_fn = GLoss(2, sigma=0.23)
    with pytest.warns(UserWarning, match="reached by no labelled"):
        loss_fn(e, torch.tensor([1, 1, 0, 0]), labelled=torch.tensor([True, False, False, False]))
    assert loss_fn.last.route.name == "exp_domain"
    assert loss_fn.last.route.reason == "LU factors of the whole graph did not reach tol"


def test_the_page_has_the_table():
    rows = [f"| `{name}` | {row.when} | {row.how} |" for name, row in route.ROUTES.items()]
    assert "\n".join(["| route | when | how |", "|---|---|---|", *rows, ""]) in PAGE.read_text()


def test_the_page_has_the_sizes():
    page = PAGE.read_text()
    assert f"{route.STORED_BY_AUTO:,} nodes" in page and f"{route.STORED_BY_DENSE:,}" in page
    assert route.SHARE_OF_FREE_MEMORY == 1 / 16 and re.search(r"a\s+sixteenth", page)
    assert f"at most {route.FACTORISED_NODES} nodes" in page


def test_free_memory_is_what_the_container_leaves(tmp_path):
    with mock.patch.object(devices, "CGROUP", tmp_path):
        of_machine = devices.free_memory(CPU)
        assert of_machine > 0
        (tmp_path / "memory.current").write_text("1000\n")
        (tmp_path / "memory.max").write_text("3000\n")
        assert devices.free_memory(CPU) == 2000
        (tmp_path / "memory.max").write_text("max\n")
        assert devices.free_memory(CPU) == pytest.approx(of_machine, rel=0.5)
    assert devices.free_memory(torch.device("meta")) == 0


def test_ranks_that_gather_store_by_default_nothing_that_others_may_not():
    def budget(**options):
        return GLoss(3, **options)._options(CPU).settings.memory_budget

    assert (budget(), budget(gather=True), budget(gather=True, memory_budget=7)) == (None, 0, 7)
