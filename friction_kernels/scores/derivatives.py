"""What backward passes written by hand refuse."""

import torch


def refuse_second_derivative(name: str) -> None:
    """Raise in a backward() that is itself being differentiated.

    torch's once_differentiable accepts a gradient of a constant, with a wrong second derivative.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} cannot be differentiated twice; call backward() or torch.autograd.grad() without "
            "create_graph=True"
        )
