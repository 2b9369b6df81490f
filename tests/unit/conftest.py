"""One thread for the small matrices of the unit tests."""

import os

# Read when numpy and scipy are loaded. One OpenBLAS thread fits a judge of 100 mails in half the time:
# two wait for each other at every step of the optimiser. Torch has its own setting and is left alone.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
