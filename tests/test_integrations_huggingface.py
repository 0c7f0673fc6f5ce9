"""The optimizers under Hugging Face's Trainer and Accelerate."""

import pytest
import torch
from integration_examples import accuracy_in, assert_same_bits, example, run_here
from optimizer_cases import every_optimizer
from torch import nn

from friction_kernels import OPTIMIZERS, SigSignAdamW

pytest.importorskip("transformers", reason="transformers is not installed")
accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """A process has one kind of Accelerator, also where an earlier test has made it."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def test_trainer_trains_and_resumes_with_the_same_bits(tmp_path, capsys):
    trainer = run_here("huggingface_trainer", "--output", tmp_path / "whole")["trainer"]
    assert accuracy_in(capsys.readouterr().out) > 0.93
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]  # the cosine's end
    opt = trainer.optimizer.optimizer
    assert type(opt) is SigSignAdamW
    assert [group["weight_decay"] for group in opt.param_groups] == [0.05, 0.0]

    half = tmp_path / "whole" / f"checkpoint-{trainer.state.global_step // 2}"
    resumed = example("huggingface_trainer").make_trainer(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(half))
    assert_same_bits(resumed.model.state_dict(), trainer.model.state_dict())
    assert_same_bits(resumed.optimizer.state_dict(), trainer.optimizer.state_dict())


def test_trainers_clipping_equals_that_of_the_step(tmp_path):
    module = example("huggingface_trainer")
    bound, found = 0.1, []
    for trainers, steps in ((bound, None), (0.0, bound)):
        options = {**module.OPTIMIZER, "max_grad_norm": steps}
        trainer = module.make_trainer(
            tmp_path, options, max_grad_norm=trainers, max_steps=5, bf16=False, save_strategy="no"
        )
        trainer.train()
        found.append(trainer.model.state_dict())
    assert trainer.optimizer.optimizer.grad_norm > bound  # there was something to clip
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_accelerate_trains_and_resumes_with_the_same_bits(tmp_path, capsys):
    expected = run_here("accelerate_loop", "--output", tmp_path)["model"]
    assert accuracy_in(capsys.readouterr().out) > 0.95
    found, _ = example("accelerate_loop").train(tmp_path, resume=True)
    assert_same_bits(found.state_dict(), expected.state_dict())


@every_optimizer
def test_accelerates_optimizer_with_a_scaler(name):
    """As Accelerate wraps it for float16; on a CPU it builds no scaler itself."""
    accelerate.Accelerator(cpu=True)
    steps = []
    for scale in (None, 2.0**10):
        torch.manual_seed(0)
        model = nn.Linear(20, 30)
        opt = OPTIMIZERS[name](model.parameters(), lr=0.1, max_grad_norm=0.5)
        scaler = scale and torch.amp.GradScaler("cpu", init_scale=scale)
        wrapped = accelerate.optimizer.AcceleratedOptimizer(opt, scaler=scaler)
        for factor in (1.0, torch.inf, 1.0) if scale else (1.0, 1.0):
            loss = factor * model(torch.arange(40.0).view(2, 20) / 40).square().mean()
            (scaler.scale(loss) if scale else loss).backward()
            before = [param.clone() for param in model.parameters()]
            wrapped.step()
            changed = not torch.equal(before[0], model.weight)
            assert changed == (factor == 1.0)
            wrapped.zero_grad()
        steps.append(model.state_dict())
    torch.testing.assert_close(*steps, rtol=1e-5, atol=1e-6)
