"""What other libraries expect of a loss, a module for each; friction_kernels itself imports none of them."""
