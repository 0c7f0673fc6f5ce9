"""Triton kernels of friction_kernels: passes over score matrices, which are never stored."""
