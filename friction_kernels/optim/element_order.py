"""The order in which quantized states and random numbers traverse a tensor."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ElementOrder(NamedTuple):
    """The order of a parameter's elements in memory; the pair of a complex number stays together."""

    dims: tuple[int, ...]  # every dimension, outermost first

    @classmethod
    def of(cls, param: Tensor, rows_first: bool) -> ElementOrder:
        """By decreasing stride. `rows_first`: dimension 0 stays outermost, whatever its stride."""
        # Dimensions of size one come last, because their strides carry no information.
        stride = param.stride()
        dims = sorted(range(param.dim()), key=lambda d: (param.shape[d] == 1, -stride[d]))
        if rows_first and dims:
            dims.remove(0)
            dims.insert(0, 0)
        long = [d for d in dims if param.shape[d] != 1]
        return cls(tuple(range(param.dim()) if long == sorted(long) else dims))

    @property
    def is_flat(self) -> bool:
        """Whether this is the order of a contiguous tensor."""
        return self.dims == tuple(range(len(self.dims)))

    def flatten(self, tensor: Tensor) -> Tensor:
        """Flatten a tensor of the parameter's shape, or one of real pairs, to one dimension."""
        pairs = range(len(self.dims), tensor.dim())
        return tensor.permute((*self.dims, *pairs)).reshape(-1)

    def unflatten(self, flat: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Invert `flatten` for a tensor of this shape."""
        dims = (*self.dims, *range(len(self.dims), len(shape)))
        places = sorted(range(len(dims)), key=dims.__getitem__)
        return flat.view([shape[d] for d in dims]).permute(places)
