"""Adapters to other libraries, one module each; friction_kernels itself imports none of them."""
