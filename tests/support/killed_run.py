"""A run of test_killed.py that may be killed at any time and goes on from its last checkpoint.

``python killed_run.py FOLDER STEPS`` prints each step when its checkpoint is there.
"""

import itertools
import os
import sys
from pathlib import Path

import torch
from optimizer_cases import copies, give_gradients, make_params

from friction_kernels import RSGDM, SigSignAdamW, TanhSignAdamP


def make_runs():
    """Parameters and optimizers whose state shows everything that a checkpoint must hold."""
    runs = []
    for make in (
        lambda p: SigSignAdamW(p, 0.02, friction_input="normalized", rounding="stochastic", seed=5),
        lambda p: TanhSignAdamP(p, 0.02, master="split", state_dtype="8bit", max_grad_norm=9.0),
        lambda p: RSGDM(p, 0.02, rounding="stochastic", state_dtype={"momentum_buffer": "8bit"}),
    ):
        params = copies(make_params(dtype=torch.bfloat16))
        runs.append((params, make(params)))
    return runs


def step(runs, number):
    for params, opt in runs:
        give_gradients(params, number)
        opt.step()


def save(runs, number, file):
    """Whoever kills this finds either the last checkpoint or the one before."""
    contents = [([p.detach() for p in params], opt.state_dict()) for params, opt in runs]
    written = file.with_suffix(".written")
    torch.save({"steps": number, "runs": contents}, written)
    os.replace(written, file)


def load(runs, file):
    checkpoint = torch.load(file, weights_only=True)
    for (params, opt), (values, state_dict) in zip(runs, checkpoint["runs"], strict=True):
        with torch.no_grad():
            for param, value in zip(params, values, strict=True):
                param.copy_(value)
        opt.load_state_dict(state_dict)
    return checkpoint["steps"]


def main():
    torch.set_num_threads(1)
    file = Path(sys.argv[1]) / "checkpoint.pt"
    runs = make_runs()
    done = load(runs, file) if file.exists() else 0
    for number in itertools.count(done):
        if number == int(sys.argv[2]):
            break
        step(runs, number)
        save(runs, number + 1, file)
        print(number + 1, flush=True)


if __name__ == "__main__":
    main()
