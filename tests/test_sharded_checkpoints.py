"""torch.distributed.checkpoint: saved by four processes, loaded by four, two and one."""

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

import sharded_checkpoints

pytestmark = [
    pytest.mark.deep,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled"),
]

EXACT = {
    "fp32": ("SigSignAdamW", {}, torch.float32),
    "AdamW": ("AdamW", {"state_dtype": "bf16"}, torch.float32),
    "RSGDM": ("RSGDM", {"weight_decay": 0.1}, torch.float32),
    "SGD": ("SGD", {"momentum": 0.9, "nesterov": True}, torch.float32),
    "stochastic": (
        "TanhSignAdamW",
        {"rounding": "stochastic", "seed": 7, "state_dtype": "bf16"},
        torch.bfloat16,
    ),
    "split": ("SigSignGrad", {"master": "split"}, torch.bfloat16),
    "fp32 master": ("SigSignAdamW", {"master": "fp32", "capturable": True}, torch.bfloat16),
}
SUMMED = {
    "clipped": ("RSGDM", {"max_grad_norm": 1.0}, torch.float32),
    "AdamP": ("SigSignAdamP", {"max_grad_norm": 9.0}, torch.float32),
}
CASES = EXACT | SUMMED
QUANTIZED = ("SigSignAdamW", {"master": "split8", "state_dtype": "8bit"}, torch.bfloat16)
LR = 0.01


def one_process(case):
    """The run that never stopped, after three steps and after five."""
    model, opt = sharded_checkpoints.make(*case)
    sharded_checkpoints.train(model, opt, range(3))
    middle = sharded_checkpoints.copied_numbers(model, opt)
    sharded_checkpoints.train(model, opt, range(3, 5))
    return middle, sharded_checkpoints.copied_numbers(model, opt)


def assert_near(found, expected, relative):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype or value.dtype == torch.int16, key
        error = (found[key].double() - value.double()).abs().max()
        assert error <= relative * value.double().abs().max(), key


@pytest.mark.parametrize("name", CASES)
def test_a_run_goes_on_over_fewer_processes_as_if_it_never_stopped(worlds, name, tmp_path):
    relative = 0 if name in EXACT else 1e-6
    middle, end = one_process(CASES[name])
    for saved in worlds[4].run(sharded_checkpoints.save, tmp_path, *CASES[name]):
        assert_near(saved[0], middle, relative)
        assert_near(saved[1], end, relative)
    for count in (4, 2, 1):
        load = sharded_checkpoints.load, tmp_path, *CASES[name]
        runs = worlds[count].run(*load) if count > 1 else [load[0](*load[1:])]
        for loaded, trained in runs:
            assert_near(loaded, middle, relative)
            assert_near(trained, end, relative)


@pytest.mark.parametrize("from_first", [True, False], ids=["from the first", "from each"])
@pytest.mark.parametrize("name", CASES)
def test_whole_state_dicts(worlds, name, from_first):
    """full_state_dict and cpu_offload, there and back."""
    relative = 0 if name in EXACT else 1e-6
    _, end = one_process(CASES[name])
    for trained in worlds[2].run(sharded_checkpoints.through_full_states, *CASES[name], from_first):
        assert_near(trained, end, relative)


def test_states_of_8_bits(worlds, tmp_path):
    """The same bits where parts stay as they are; elsewhere blocks are other ones, and codes with them."""
    [(middle, end), *_] = worlds[4].run(sharded_checkpoints.save, tmp_path, *QUANTIZED)
    load = sharded_checkpoints.load, tmp_path, *QUANTIZED
    for loaded, trained in worlds[4].run(*load):
        assert_near(loaded, middle, 0)
        assert_near(trained, end, 0)
    for loaded, trained in (*worlds[2].run(*load), load[0](*load[1:])):
        assert_near(loaded, middle, (1 + 1 / 240) / 32)  # half a code of the largest
        for key, value in end.items():
            if key.startswith("parameter"):
                change = (trained[key].float() - value.float()).abs().max()
                assert change <= LR / 4 + 2.0**-8 * value.float().abs().max()


def test_states_that_torch_makes_leave_parameters_alone(worlds):
    """It steps with gradients of zero and lr = 0 to have states to load into."""
    for options in (
        {"weight_decay": 0.5},
        {"weight_decay": 0.5, "rounding": "stochastic"},
        {"max_grad_norm": 1.0, "skip_nonfinite": True, "capturable": True},
        {"master": "split", "state_dtype": "8bit"},
    ):
        for name in ("TanhSignAdamP", "SigSignGrad", "RSGDM"):
            for changed in worlds[2].run(sharded_checkpoints.started_by_torch, name, options):
                assert not changed
