"""The examples of examples/integrations that need torch alone, and the builder of optimizers of parts."""

import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp
from integration_examples import FOLDER, accuracy_in, assert_same_bits, example, run
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from friction_kernels import RSGDM, SigSignAdamW
from friction_kernels.integrations.torchtitan import ParamGroupConfig, build_optimizers

pytestmark = pytest.mark.deep

NEW_MODULES = """
import sys, torch
before = set(sys.modules)
import friction_kernels
print(*sorted({name.split(".")[0] for name in set(sys.modules) - before}))
"""
GROUPS = [
    ParamGroupConfig(r"bias$", "RSGDM", {"lr": 0.1, "state_dtype": "bf16"}),
    ParamGroupConfig(r"^4\.", "SigSignAdamW", {"lr": 1e-2, "master": "split"}),
    ParamGroupConfig(r".*", "SigSignAdamW", {"lr": 1e-3}),
]


def test_importing_the_library_imports_no_other():
    found = set(run("-c", NEW_MODULES).split())
    assert found - sys.stdlib_module_names - {"torch"} == {"friction_kernels"}


def test_timm_style_trains():
    assert accuracy_in(run(FOLDER / "timm_style.py")) > 0.95


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_an_example_without_a_traceback():
    command = [sys.executable, "-u", FOLDER / "timm_style.py"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        assert process.stdout.readline().startswith("epoch 0")
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert said == "stopped\n" and "test accuracy" not in printed


def test_torchtitan_style_trains_and_loads_into_other_parts(tmp_path):
    output = run(FOLDER / "torchtitan_style.py", "--output", tmp_path)
    in_parts, in_one = output.splitlines()[-2:]
    assert in_parts.startswith("4 optimizers") and "with 2 optimizers" in in_one
    assert accuracy_in(in_parts) == accuracy_in(in_one) > 0.95


def test_fsdp2_trains_and_resumes_with_the_same_bits(tmp_path):
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    command = *torchrun, FOLDER / "fsdp2.py", "--output", tmp_path
    assert accuracy_in(run(*command)) > 0.95
    run(*command, "--resume")
    states = []
    for name in ("whole", "resumed"):
        dcp_to_torch_save(tmp_path / name, tmp_path / f"{name}.pt")
        states.append(torch.load(tmp_path / f"{name}.pt", weights_only=True))
    assert_same_bits(*states)


def parts_of(network):
    return example("torchtitan_style").split(network)


def train(network, optimizers, steps=3):
    torch.manual_seed(0)
    for _ in range(steps):
        optimizers.zero_grad()
        network(torch.randn(8, 64)).square().mean().backward()
        optimizers.step()


def test_a_parameter_has_the_options_of_the_first_group_that_fits():
    network = example("digits").network(16)
    network[6].requires_grad_(False)
    optimizers = build_optimizers(parts_of(network), GROUPS)
    named = {id(param): name for name, param in network.named_parameters()}
    found = {
        named[id(param)]: (type(opt), group["lr"], group["master"])
        for opt in optimizers
        for group in opt.param_groups
        for param in group["params"]
    }
    assert found == {
        "1.weight": (SigSignAdamW, 1e-3, None),
        "1.bias": (RSGDM, 0.1, None),
        "3.weight": (SigSignAdamW, 1e-3, None),
        "3.bias": (RSGDM, 0.1, None),
        "4.weight": (SigSignAdamW, 1e-2, "split"),
        "4.bias": (RSGDM, 0.1, None),
    }


@pytest.mark.parametrize("save_in_parts", [True, False])
def test_training_goes_on_with_the_same_bits_in_other_parts(save_in_parts, tmp_path):
    def make(in_parts):
        torch.manual_seed(1)
        network = example("digits").network(16)
        return network, build_optimizers(parts_of(network) if in_parts else [network], GROUPS)

    expected, their_optimizers = make(save_in_parts)
    train(expected, their_optimizers)
    saved = {"model": expected.state_dict(), "optimizer": their_optimizers}
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    train(expected, their_optimizers)

    network, optimizers = make(not save_in_parts)
    for _ in range(2):  # a run may go back to its checkpoint more than once
        loaded = {"model": network.state_dict(), "optimizer": optimizers}
        dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
        train(network, optimizers)
    assert_same_bits(network.state_dict(), expected.state_dict())


def test_groups_that_cannot_be_are_refused():
    network = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(ValueError, match=r"'NAdam'.*choose one of SigSignGrad"):
        build_optimizers([network], [ParamGroupConfig(".*", "NAdam")])
    with pytest.raises(ValueError, match=r"'0\.weight': add a last one with the pattern '\.\*'"):
        build_optimizers([network], [ParamGroupConfig("bias", "RSGDM")])
    for option in ({"max_grad_norm": 1.0}, {"skip_nonfinite": True}):
        groups = [
            ParamGroupConfig("bias", "RSGDM"),
            ParamGroupConfig(".*", "SigSignAdamW", option),
        ]
        with pytest.raises(ValueError, match=r"there are 2; .*clip_grad_norm_ before step"):
            build_optimizers([network], groups)
        assert len(build_optimizers([network], groups[1:])) == 1
