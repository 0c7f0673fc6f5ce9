"""The similarity graph on a GPU: `friction_kernels.graph.backend.Similarity` in passes over tiles."""

from __future__ import annotations

import torch
import triton
from torch import Tensor
from torch.nn.functional import pad

from friction_triton.configurations import (
    BLOCK_D,
    DOT_PRECISION,
    PRECISIONS,
    VALUE_PRECISION,
    architecture,
    splits,
    tile,
    tuned,
)
from friction_triton.gradient import coefficients_kernel, product_kernel
from friction_triton.launches import launch
from friction_triton.normalisers import logsumexp_kernel
from friction_triton.propagation import apply_kernel

LOG2_E = 1.4426950408889634
STRIPE_BYTES = 96 << 20  # of coefficients at a time, or as many as z has


class TritonSimilarity:
    """Passes over x_ij = z_i . z_j / sigma^2, tile by tile, in O(N (d + K)) memory; x_ii = -inf.

    z: (N, d), rows of length one, float32; bfloat16 or float16 where precision is "bf16".
    inverse_sigma_squared: one float32 on z's device; the host never reads it.
    precision: of the products z_i . z_j and, in the gradient, of G z: "fp32", "tf32", or "bf16", for which
    z and G are rounded. Everything else is float32. The same inputs give the same bits on one device.
    """

    def __init__(self, z: Tensor, inverse_sigma_squared: Tensor, precision: str = "fp32"):
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if z.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise TypeError(f"the Triton kernels compute in float32, got z in {z.dtype}")
        self.z, self.inverse_sigma_squared, self.precision = z, inverse_sigma_squared, precision
        self._scale = inverse_sigma_squared.detach().to(z.device, torch.float32).reshape(1)
        # Zeros after the last dimension change no product, and spare every kernel a mask.
        operand = z.detach().to(torch.bfloat16 if precision == "bf16" else torch.float32)
        self._operand = pad(operand, (0, -z.shape[1] % BLOCK_D[precision])).contiguous()
        self._count, self._dim = self._operand.shape

    def logsumexp(self, column_bias: Tensor, rows: range | None = None) -> Tensor:
        """LSE over j != i of (x_ij + column_bias_j) for i in rows, all by default: (N,) -> (len(rows),)."""
        rows = range(self._count) if rows is None else rows
        sizes = self._tile("logsumexp")
        row_blocks = triton.cdiv(len(rows), sizes["BLOCK_M"])
        column_blocks = triton.cdiv(self._count, sizes["BLOCK_N"])
        num_splits, per_split = self._divide(row_blocks, column_blocks)
        result = self._empty(num_splits, len(rows))
        self._launch(
            logsumexp_kernel,
            sizes,
            (row_blocks, num_splits),
            self._operand,
            self._scale,
            _padded_bias(column_bias, sizes["BLOCK_N"]),
            result,
            rows.start,
            len(rows),
            self._count,
            self._dim,
            per_split,
            PRECISION=DOT_PRECISION[self.precision],
        )
        return result[0] if num_splits == 1 else result.logsumexp(dim=0)

    def apply(
        self, rows: range, columns: range, row_bias: Tensor, column_bias: Tensor, values: Tensor
    ) -> Tensor:
        """sum over j != i of exp(x_ij + row_bias_i + column_bias_j) values_j, for i in rows, j in columns.

        row_bias (len(rows),), column_bias (len(columns),), values (len(columns), K) -> (len(rows), K).
        """
        width = values.shape[1]
        sizes = self._tile("apply_narrow" if width <= 16 else "apply_wide")
        row_blocks = triton.cdiv(len(rows), sizes["BLOCK_M"])
        column_blocks = triton.cdiv(len(columns), sizes["BLOCK_N"])
        channel_blocks = triton.cdiv(width, sizes["BLOCK_K"])
        num_splits, per_split = self._divide(row_blocks * channel_blocks, column_blocks)
        result = self._empty(num_splits, len(rows), width)
        self._launch(
            apply_kernel,
            sizes,
            (row_blocks, num_splits, channel_blocks),
            self._operand,
            self._scale,
            _padded_bias(row_bias, sizes["BLOCK_M"]),
            _padded_bias(column_bias, sizes["BLOCK_N"]),
            _padded(values.detach().float(), sizes["BLOCK_N"], sizes["BLOCK_K"]).T.contiguous(),
            result,
            rows.start,
            len(rows),
            columns.start,
            len(columns),
            self._count,
            self._dim,
            width,
            column_blocks * sizes["BLOCK_N"],
            per_split,
            PRECISION=DOT_PRECISION[self.precision],
            VALUE_PRECISION=VALUE_PRECISION[self.precision],
        )
        return result[0] if num_splits == 1 else result.sum(dim=0)

    def gradient(self, normalisers, cotangents) -> Tensor:
        """dL/dz_i = sum over j != i of (M_ij + M_ji) z_j / sigma^2: (N, d) float32; see backend.Cotangents.

        A row's sum over j of d numbers does not fit in registers for large d. So the coefficients G of a
        stripe of rows are written, and G z is a matrix product: by arithmetic cheaper than computing the
        tile anew for each part of d. G is symmetric, so a stripe begins at its own first row: what it
        lacks to the left, earlier stripes have added as G^T z.
        """
        sizes = self._tile("coefficients")
        block, pitch = sizes["BLOCK_M"], triton.cdiv(self._count, 128) * 128
        vectors, propagates, left, right = self._coefficient_inputs(normalisers, cotangents, pitch)
        operand = self._operand
        stripe_bytes = max(STRIPE_BYTES, operand.nbytes)
        height = stripe_bytes // (pitch * operand.element_size()) // block * block
        height = min(max(height, block), pitch)
        stripe = operand.new_empty(height, pitch)
        result = self._empty(self._count, self._dim).zero_()
        for first in range(0, self._count, height):
            num_rows = min(height, self._count - first)
            row_blocks = triton.cdiv(num_rows, block)
            column_blocks = triton.cdiv(self._count - first, sizes["BLOCK_N"])
            self._launch(
                coefficients_kernel,
                sizes,
                (row_blocks * column_blocks,),
                operand,
                self._scale,
                vectors,
                propagates,
                left,
                right,
                stripe,
                first,
                num_rows,
                self._count,
                self._dim,
                left.shape[1],
                pitch,
                PRECISION=DOT_PRECISION[self.precision],
                VALUE_PRECISION=VALUE_PRECISION[self.precision],
            )
            last = first + num_rows
            result[first:last] += self._product(stripe, operand[first:])
            if last < self._count:
                self._add_transposed_product(
                    stripe[:, num_rows:], operand[first:last], result[last:]
                )
        return result[:, : self.z.shape[1]]

    def _product(self, stripe: Tensor, z: Tensor) -> Tensor:
        """(The stripe's first len(z) columns) z: few rows and many columns, which therefore are split."""
        sizes = self._tile("product")
        num_rows = min(len(stripe), len(z))
        row_blocks = triton.cdiv(num_rows, sizes["BLOCK_M"])
        channel_blocks = triton.cdiv(self._dim, sizes["BLOCK_N"])
        column_blocks = triton.cdiv(len(z), sizes["BLOCK_D"])
        num_splits, per_split = self._divide(row_blocks * channel_blocks, column_blocks)
        result = self._empty(num_splits, num_rows, self._dim)
        self._multiply(
            stripe, z, result, (num_rows, len(z)), num_splits, per_split, transposed=False
        )
        return result[0] if num_splits == 1 else result.sum(dim=0)

    def _add_transposed_product(self, stripe: Tensor, z: Tensor, result: Tensor) -> None:
        """result += stripe^T z."""
        steps = triton.cdiv(len(z), BLOCK_D[self.precision])
        self._multiply(stripe, z, result, (len(result), len(z)), 1, steps, transposed=True)

    def _multiply(
        self,
        coefficients: Tensor,
        z: Tensor,
        result: Tensor,
        shape: tuple[int, int],
        num_splits: int,
        per_split: int,
        *,
        transposed: bool,
    ) -> None:
        sizes = self._tile("product")
        row_blocks = triton.cdiv(shape[0], sizes["BLOCK_M"])
        channel_blocks = triton.cdiv(self._dim, sizes["BLOCK_N"])
        self._launch(
            product_kernel,
            sizes,
            (row_blocks, channel_blocks, num_splits),
            coefficients,
            z,
            result,
            *shape,
            self._dim,
            coefficients.stride(0),
            per_split,
            TRANSPOSED=transposed,
            ACCUMULATE=transposed,
            PRECISION=DOT_PRECISION[self.precision],
        )

    def _coefficient_inputs(self, normalisers, cotangents, pitch: int) -> tuple[Tensor, ...]:
        """What coefficients_kernel reads, with zeros for the nodes from N to pitch."""
        logs = torch.stack(tuple(normalisers)).float() * LOG2_E
        slopes = torch.stack(
            (cotangents.of_log_degree, cotangents.of_log_u, cotangents.of_transition)
        ).float()
        vectors = pad(torch.cat((logs, slopes)), (0, pitch - self._count))
        propagates = (cotangents.left != 0).any(dim=1) | (cotangents.of_transition != 0)
        block = self._tile("coefficients")["BLOCK_K"]
        left, right = (
            _padded(t.detach().float(), pitch, block) for t in (cotangents.left, cotangents.right)
        )
        return vectors, pad(propagates.int(), (0, pitch - self._count)), left, right

    def _tile(self, kernel: str):
        return tile(kernel, self.precision, architecture(self._operand.device))

    def _divide(self, programs: int, blocks: int) -> tuple[int, int]:
        """(splits, blocks in each); every split has some."""
        per_split = triton.cdiv(blocks, splits(programs, blocks, self._operand.device))
        return triton.cdiv(blocks, per_split), per_split

    def _launch(self, kernel, sizes, grid: tuple[int, ...], *args, **options) -> None:
        launch(tuned(kernel, sizes), grid, self._operand.device, *args, **options)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self._operand.device)


def _padded_bias(bias: Tensor, multiple: int) -> Tensor:
    """In base 2, and -inf up to a multiple of a tile: what is not there has no weight."""
    return pad(bias.detach().float() * LOG2_E, (0, -len(bias) % multiple), value=float("-inf"))


def _padded(values: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros up to multiples of a tile."""
    return pad(values, (0, -values.shape[1] % columns, 0, -len(values) % rows)).contiguous()
