"""Speed and memory, measured: `make bench` (tests/benchmarks/run.py). Not part of the test suite."""
