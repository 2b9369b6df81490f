"""A Prefect server alone, with a password: for what is asked of it over REST, without workers."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from training.settings import PROJECT_ROOT

PASSWORD = "anna:marsupilami"
OWN_VARIABLES = ("DATABASE_URL", "OLLAMA_BASE_URL")
REGISTER = PROJECT_ROOT / "deployments" / "register.py"


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
