"""The columns of the tables that the kernels of the entropy gate share."""

BASE_BUDGET, ENTROPY_THRESHOLD, DELTA_T, ALPHA, MAX_BUDGET_FACTOR, KEEP_FIRST, KEEP_RECENT = range(7)  # parameters[i]
ENTROPY, BUDGET, KEEP, RIGID = range(4)  # gates[row, head, i]
SEQUENCE, FIRST_ROW, SEGMENT, PREVIOUS, GATED = range(5)  # segments[row, i]

NOTHING_OBSERVED = -0.5  # an entropy below this: the row is the state of a sequence without an observed segment
ENTROPY_EPSILON = 1e-9  # of the published entropy: A log(A + epsilon)
GROWTH_EPSILON = 1e-9  # of the published budgets: (entropy - before) / (before + epsilon)
