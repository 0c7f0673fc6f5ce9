"""Triton kernels of friction_kernels: passes over score matrices that are never stored."""
