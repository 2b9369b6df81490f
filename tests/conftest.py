"""Fixtures for every test folder live in their own modules."""

import faulthandler
import os
import sys

EXIT_S = 120
"""The longest that the process may take to end after the last test, for what it started in the background."""

pytest_plugins = ["tests.bases", "tests.stack"]


def pytest_unconfigure() -> None:
    """Show where a process is stuck that does not end after its last test, and end it with exit code 1."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # it waits for the others, and ends when the first process does
    faulthandler.dump_traceback_later(EXIT_S, exit=True, file=sys.__stderr__)
