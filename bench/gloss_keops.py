"""G-Loss over PyKeOps: nothing N x N is stored, and KeOps makes the gradients of its reductions.

A user would write it so: the solution is iterated without gradients, then one step of propagation is
taken with them, whose incoming gradient is first put through the adjoint iteration.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

if TYPE_CHECKING:
    from bench.gloss_forms import Problem

TOL, MOST_STEPS = 1e-5, 64


def keops_loss(problem: "Problem") -> Callable[[Tensor], Tensor]:
    import pykeops

    pykeops.set_verbose(False)
    from pykeops.torch import LazyTensor

    n = problem.num_labelled
    y = one_hot(problem.labels[:n], problem.num_classes).float()

    def weights_times(rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
        """sum_j exp((z_i . z_j - 1) / sigma^2) values_j, where W_ii would be one."""
        left, right = LazyTensor(rows[:, None, :]), LazyTensor(columns[None, :, :])
        return ((left | right) - 1 / problem.sigma**2).exp() @ values.contiguous()

    def loss(embeddings: Tensor) -> Tensor:
        e = embeddings.float()
        z = e / (e.norm(dim=1, keepdim=True) * problem.sigma)
        ones = z.new_ones(len(z), 1)
        s = (weights_times(z, z, ones) - 1).rsqrt()  # deg^(-1/2)
        u = weights_times(z, z, s) - s
        r = (weights_times(z, z, 1 / u) - 1 / u)[n:]  # the sums of rows of W / u

        def step(z: Tensor, u: Tensor, r: Tensor, f: Tensor) -> Tensor:
            everything = torch.cat((y, f)) / u
            return (weights_times(z[n:], z, everything) - everything[n:]) / r

        def adjoint_step(z: Tensor, u: Tensor, r: Tensor, a: Tensor) -> Tensor:
            a = a / r
            return (weights_times(z[n:], z[n:], a) - a) / u[n:]

        fixed = [part.detach() for part in (z, u, r)]
        f = fixed_point(lambda f: step(*fixed, f), y.new_zeros(len(r), y.shape[1]))
        f = step(z, u, r, f)
        if f.requires_grad:
            f.register_hook(lambda g: fixed_point(lambda a: adjoint_step(*fixed, a) + g, g))
        return cross_entropy(f, problem.labels[n:])

    return loss


@torch.no_grad()
def fixed_point(step: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    for _ in range(MOST_STEPS):
        new = step(start)
        change = (new - start).abs().max() / new.abs().max()
        start = new
        if change <= TOL:
            break
    return start
