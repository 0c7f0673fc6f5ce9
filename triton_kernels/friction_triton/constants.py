"""Numbers that the kernels share with friction_kernels, which computes the same in plain torch."""

MAX_BATCH_NODES = 256  # of the batch kernel
MAX_BATCH_CLASSES = 64

# Iterations of conjugate gradients without a smaller error. After 10, some solves were given up that
# converge, at small sigma; more than 20 changed nothing.
STALLED_AFTER = 20
ROUNDING = (
    4  # in units of eps: a residual of less, beside the values, is rounding, and so is an inflow
)
MASS_TOLERANCE = (
    100  # in units of tol: rows of F sum to one, and how nearly they do measures its error
)
PROBABILITY_FLOOR = 1e-6  # of the log form, whose slope would be infinite at F = 0
