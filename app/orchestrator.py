"""Start, watch and cancel flow runs on the Prefect server over REST.

Used by the doors (command line, web API), which must answer in milliseconds: `import prefect` alone costs
seconds. The statuses below are those of Prefect 3.8: `create_flow_run` answers 201 for a new run, 200 for
the run that an earlier call with the same idempotency key made, 404, 409 or 422 for wrong parameters and
503 while busy; `set_state` answers 200 or 201 and says in its body what became of the request.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

import httpx

from training.errors import ConfigError, OrchestratorUnavailable, OwnvoiceError
from training.settings import Settings

RETRYABLE = frozenset({408, 429, 502, 503})
"""The answers that Prefect's own client retries."""
ATTEMPTS = 5
FIRST_PAUSE_S = 0.2
"""Doubles after each attempt: 3 s in all, which outlasts a restart of a proxy or a burst of writes."""
FINAL_STATES = frozenset({"COMPLETED", "FAILED", "CANCELLED", "CRASHED"})


class RunState(NamedTuple):
    """The state of a flow run. Decide by `type`; `name` is free text (`Late`, `TimedOut`, own names)."""

    type: str
    name: str
    message: str

    @property
    def is_final(self) -> bool:
        return self.type in FINAL_STATES


class Orchestrator:
    """One Prefect server. Not safe for several threads at once; cheap enough to make one per request."""

    def __init__(self, api_url: str, timeout_s: float = 10.0, *, auth: str | None = None) -> None:
        """`api_url` ends in `/api`; `auth` is `user:password` of a server that asks for it."""
        self.api_url = api_url.rstrip("/")
        user, _, password = (auth or "").partition(":")
        self._client = httpx.Client(
            base_url=self.api_url + "/", timeout=timeout_s, auth=(user, password) if auth else None
        )
        self._deployments: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def ready(self) -> bool:
        """Return whether the server answers and has its database; never raises."""
        try:
            return self._client.get("ready", timeout=2).is_success
        except httpx.HTTPError:
            return False

    def start_run(
        self,
        deployment: str,
        parameters: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        name: str | None = None,
        tags: Sequence[str] = (),
        queue: str | None = None,
    ) -> str:
        """Ask for a run of `deployment` (`flow/name`) and return its id; a known key returns that run's id.

        A key names a run for ever, also when it has ended: a new attempt needs a new key. Parameters are
        stored by Prefect in clear: ids only.

        Raises: OrchestratorUnavailable; ConfigError for an unknown deployment or queue and for parameters
        that the flow does not take.
        """
        found = self._deployment(deployment)
        body: dict[str, Any] = {
            "parameters": dict(parameters),
            "tags": list(tags),
            # Without a key a retried request could start a second run.
            "idempotency_key": idempotency_key or uuid4().hex,
            "state": {"type": "SCHEDULED"},
        }
        if name is not None:
            body["name"] = name
        if queue is not None:
            self._require_queue(found["work_pool_name"], queue)
            body["work_queue_name"] = queue
        response = self._request("POST", f"deployments/{found['id']}/create_flow_run", body)
        if response.status_code in (409, 422):
            raise ConfigError(
                f"{deployment} does not take these parameters ({', '.join(parameters)}): "
                f"{_detail(response)}. Register the current flows with `python deployments/register.py`."
            )
        if response.status_code == 404:
            self._deployments.pop(deployment, None)
            raise _unknown_deployment(deployment, self.api_url)
        self._raise_for_status(response)
        run_id: str = response.json()["id"]
        return run_id

    def run_state(self, run_id: str) -> RunState:
        """Return the state of a run. Raises ConfigError when the server does not know it (it was reset)."""
        response = self._request("GET", f"flow_runs/{run_id}")
        if response.status_code in (404, 422):
            raise ConfigError(f"The Prefect server at {self.api_url} has no flow run {run_id}.")
        self._raise_for_status(response)
        run = response.json()
        state = run.get("state") or {}
        return RunState(
            run["state_type"] or "PENDING", run["state_name"] or "Pending", state.get("message") or ""
        )

    def cancel_run(self, run_id: str) -> RunState:
        """Ask for a run to stop and return the state after that.

        `CANCELLING`: its worker is stopping it, `CANCELLED` follows in seconds. `CANCELLED`: it had not
        started. Any other final type: it had ended before. Raises as `run_state`.
        """
        state = {"type": "CANCELLING", "name": "Cancelling"}
        response = self._request("POST", f"flow_runs/{run_id}/set_state", {"state": state})
        if response.status_code in (404, 422):
            raise ConfigError(f"The Prefect server at {self.api_url} has no flow run {run_id}.")
        self._raise_for_status(response)
        answer = response.json()
        accepted = answer.get("state")
        # ACCEPT: stopping. REJECT with CANCELLED: nothing was running. ABORT: it had ended; ask how.
        if answer.get("status") == "ABORT" or not accepted:
            return self.run_state(run_id)
        return RunState(accepted["type"], accepted["name"], accepted.get("message") or "")

    def table(self, run_id: str, key: str) -> list[dict[str, Any]]:
        """Return the rows of the table artifact `key` that a run left; empty when it left none."""
        wanted = {"flow_run_id": {"any_": [run_id]}, "key": {"any_": [key]}}
        response = self._request(
            "POST", "artifacts/filter", {"artifacts": wanted, "sort": "UPDATED_DESC", "limit": 1}
        )
        self._raise_for_status(response)
        found = response.json()
        rows: list[dict[str, Any]] = json.loads(found[0]["data"]) if found else []
        return rows

    def wake_dispatcher(self) -> None:
        """Emit the event on which dispatch-jobs looks at once. Raises OrchestratorUnavailable."""
        event = {
            "id": str(uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": "ownvoice.job.created",
            "resource": {"prefect.resource.id": "ownvoice.jobs"},
            "payload": {},
        }
        self._raise_for_status(self._request("POST", "events", [event]))

    def ui_url(self, run_id: str) -> str:
        """Return the page of a run in Prefect's UI."""
        return f"{self.api_url.removesuffix('/api')}/runs/flow-run/{run_id}"

    # ---- requests ----------------------------------------------------------------------------------

    def _deployment(self, full_name: str) -> dict[str, Any]:
        if full_name not in self._deployments:
            response = self._request("GET", f"deployments/name/{full_name}")
            if response.status_code == 404:
                raise _unknown_deployment(full_name, self.api_url)
            self._raise_for_status(response)
            self._deployments[full_name] = response.json()
        return self._deployments[full_name]

    def _require_queue(self, pool: str, queue: str) -> None:
        # The server would make a misspelt queue without a word, and no worker might ever poll it.
        response = self._request("GET", f"work_pools/{pool}/queues/{queue}")
        if response.status_code == 404:
            raise ConfigError(f"The work pool {pool} has no queue {queue}. Use high, normal or bulk.")
        self._raise_for_status(response)

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request, again while the server is busy. Every request here may safely be sent twice."""
        pause_s = FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            last = attempt == ATTEMPTS
            try:
                response = self._client.request(method, path, json=body)
            except httpx.ConnectError as exc:
                raise self._unavailable("does not answer") from exc
            except httpx.TransportError as exc:
                if last or isinstance(exc, httpx.ReadTimeout):
                    raise self._unavailable(f"does not answer ({type(exc).__name__})") from exc
            else:
                if response.status_code not in RETRYABLE:
                    return response
                if last:
                    raise self._unavailable(f"is busy (HTTP {response.status_code}, {ATTEMPTS} attempts)")
            time.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("unreachable")

    def _unavailable(self, what: str) -> OrchestratorUnavailable:
        return OrchestratorUnavailable(
            f"The Prefect server at {self.api_url} {what}. "
            "Start the local stack with `ownvoice up`, or set PREFECT_API_URL."
        )

    def _raise_for_status(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        if response.status_code == 401:
            raise ConfigError(
                f"The Prefect server at {self.api_url} asks for a password. "
                "Set PREFECT_API_AUTH_STRING to user:password."
            )
        raise OrchestratorUnavailable(
            f"The Prefect server at {self.api_url} answered HTTP {response.status_code} to "
            f"{response.request.method} {response.request.url.path}. Look at its log."
        )


def orchestrator_for(settings: Settings, api_url: str, timeout_s: float = 10.0) -> Orchestrator:
    """Return the client of `api_url` with the credentials of `settings`."""
    auth = settings.prefect_api_auth_string
    return Orchestrator(api_url, timeout_s, auth=auth.get_secret_value() if auth else None)


def _unknown_deployment(full_name: str, api_url: str) -> OwnvoiceError:
    return ConfigError(
        f"The Prefect server at {api_url} has no deployment {full_name}. "
        "Register it with `python deployments/register.py`, or run `ownvoice up`."
    )


def _detail(response: httpx.Response) -> str:
    try:
        detail = response.json().get("detail", "")
    except ValueError:
        detail = response.text
    return str(detail)[:300].rstrip(".")
