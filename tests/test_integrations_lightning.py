"""The optimizers under Lightning: its closures, clipping, precision and checkpoints."""

import pytest
import torch
from integration_examples import accuracy_in, assert_same_bits, example, run_here

pytest.importorskip("lightning", reason="lightning is not installed")
from lightning.pytorch.plugins import MixedPrecision


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


FEW = {"max_epochs": 1, "limit_train_batches": 6, "callbacks": [], "enable_checkpointing": False}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightnings_clipping_equals_that_of_the_step(precision, tmp_path):
    bound, fit = 0.1, example("lightning_module").fit
    few = {**FEW, "precision": precision}
    expected, _ = fit(tmp_path, max_grad_norm=None, gradient_clip_val=bound, **few)
    found, trainer = fit(tmp_path, max_grad_norm=bound, **few)
    assert trainer.optimizers[0].grad_norm > bound  # there was something to clip
    torch.testing.assert_close(found.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)


def test_a_scaler_leaves_clipping_to_the_step(tmp_path):
    # Through plugins: with precision="16-mixed" Lightning takes bfloat16 on a processor.
    def mixed():
        return {**FEW, "precision": None, "plugins": [MixedPrecision("16-mixed", "cpu")]}

    fit = example("lightning_module").fit
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(tmp_path, max_grad_norm=None, gradient_clip_val=0.1, **mixed())
    _, trainer = fit(tmp_path, max_grad_norm=0.1, **mixed())
    assert trainer.optimizers[0].grad_norm > 0.1
