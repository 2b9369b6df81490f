"""The pure core: mail to examples to adapter to proof. No Prefect, no database, no network."""

import os

# OpenMP threads that wait by spinning burn the core that the thread they wait for needs. With two threads on
# two cores and other work beside them, a training step took 4 to 6 times as long with the default as with
# this (54–63 against 231–317 tokens/s, load 5); it must be set before torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
