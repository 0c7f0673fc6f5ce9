"""Parameters spread over processes: decisions that all make alike, and bad input."""

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import sharded_faults

pytestmark = pytest.mark.deep

PARAMETER = "parameter 1 of group 0 (shape (9, 4, 2))"


@pytest.mark.parametrize("layout", ["rows", "two meshes", "some plain"])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}], ids=str)
def test_an_infinity_in_one_part_makes_every_process_skip(processes, layout, options):
    options = {**options, "skip_nonfinite": True}
    for change, found in processes.run(sharded_faults.skipped, options, layout):
        assert change == 0
        assert found <= 1e-6


@pytest.mark.parametrize("layout", ["rows", "two meshes", "first everywhere"])
@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}], ids=str)
def test_every_process_skips_what_a_grad_scaler_found_in_one_part(processes, layout, options):
    """torch asks the processes of the first gradient only: with "first everywhere" one alone knows."""
    for change, found in processes.run(sharded_faults.skipped, options, layout, scale=2.0**10):
        assert change == 0
        assert found <= 1e-6


@pytest.mark.parametrize("found_by", ["step", "unscale_"])
def test_fsdp2_under_a_grad_scaler(processes, found_by):
    for scales, found in processes.run(sharded_faults.scaled_training, found_by):
        assert scales == [1024, 512, 512, 512]
        assert found == 0


@pytest.mark.parametrize(
    "case, remedy",
    [
        ("spread otherwise", "redistribute the gradient"),
        ("on another mesh", "redistribute the gradient"),
        ("a sum not taken", "redistribute the gradient"),
        ("plain gradient", "make it one"),
        ("another world", "delete its state, or load one with load_state_dict()"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(processes, case, remedy):
    for message, change in processes.run(sharded_faults.refused, case):
        assert PARAMETER in message
        assert remedy in message
        assert change == 0


@pytest.mark.parametrize(
    "case, remedy",
    [("spread otherwise", "redistribute the gradient"), ("plain gradient", "make it one")],
)
def test_a_compiled_step_refuses_gradients_that_are_spread_otherwise(processes, case, remedy):
    """Their local parts, which the operator takes, may look as those that fit."""
    for message, change in processes.run(sharded_faults.refused, case, compiles=True):
        assert "parameter 1 (shape (9, 4, 2)) cannot be updated" in message
        assert remedy in message
        assert change == 0


@pytest.mark.parametrize("given", ["the model", "a model around it"])
def test_release_refuses_distributed_data_parallel(processes, given):
    for kind, message, steps in processes.run(sharded_faults.released_under_ddp, given):
        assert kind is ValueError and "fully_shard" in message and steps == []


@pytest.mark.parametrize("given", ["its module", "its parameters"])
def test_gradients_that_distributed_data_parallel_puts_back_make_no_second_step(processes, given):
    for kind, message, steps in processes.run(sharded_faults.released_under_ddp, given):
        assert kind is RuntimeError
        assert "of group 0 (shape (3" in message and "has its gradient again" in message
        assert "DistributedDataParallel" in message and "fully_shard" in message
        assert steps == [1, 1]


def test_stochastic_rounding_refuses_two_cuts_beside_the_first_dimension(worlds):
    for message, change, states in worlds[4].run(sharded_faults.refused_rounding):
        assert "parameter 0 of group 0 ('here', shape (3, 4, 6)) cannot be updated" in message
        assert "keep what rounding loses with master='split'" in message
        assert change == 0 and states == 0


def test_states_of_another_mesh_are_brought_over(processes):
    assert max(processes.run(sharded_faults.loaded_over_another_mesh)) == 0
