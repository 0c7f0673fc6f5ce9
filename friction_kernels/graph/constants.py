"""Constants shared by plain torch and the equivalent kernels of friction_triton."""

MAX_BATCH_NODES = 256  # limits of the batch kernel
MAX_BATCH_CLASSES = 64

# Stop conjugate gradients after this many iterations without a smaller error. With 10, some solves at small
# sigma stopped although they converge; more than 20 changed nothing.
STALLED_AFTER = 20
# In units of eps: a residual or inflow below this, relative to the values, counts as rounding.
ROUNDING = 4
# In units of tol: rows of F sum to one, and their deviation from one measures the error.
MASS_TOLERANCE = 100
PROBABILITY_FLOOR = 1e-6  # of the log form, whose slope is infinite at F = 0
