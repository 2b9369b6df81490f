"""A real local stack for tests: its own home and port, one trivial flow on both pools."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app import local
from training.settings import Settings

FLOW = '''
import time

from prefect import flow


@flow(name="hello")
def hello(seconds: float = 0) -> str:
    """Wait and greet."""
    time.sleep(seconds)
    return "hello"
'''
DEPLOYMENTS = """
pull:
  - prefect.deployments.steps.set_working_directory: {{directory: "{folder}"}}
deployments:
  - {{name: cpu, entrypoint: "hello.py:hello", description: greets, tags: [t], work_pool: {{name: cpu}}}}
  - name: gpu
    entrypoint: hello.py:hello
    description: greets
    work_pool: {{name: gpu, work_queue_name: normal}}
    schedules:
      - {{slug: nightly, cron: "0 3 * * *", timezone: UTC}}
    triggers:
      - {{type: event, name: hello on request, expect: ["ownvoice.test"]}}
"""
SECRET_VARIABLES = {
    "INTERNAL_API_KEY": "key-marsupilami",
    "FINE_TUNING_WEBHOOK_URL": "http://127.0.0.1:1/hook",
    "VASTAI_API_KEY": "vast-marsupilami",
}
FIRST_PORT = 4720
"""Away from the ports of a stack that a developer may have running."""


def write_hello_project(folder: Path) -> Path:
    """Write a flow and its prefect.yaml into `folder`; return the YAML's path."""
    (folder / "hello.py").write_text(FLOW)
    prefect_file = folder / "prefect.yaml"
    prefect_file.write_text(DEPLOYMENTS.format(folder=folder))
    return prefect_file


def stack_settings(home: Path) -> Settings:
    """Return settings with everything embedded in `home`, whatever the developer's environment says."""
    return Settings.model_validate(
        {"OWNVOICE_HOME": home, "DATABASE_URL": None, "PREFECT_API_URL": None, "OWNVOICE_STORAGE_URL": None}
    )


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Yield a home that ends with its stack.

    Not in pytest's own temporary folder: other pytest sessions of this user restore its mode 0700, which
    would shut a PostgreSQL that runs as another system user (under root) out of its data.
    """
    home = Path(tempfile.mkdtemp(prefix="ownvoice-stack-"))
    try:
        yield home
    finally:
        local.down(stack_settings(home))
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def stack_home() -> Iterator[Path]:
    with temporary_home() as folder:
        yield folder


@pytest.fixture(scope="session")
def hello_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hello_project(tmp_path_factory.mktemp("hello"))


@pytest.fixture(scope="session")
def local_stack(hello_project: Path) -> Iterator[tuple[Settings, local.Stack]]:
    """Yield (settings, stack) of a running local stack; stopped at the end of the session.

    Variables with secrets are set while it starts, as they would be on a developer's machine.
    """
    with temporary_home() as home, pytest.MonkeyPatch.context() as patch:
        settings = stack_settings(home)
        patch.delenv("PREFECT_API_URL", raising=False)
        patch.delenv("DATABASE_URL", raising=False)
        for name, value in SECRET_VARIABLES.items():
            patch.setenv(name, value)
        yield settings, local.up(settings, prefect_file=hello_project, first_port=FIRST_PORT)
