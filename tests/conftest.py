"""Fixtures for every test folder live in their own modules."""

pytest_plugins = ["tests.bases", "tests.stack"]
