"""Loaded by pytest where the host stands for a GPU: memory for plans comes from the host."""

import torch

from friction_kernels import _native, backends

assert _native.cuda_architectures == ("host",), "the library is not built with FRICTION_CUDA=host"
backends.device_bytes = lambda count, device: torch.empty(count, dtype=torch.uint8, device="cpu")
