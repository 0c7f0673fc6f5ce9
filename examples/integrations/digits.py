"""The data of these examples: scikit-learn's handwritten digits, and a small network for them."""

import ending  # noqa: F401 - before what takes seconds to load
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset


def load() -> tuple[TensorDataset, TensorDataset]:
    """1,347 images (1, 8, 8) with their labels to train on, and 450 to test on."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 1, 8, 8).astype("float32") / 8 - 1
    parts = train_test_split(images, labels, test_size=450, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return TensorDataset(train_images, train_labels), TensorDataset(test_images, test_labels)


def network(width: int = 128) -> nn.Sequential:
    """Matrices, which weight decay is for, and biases and norms, which it is not for."""
    hidden = [nn.Linear(width, width), nn.LayerNorm(width), nn.GELU()]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.GELU(), *hidden, nn.Linear(width, 10)
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    """The share of images that a model classifies right."""
    images, labels = data.tensors
    device = next(model.parameters()).device
    model.eval()
    right = model(images.to(device)).argmax(dim=1).cpu() == labels
    model.train()
    return right.float().mean().item()
