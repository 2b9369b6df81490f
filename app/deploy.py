"""`ownvoice deploy`: register pools, queues, limits, automations and deployments on any Prefect server.

The work is done by deployments/register.py in a process of its own: it loads every flow file, and with them
Prefect, which the command line does not import.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from enum import StrEnum
from typing import Any, NamedTuple

from app import local
from training.errors import ConfigError, OrchestratorUnavailable, OwnvoiceError
from training.settings import PROJECT_ROOT, Settings

REGISTER = PROJECT_ROOT / "deployments" / "register.py"
TIMEOUT_S = 300.0
"""Takes 3 s on two idle cores; a server that does not answer is given up after a minute."""


class PoolType(StrEnum):
    """Work pools for which deployments/pools/ has templates."""

    PROCESS = "process"
    DOCKER = "docker"


class Registered(NamedTuple):
    """One thing that the server holds now."""

    kind: str
    name: str
    state: str
    """created, updated, kept or removed; pools say their type as well."""


def register_deployments(
    settings: Settings,
    *,
    api_url: str | None = None,
    pool_type: PoolType | None = None,
    gpus: int | None = None,
) -> dict[str, Any]:
    """Run deployments/register.py for `api_url`, or else for the server of `settings`; returns its report.

    Raises: ConfigError, OrchestratorUnavailable, each with the sentence that register.py printed.
    """
    command = [sys.executable, str(REGISTER), "--api-url", api_url or local.prefect_api_url(settings)]
    if pool_type is not None:
        command += ["--pool-type", pool_type]
    if gpus is not None:
        command += ["--gpus", str(gpus)]
    environment = dict(os.environ)
    if settings.prefect_api_auth_string is not None:
        # It may come from a .env file that is not in the folder where the script runs.
        environment["PREFECT_API_AUTH_STRING"] = settings.prefect_api_auth_string.get_secret_value()
    try:
        finished = subprocess.run(
            command,
            env=environment,
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise OrchestratorUnavailable(
            f"The registration has not ended after {TIMEOUT_S:.0f} s; look at the Prefect server's log."
        ) from exc
    if finished.returncode != 0:
        raise _refusal(finished)
    report: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return report


def registered_things(report: dict[str, Any]) -> list[Registered]:
    """Return the rows of a report's table, in the order in which things depend on each other."""
    rows = [
        Registered(kind, name, state)
        for kind, part in (("pool", "pools"), ("queue", "queues"), ("limit", "limits"))
        for name, state in report[part].items()
    ]
    for name in report["deployments"]:
        changed = "updated" if name in report["updated"] else "kept"
        rows.append(Registered("deployment", name, "created" if name in report["created"] else changed))
    rows += [Registered("automation", name, state) for name, state in report["automations"].items()]
    return rows


def _refusal(finished: subprocess.CompletedProcess[str]) -> OwnvoiceError:
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    kind = ConfigError if finished.returncode == ConfigError.exit_code else OrchestratorUnavailable
    return kind(lines[-1] if lines else "The deployments could not be registered.")
