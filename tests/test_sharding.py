"""Optimizers over parameters that are spread over processes (gloo): two and four equal one."""

import pytest
import torch
from optimizer_cases import each_of

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import sharded_cases

from friction_kernels import OPTIMIZERS

pytestmark = pytest.mark.deep

REORDERED = 1e-6  # where a sum is taken in another order
BLOCKS = [(10, 256), (3, 512), (1024,)]  # whose parts are whole blocks of 8-bit state
LOW_PRECISION = [
    {"rounding": "stochastic", "seed": 3},
    {"master": "split", "state_dtype": "bf16"},
    {"master": "split8", "state_dtype": "fp32"},
    {"master": "fp32"},
]

every_optimizer = each_of(OPTIMIZERS, "optimizer")


def bound(optimizer):
    return REORDERED if optimizer.endswith("AdamP") else 0.0


@every_optimizer
def test_training_with_fsdp2_equals_one_process(processes, optimizer):
    """To the bit, given the same gradients; to rounding where each run computes its own."""
    assert max(processes.run(sharded_cases.trained, optimizer, {"lr": 0.01})) <= bound(optimizer)
    assert max(processes.run(sharded_cases.trained_by_each, optimizer, {"lr": 0.01})) < 1e-12


@pytest.mark.parametrize("options", LOW_PRECISION, ids=str)
def test_training_in_low_precision_gives_the_bits_of_one_process(processes, options):
    found = processes.run(sharded_cases.trained, "SigSignAdamW", options, dtype=torch.bfloat16)
    assert max(found) == 0


@pytest.mark.parametrize("optimizer", ["TanhSignGrad", "TanhSignAdamW", "AdamW", "SGD"])
def test_states_of_8_bits_are_the_same_where_parts_are_whole_blocks(processes, optimizer):
    for dtype in (torch.float32, torch.bfloat16):
        options = {"state_dtype": "8bit", "master": "split"}
        found = processes.run(sharded_cases.stepped, optimizer, options, dtype=dtype, shapes=BLOCKS)
        assert max(found) == 0


@every_optimizer
def test_every_way_to_spread_parameters_equals_one_process(processes, optimizer):
    """Tensor parallel, in two dimensions, replicated, on several meshes, beside plain tensors."""
    for found in processes.run(sharded_cases.every_layout, optimizer, {"lr": 0.01}):
        assert max(found.values()) <= bound(optimizer), found


@pytest.mark.parametrize("optimizer", ["SigSignAdamW", "SigSignAdamP", "AdamP", "RSGDM"])
def test_clipping_takes_the_norm_of_all_parts_and_of_each_once(processes, optimizer):
    """Copies do not count twice: the twin's grad_norm is compared, too."""
    for found in processes.run(sharded_cases.every_layout, optimizer, {"max_grad_norm": 0.5}):
        assert max(found.values()) <= REORDERED, found
    options = {"max_grad_norm": 0.5}
    assert max(processes.run(sharded_cases.trained, optimizer, options)) <= REORDERED


@pytest.mark.parametrize("norm_type", [2.0, 1.0])
@pytest.mark.parametrize("layout", ["rows", "two meshes", "some plain"])
def test_clip_grad_norm_takes_parameters_of_several_meshes(processes, layout, norm_type):
    for found, scaled in processes.run(sharded_cases.clipped_outside, layout, norm_type):
        assert scaled and found <= REORDERED


@pytest.mark.parametrize("layout", ["rows", "two meshes", "some plain"])
def test_lists_of_dtensors_have_the_products_and_sums_of_whole_ones(processes, layout):
    assert max(processes.run(sharded_cases.products_and_sums, layout)) < 1e-12


def test_sums_of_gradients_are_taken_over_their_parameters_processes(processes):
    assert max(processes.run(sharded_cases.sums_over_processes)) < 1e-12


