"""The three passes in plain torch, for any device and any sigma: everything in logarithms."""

from __future__ import annotations

import torch
from torch import Tensor

from friction_kernels.graph.backend import Cotangents, Normalisers
from friction_kernels.graph.tiles import Tiles, as_tile


class ChunkedSimilarity:
    """`backend.Similarity` tile by tile: O(N) memory beside one or two tiles of rows.

    Each weight's exponent is at most 0 when it is taken, so that nothing overflows, and nothing that
    matters underflows, at any sigma.
    """

    def __init__(
        self,
        z: Tensor,
        inverse_sigma_squared: Tensor,
        precision: str = "fp32",
        *,
        stored: bool = False,
    ):
        self.z, self.inverse_sigma_squared, self.precision = z, inverse_sigma_squared, precision
        self.tiles = Tiles(z, inverse_sigma_squared, precision, stored=stored)

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        tiles, everything = self.tiles, range(len(self.z))
        rows = everything if rows is None else rows
        buffer, scratch = tiles.buffer(), tiles.buffer()
        result = column_bias.new_empty(len(rows))
        for chunk in tiles.row_chunks(rows):
            x = tiles.tile(chunk, everything, buffer)
            logits = torch.add(x, column_bias, out=as_tile(scratch, chunk, everything))
            largest = logits.amax(dim=1)
            total = logits.sub_(largest[:, None]).exp_().sum(dim=1)
            here = slice(chunk.start - rows.start, chunk.stop - rows.start)
            torch.add(total.log_(), largest, out=result[here])
        return result

    def apply(
        self, rows: range, columns: range, row_bias: Tensor, column_bias: Tensor, values: Tensor
    ) -> Tensor:
        buffer, scratch = self.tiles.buffer(), self.tiles.buffer()
        result = values.new_empty(len(rows), values.shape[1])
        for chunk in self.tiles.row_chunks(rows):
            x = self.tiles.tile(chunk, columns, buffer)
            here = slice(chunk.start - rows.start, chunk.stop - rows.start)
            weights = torch.add(x, column_bias, out=as_tile(scratch, chunk, columns))
            weights.add_(row_bias[here, None]).exp_()
            torch.mm(weights, values, out=result[here])
        return result

    def gradient(self, normalisers: Normalisers, cotangents: Cotangents) -> Tensor:
        tiles, z, grad = self.tiles, self.z, torch.zeros_like(self.z)
        buffers = [tiles.buffer() for _ in range(4)]
        for rows, rest in tiles.strips():
            x = tiles.tile(rows, rest, buffers[0])
            total, weights, product = (as_tile(b, rows, rest) for b in buffers[1:])
            total.zero_()
            for axis in (0, 1):  # M_ij, then M_ji in the same tile
                _add_softmaxes(
                    total, x, weights, product, normalisers, cotangents, rows, rest, axis
                )
            add_symmetric_product(grad, total, rows, z)
        return grad.mul_(self.inverse_sigma_squared)


def _add_softmaxes(
    total: Tensor,
    x: Tensor,
    weights: Tensor,
    product: Tensor,
    normalisers: Normalisers,
    cotangents: Cotangents,
    rows: range,
    rest: range,
    axis: int,
) -> None:
    """total += M (backend.Cotangents) whose rows i are the rows of the tile x, or its columns (axis 1)."""
    here, there = (slice(r.start, r.stop) for r in ((rows, rest) if axis == 0 else (rest, rows)))

    def of_i(vector: Tensor) -> Tensor:
        return vector[here].unsqueeze(1 - axis)

    def of_j(vector: Tensor) -> Tensor:
        return vector[there].unsqueeze(axis)

    log_degree, log_u, log_r = normalisers
    low_rank = (cotangents.left[here], cotangents.right[there].T)
    if axis == 1:
        low_rank = (cotangents.right[there], cotangents.left[here].T)
    torch.mm(*low_rank, out=product).sub_(of_i(cotangents.of_transition))
    # In the order of logsumexp: with the same rounding, rows of T and P sum to one more exactly.
    torch.sub(x, of_j(log_u), out=weights).sub_(of_i(log_r)).exp_()  # T_ij
    total.addcmul_(weights, product)
    torch.sub(x, of_j(log_degree / 2), out=weights).sub_(of_i(log_u)).exp_()  # P_ij
    total.addcmul_(weights, of_i(cotangents.of_log_u))
    torch.sub(x, of_i(log_degree), out=weights).exp_()  # Q_ij
    total.addcmul_(weights, of_i(cotangents.of_log_degree))


def add_symmetric_product(grad: Tensor, strip: Tensor, rows: range, z: Tensor) -> None:
    """grad += A z of a symmetric A, of which `strip` holds these rows from their diagonal on."""
    grad[rows.start : rows.stop].addmm_(strip, z[rows.start :])
    if rows.stop < len(z):
        grad[rows.stop :].addmm_(strip[:, len(rows) :].T, z[rows.start : rows.stop])
