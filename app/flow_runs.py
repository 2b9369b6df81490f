"""Run a flow in this process, for commands whose answer a person waits for.

A worker would take seconds to start it, and the CPU pool may be full of trainings. Prefect records the run as
any other.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from app import local
from app.session import Session

QUIET = {
    # What goes wrong is one sentence of ours; the run's log is on the server.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_COLORS": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}


def run_flow(
    session: Session, entrypoint: str, user_id: str | None = None, **parameters: Any
) -> dict[str, Any]:
    """Run `module:function` of the flows with the stack's Prefect server; return what it returns.

    A run for one person carries the tag `user:<id>` and gets the id as its first parameter. Raises what the
    flow raises, OrchestratorUnavailable.
    """
    _ = session.orchestrator  # seen answering: Prefect itself would try for a minute
    # Prefect reads its settings when it is imported, which takes seconds and is left until here.
    os.environ["PREFECT_API_URL"] = local.prefect_api_url(session.settings)
    os.environ.update(QUIET)
    if session.settings.prefect_api_auth_string is not None:
        auth = session.settings.prefect_api_auth_string.get_secret_value()
        os.environ["PREFECT_API_AUTH_STRING"] = auth
    os.environ.setdefault("PREFECT_HOME", str(session.settings.home / "prefect"))
    from prefect import tags

    module, _, function = entrypoint.partition(":")
    flow = getattr(importlib.import_module(module), function)
    person = {} if user_id is None else {"user_id": user_id}
    with tags(*(f"user:{named}" for named in person.values())):
        result: dict[str, Any] = flow(**person, **parameters)
    return result
