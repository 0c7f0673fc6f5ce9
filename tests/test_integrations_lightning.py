"""The optimizers under Lightning: its closures, clipping, precision and checkpoints."""

import pytest
import torch
from integration_examples import accuracy_in, assert_same_bits, example, run_here

pytest.importorskip("lightning", reason="lightning is not installed")


def test_lightning_trains_and_resumes_with_the_same_bits(tmp_path, capsys):
    module = run_here("lightning_module", "--output", tmp_path)["module"]
    assert accuracy_in(capsys.readouterr().out) > 0.95
    assert (
        module.lr_schedulers().get_last_lr()[0] < 1e-6
    )  # one of its steps for each of the optimizer's

    fit = example("lightning_module").fit
    resumed, _ = fit(tmp_path / "resumed", resume=tmp_path / "epoch=3.ckpt")
    assert_same_bits(resumed.state_dict(), module.state_dict())
    assert_same_bits(resumed.optimizers().state_dict(), module.optimizers().state_dict())


def test_lightnings_clipping_equals_that_of_the_step(tmp_path):
    bound, fit = 0.1, example("lightning_module").fit
    few = {"max_epochs": 1, "limit_train_batches": 6, "precision": "32-true"}
    few |= {"callbacks": [], "enable_checkpointing": False}
    expected, _ = fit(tmp_path, max_grad_norm=None, gradient_clip_val=bound, **few)
    found, trainer = fit(tmp_path, max_grad_norm=bound, **few)
    assert trainer.optimizers[0].grad_norm > bound  # there was something to clip
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)
