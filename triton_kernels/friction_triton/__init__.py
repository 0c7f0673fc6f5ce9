"""Triton kernels of friction_kernels: passes over a similarity graph that is never stored."""
