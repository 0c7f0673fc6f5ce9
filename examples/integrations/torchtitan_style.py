"""torchtitan's style: two parts of a network, optimizers from a configuration, a flat checkpoint.

The parts are those that a process has under pipeline parallelism; here it has both. Matrices and the rest are
groups of their own. The checkpoint is keyed by the names of parameters, and loads into the network in one
part as well.

    python examples/integrations/torchtitan_style.py [--output FOLDER]
"""

import argparse

import digits
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from friction_kernels import clip_grad_norm_
from friction_kernels.integrations.torchtitan import ParamGroupConfig, build_optimizers

EPOCHS, LR = 8, 3e-3
MATRICES = r"[136]\.weight$"
CONFIG = [
    ParamGroupConfig(MATRICES, "SigSignAdamW", {"lr": LR, "friction_input": "normalized"}),
    ParamGroupConfig(r".*", "TanhSignGrad", {"lr": LR}),
]


def split(network: nn.Sequential) -> list[nn.Module]:
    """Two parts, whose parameters keep the names that they have in the whole."""
    first, second = nn.Sequential(), nn.Sequential()
    for name, layer in network.named_children():
        (first if int(name) < 3 else second).add_module(name, layer)
    return [first, second]


def train(epochs: int = EPOCHS):
    """The network, its parts' optimizers, and the accuracy on the test images."""
    torch.manual_seed(0)
    data, test = digits.load()
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True)
    network = digits.network()
    first, second = split(network)
    optimizers = build_optimizers([first, second], CONFIG)
    schedules = [OneCycleLR(opt, LR, total_steps=EPOCHS * len(loader)) for opt in optimizers]
    for epoch in range(epochs):
        for images, labels in loader:
            loss = cross_entropy(second(first(images)), labels)
            optimizers.zero_grad()
            loss.backward()
            norm = clip_grad_norm_(network.parameters(), 1.0)
            optimizers.step()
            for schedule in schedules:
                schedule.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, gradient norm {norm.item():.2f}")
    return network, optimizers, digits.accuracy(network, test)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", default="runs/torchtitan_style")
    args = parser.parse_args()
    network, optimizers, accuracy = train()
    dcp.save({"model": network.state_dict(), "optimizer": optimizers}, checkpoint_id=args.output)
    print(f"{len(optimizers)} optimizers, test accuracy {accuracy:.3f}")

    whole = digits.network()
    optimizers = build_optimizers([whole], CONFIG)
    state = {"model": whole.state_dict(), "optimizer": optimizers}
    dcp.load(state, checkpoint_id=args.output)
    whole.load_state_dict(state["model"])
    accuracy = digits.accuracy(whole, digits.load()[1])
    print(f"loaded into one part with {len(optimizers)} optimizers, test accuracy {accuracy:.3f}")
