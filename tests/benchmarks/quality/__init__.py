"""What the training settings do to quality: held-out loss on real mailboxes, and the page docs/quality.md.

Nothing here is about speed, so it may run beside other work. See `python -m tests.benchmarks.quality --help`.
"""
