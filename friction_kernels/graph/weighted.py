"""The three passes as products with the weights themselves, where sigma is not small.

The logarithms of W = exp(x) lie within 1 / sigma^2 of zero. While that is at most 20, weights, degrees and
all their normalised forms are ordinary float32 numbers: for up to a million nodes |log deg| <= 34,
|log u| <= 51, and |log r| <= 85, which no graph comes near. So a logsumexp is a product with a vector, and
dL/dx is W times a matrix of rank K + 3: a pass takes one exponential an element, or none where W is stored.
"""

from __future__ import annotations

import torch
from torch import Tensor

from friction_kernels.graph.backend import Cotangents, Normalisers
from friction_kernels.graph.chunked import add_symmetric_product
from friction_kernels.graph.tiles import Tiles, as_tile

LARGEST_EXPONENT = 20.0


class WeightedSimilarity:
    """`backend.Similarity` for 1 / sigma^2 <= 20, tile by tile or from stored weights."""

    def __init__(
        self,
        z: Tensor,
        inverse_sigma_squared: Tensor,
        precision: str = "fp32",
        *,
        stored: bool = False,
    ):
        self.z, self.inverse_sigma_squared, self.precision = z, inverse_sigma_squared, precision
        self.tiles = Tiles(z, inverse_sigma_squared, precision, exponential=True, stored=stored)

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        factor, everything = column_bias.exp(), range(len(self.z))
        if rows is not None:
            total = factor.new_empty(len(rows))
            buffer = self.tiles.buffer()
            for chunk in self.tiles.row_chunks(rows):
                here = slice(chunk.start - rows.start, chunk.stop - rows.start)
                torch.mv(self.tiles.tile(chunk, everything, buffer), factor, out=total[here])
            return total.log_()
        buffer, total = self.tiles.buffer(), torch.zeros_like(factor)
        for (
            chunk,
            rest,
        ) in self.tiles.strips():  # each tile serves its rows and, transposed, its columns
            w = self.tiles.tile(chunk, rest, buffer)
            total[chunk.start : chunk.stop].addmv_(w, factor[chunk.start :])
            if chunk.stop < len(factor):
                total[chunk.stop :].addmv_(w[:, len(chunk) :].T, factor[chunk.start : chunk.stop])
        return total.log_()

    def apply(
        self, rows: range, columns: range, row_bias: Tensor, column_bias: Tensor, values: Tensor
    ) -> Tensor:
        values = values * column_bias.exp()[:, None]
        buffer, result = self.tiles.buffer(), values.new_empty(len(rows), values.shape[1])
        for chunk in self.tiles.row_chunks(rows):
            w = self.tiles.tile(chunk, columns, buffer)
            torch.mm(w, values, out=result[chunk.start - rows.start : chunk.stop - rows.start])
        return result.mul_(row_bias.exp()[:, None])

    def gradient(self, normalisers: Normalisers, cotangents: Cotangents) -> Tensor:
        # M_ij = W_ij sum_k left_ik right_jk, with the three softmaxes' scales inside left and right.
        per_degree, per_u, per_r = (torch.exp(-log)[:, None] for log in normalisers)
        left = torch.cat(
            (
                cotangents.left * per_r,
                cotangents.of_transition[:, None] * -per_r,
                cotangents.of_log_u[:, None] * per_u,
                cotangents.of_log_degree[:, None] * per_degree,
            ),
            dim=1,
        )
        right = torch.cat(
            (cotangents.right * per_u, per_u, per_degree.sqrt(), torch.ones_like(per_u)), dim=1
        )
        both = torch.cat((left, right), dim=1)
        swapped = torch.cat((right, left), dim=1).T  # both @ swapped is symmetric: M_ij + M_ji

        tiles, grad = self.tiles, torch.zeros_like(self.z)
        buffer, scratch = tiles.buffer(), tiles.buffer()
        for rows, rest in tiles.strips():
            w = tiles.tile(rows, rest, buffer)
            strip = as_tile(scratch, rows, rest)
            torch.mm(both[rows.start : rows.stop], swapped[:, rest.start :], out=strip).mul_(w)
            add_symmetric_product(grad, strip, rows, self.z)
        return grad.mul_(self.inverse_sigma_squared)
