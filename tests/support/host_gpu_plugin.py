"""Loaded by pytest where the host stands for a GPU: its memory is the host's."""

import torch

from friction_kernels import _native, backends

assert _native.cuda_architectures == ("host",), "the library is not built with FRICTION_CUDA=host"
backends.device_of = lambda number: torch.device("cpu")
