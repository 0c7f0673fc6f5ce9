"""Numbers that plain torch shares with the kernels of friction_triton, which compute the same."""

MAX_BATCH_NODES = 256  # of the batch kernel
MAX_BATCH_CLASSES = 64

# Iterations of conjugate gradients without a smaller error. After 10, some solves were given up that
# converge, at small sigma; more than 20 changed nothing.
STALLED_AFTER = 20
# In units of eps: a residual of less, beside the values, is rounding, and so is an inflow.
ROUNDING = 4
# In units of tol: rows of F sum to one, and how nearly they do measures its error.
MASS_TOLERANCE = 100
PROBABILITY_FLOOR = 1e-6  # of the log form, whose slope would be infinite at F = 0
