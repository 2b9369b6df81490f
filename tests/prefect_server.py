"""A Prefect server alone, with a password, without workers: for flows of this process and for REST calls."""

from __future__ import annotations

import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from training.settings import PROJECT_ROOT

PASSWORD = "anna:marsupilami"
OWN_VARIABLES = ("DATABASE_URL", "OLLAMA_BASE_URL")
REGISTER = PROJECT_ROOT / "deployments" / "register.py"
DRAIN_S = 30.0
"""The longest that a test module waits until its events and logs are sent; it takes less than a second."""


@dataclass(frozen=True)
class PrefectServer:
    """A running server; `get`, `post`, `patch` speak to its API with the password."""

    api: str
    home: Path
    client: httpx.Client = field(repr=False)

    def get(self, path: str) -> Any:
        return self.client.get(path).raise_for_status().json()

    def post(self, path: str, body: Any) -> Any:
        response = self.client.post(path, json=body).raise_for_status()
        return response.json() if response.content else None

    def patch(self, path: str, body: Any) -> None:
        self.client.patch(path, json=body).raise_for_status()

    def register(
        self, prefect_file: Path | None = None, *arguments: str, auth: str | None = PASSWORD, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run deployments/register.py for this server as a person does."""
        command = [sys.executable, str(REGISTER), "--api-url", self.api, *arguments]
        if prefect_file is not None:
            command += ["--prefect-file", str(prefect_file)]
        environment = bare_environment() | variables
        if auth is not None:
            environment["PREFECT_API_AUTH_STRING"] = auth
        return subprocess.run(
            command, env=environment, cwd=self.home, capture_output=True, text=True, check=False, timeout=120
        )


def bare_environment() -> dict[str, str]:
    """Return the environment without what a developer may have set for us or for Prefect."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OWNVOICE_", "PREFECT_")) and name not in OWN_VARIABLES
    }


@contextmanager
def prefect_server() -> Iterator[PrefectServer]:
    """Start a server in a home of its own and stop it at the end."""
    home = Path(tempfile.mkdtemp(prefix="ownvoice-prefect-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = bare_environment() | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        "PREFECT_SERVER_API_AUTH_STRING": PASSWORD,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "app.prefect_server", "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    api = f"http://127.0.0.1:{port}/api"
    try:
        user, _, password = PASSWORD.partition(":")
        with httpx.Client(base_url=f"{api}/", auth=(user, password), timeout=30) as client:
            _wait_until_ready(client, process)
            yield PrefectServer(api, home, client)
    finally:
        process.kill()
        process.wait(30)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def used_by_flows(server: PrefectServer) -> Iterator[None]:
    """Let flows and Prefect clients of this process use the server inside the block.

    What Prefect queued is sent at both ends. Its events worker is one for the process and keeps the address
    of the server that it was made for: 7 s of attempts for every event once that server is gone, one after
    the other, and Prefect's own test harness waits for all of them.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
        temporary_settings,
    )

    settings = {
        PREFECT_API_URL: server.api,
        PREFECT_API_AUTH_STRING: PASSWORD,
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,  # costs each flow run a second
    }
    send_what_is_queued()
    with temporary_settings(settings):
        try:
            yield
        finally:
            send_what_is_queued()


def send_what_is_queued(limit_s: float = DRAIN_S) -> None:
    """End Prefect's background services after they have sent what they hold; the next use makes new ones.

    What is left after the limit is thrown away and fails the test: the end of the process would wait for it
    without a limit.
    """
    from prefect.events.worker import EventsWorker

    # One registry for all kinds: events, logs and what else Prefect sends from the background.
    services = list(EventsWorker._instances.values())
    _, unfinished = EventsWorker.drain_all(timeout=limit_s)
    if not unfinished:
        return
    lost = 0
    for service in services:
        with suppress(queue.Empty):
            while service._queue.get_nowait() is not None:
                lost += 1
        service._queue.put_nowait(None)
    pytest.fail(f"Prefect's services were still sending after {limit_s:g} s; {lost} events or logs are lost.")


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            if client.get("ready").is_success:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, "the Prefect server stopped while starting"
        assert time.monotonic() < deadline, "the Prefect server does not answer after 120 s"
        time.sleep(0.2)