@pytest.mark.parametrize("optimizer", ["SigSignAdamW", "SigSignAdamP", "AdamP", "RSGDM"])
def test_a_compiled_step_of_dtensors(processes, optimizer):
    options = {"lr": 0.01}
    for layout in ("rows", "rows and columns", "some plain"):
        found = processes.run(
            sharded_cases.stepped, optimizer, options, compiles=True, layout=layout
        )
        assert max(found) <= bound(optimizer)


def test_a_compiled_step_after_fsdp2(processes):
    options = {"max_grad_norm": 0.5}
    found = processes.run(sharded_cases.trained, "SigSignAdamW", options, compiles=True)
    assert max(found) <= REORDERED


def test_stochastic_rounding_does_not_depend_on_the_way_parameters_are_spread(processes):
    options = {"rounding": "stochastic", "seed": 2**40 + 1}
    for optimizer in ("SigSignAdamW", "RSGDM"):
        for found in processes.run(
            sharded_cases.every_layout, optimizer, options, dtype=torch.bfloat16
        ):
            assert max(found.values()) == 0, found


@pytest.mark.parametrize("dim", [0, 1])
def test_memory_of_another_order(processes, dim):
    """Chance goes by places in the memory of the whole, as it does in one process."""
    for options in ({"rounding": "stochastic", "seed": 3}, {"master": "split"}):
        for optimizer in ("SigSignAdamW", "RSGDM"):
            found = processes.run(sharded_cases.transposed, optimizer, options, dim)
            assert max(found) == 0


@pytest.mark.parametrize("delta, kind", [(9.0, "rows"), (1.5, "whole"), (0.0, "none")])
@pytest.mark.parametrize("layout", ["rows", "columns", "rows and columns"])
def test_adamp_decides_and_projects_as_one_process(processes, layout, delta, kind):
    for found, kinds in processes.run(sharded_cases.projected, delta, layout):
        assert kind in kinds
        assert found <= REORDERED


@pytest.mark.parametrize("layout, sums", [("rows", 1), ("columns", 1), ("rows and columns", 2)])
def test_adamp_takes_the_sums_of_all_matrices_together(worlds, layout, sums):
    """And no verdict comes to the host: it reads what it reads for AdamW, the step counts."""
    adamp, adamw = (
        worlds[4].run(sharded_cases.said, name, layout) for name in ("SigSignAdamP", "SigSignAdamW")
    )
    for (of_adamp, read), (of_adamw, read_for_adamw) in zip(adamp, adamw, strict=True):
        assert (of_adamp, of_adamw) == (sums, 0)
        assert read == read_for_adamw


@pytest.mark.parametrize(
    "optimizer, options, dtype",
    [
        ("SigSignAdamW", {"max_grad_norm": 0.5}, torch.float32),
        ("SigSignAdamW", {"rounding": "stochastic"}, torch.bfloat16),
        ("SigSignAdamP", {}, torch.float32),
    ],
)
def test_fsdp2_over_tensor_parallel_layers(processes, optimizer, options, dtype):
    clipped = "max_grad_norm" in options
    for found, placements in processes.run(
        sharded_cases.tensor_parallel, optimizer, options, dtype=dtype
    ):
        assert found <= (REORDERED if clipped else bound(optimizer))
        assert any("_StridedShard" in p for p in placements)
        assert any("Shard(dim=1)" in p for p in placements)


def test_hybrid_sharding_and_data_parallel(processes):
    options = {"max_grad_norm": 0.05}
    for how in ("hsdp", "ddp"):
        found = processes.run(sharded_cases.trained_by_each, "SigSignAdamW", options, parallel=how)
        assert max(found) < 1e-12


@pytest.mark.parametrize("optimizer", ["SigSignAdamW", "SigSignAdamP", "AdamP", "RSGDM"])
def test_released_gradients_under_fsdp2(processes, optimizer):
    assert max(processes.run(sharded_cases.released, optimizer, {})) < 1e-12
