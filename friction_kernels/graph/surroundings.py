"""Where a graph's loss cannot be computed: inside torch.func, and while backward() runs."""

from __future__ import annotations

import torch


def refuse_transforms(name: str) -> None:
    """Raise inside of torch.func's transforms, which cannot see into the solver."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            f"torch.func transforms (grad, vjp, jacrev, vmap and the others) cannot go through {name}: how "
            "long its solver runs depends on the values; call it outside of them, once for each graph, and "
            "differentiate with backward() or torch.autograd.grad()"
        )


def gradients_are_being_computed() -> bool:
    """Whether backward() is what runs this, as it does where torch.utils.checkpoint recomputes."""
    return torch._C._current_graph_task_id() != -1
