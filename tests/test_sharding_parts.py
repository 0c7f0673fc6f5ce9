"""Sharding that is no DTensor: FSDP1, ZeroRedundancyOptimizer and one's own."""

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import sharded_parts
from optimizer_cases import noise
from sharded_parts import KINDS

from friction_kernels import RSGDM, TanhSignAdamP, clip_grad_norm_

pytestmark = pytest.mark.deep

SPREAD = ["flat", "originals", "gradients only"]
REORDERED = 1e-12


def kinds_of(processes):
    return [kind for kind in KINDS if kind != "hybrid" or processes.count == 4]


def test_fsdp1_steps_by_the_norm_of_all_parts(processes):
    for kind in kinds_of(processes):
        options = {"max_grad_norm": 0.05}
        for far, of_norms in processes.run(sharded_parts.trained, "SigSignAdamW", options, kind):
            assert far < REORDERED and of_norms < REORDERED, kind


@pytest.mark.parametrize("by", ["skip_nonfinite", "scaler"])
def test_an_infinity_in_one_part_makes_every_process_skip(processes, by):
    for kind in ("flat", "originals", "not spread"):
        assert processes.run(sharded_parts.skipped, kind, by) == [0] * processes.count, kind


@pytest.mark.parametrize("norm_type", [2.0, torch.inf])
def test_clip_grad_norm_of_fsdp1(worlds, norm_type):
    for kind in KINDS:
        for error, after in worlds[4].run(sharded_parts.clipped, kind, norm_type):
            assert error < REORDERED and after == pytest.approx(0.01, rel=1e-3), kind


@pytest.mark.parametrize("kind", [*SPREAD, "not spread, flat"])
def test_adamp_refuses_flattened_matrices(worlds, kind):
    for early, late in worlds[4].run(sharded_parts.adamp, kind):
        assert early[0] is ValueError and late[0] in (ValueError, RuntimeError)
        for _, message in (early, late):
            assert "parameter 0 of group 0" in message and "fully_shard" in message


def test_adamp_takes_what_fsdp1_left_whole_and_vectors(worlds):
    options = {"max_grad_norm": 0.05}
    for errors in worlds[2].run(sharded_parts.trained, "SigSignAdamP", options, "not spread"):
        assert max(errors) < REORDERED
    assert worlds[2].run(sharded_parts.adamp_of_vectors) == [(None, "")] * 2


def test_release_refuses_fsdp1(worlds):
    for kind in ("flat", "originals"):
        for refused, message in worlds[2].run(sharded_parts.released, kind):
            assert refused is ValueError and "fully_shard" in message


def test_stochastic_rounding_under_fsdp1_has_the_bits_of_one_process(processes):
    assert all(processes.run(sharded_parts.rounded, "originals"))


@pytest.mark.parametrize("options", [{}, {"state_dtype": "8bit"}, {"master": "fp32"}], ids=str)
def test_fsdp1_checkpoints_of_whole_states(worlds, options):
    for found in worlds[2].run(sharded_parts.through_a_checkpoint, options):
        assert found == (0, 3)  # a state for each flat parameter


@pytest.mark.parametrize("optimizer", ["SigSignAdamW", "SigSignAdamP", "RSGDM"])
def test_zero_redundancy_optimizer_with_a_process_group(processes, optimizer):
    found = processes.run(sharded_parts.zero, optimizer, {"max_grad_norm": 0.5})
    assert all(far < REORDERED and of_norms < REORDERED for far, of_norms, _ in found)
    assert sum(states for _, _, states in found) == 3  # nobody has all


@pytest.mark.parametrize("how", ["eager", "compiles", "copied"])
def test_parts_of_ones_own_with_a_process_group(processes, how):
    options = {} if how == "eager" else {how: True}
    for change, norm, expected in processes.run(sharded_parts.own_parts, **options):
        assert change < REORDERED and norm == pytest.approx(expected, rel=1e-6)


def test_all_skip_what_one_of_ones_own_parts_has_infinite(processes):
    for change, norm, _ in processes.run(sharded_parts.own_parts, infinite=True):
        assert change == 0 and norm == torch.inf


def test_a_process_group_that_is_none_is_refused(worlds):
    found = worlds[2].run(sharded_parts.group_of_others)
    assert not found[0][0] and "this process is in" in found[1][0]
    for _, (kind, message) in found:
        assert kind is ValueError and "process_group 'no such group'" in message


def test_what_fsdp1_flattened_and_no_longer_knows_is_refused():
    """After gc.freeze(), say: torch's mark is there, and the handle is not to be found."""
    param = torch.nn.Parameter(noise((8,), 0, torch.bfloat16))
    param._fsdp_flattened, param.grad = True, noise((8,), 1, torch.bfloat16)
    before = param.detach().clone()
    for options, remedy in (
        ({"max_grad_norm": 1.0}, "process_group=model.process_group"),
        ({"skip_nonfinite": True}, "process_group=model.process_group"),
        ({"rounding": "stochastic"}, "master='split'"),
    ):
        with pytest.raises(RuntimeError, match=rf"parameter 0 of group 0 .*{remedy}"):
            RSGDM([param], **options).step()
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 .*fully_shard"):
        TanhSignAdamP([param])
    with pytest.raises(RuntimeError, match="process_group=model"):
        clip_grad_norm_([param], 1.0)
    assert torch.equal(param, before)
    RSGDM([param]).step()
    assert not torch.equal(param, before)
