"""Make a Prefect server know this project: work pools, queues, deployments, automations.

    python deployments/register.py [--api-url URL] [--pool-type process|docker] [--gpus N] [--zombie-after S]

`prefect.yaml` stays the single source of the deployments; this script reads it and brings the server to
that state. It may run any number of times: what exists is updated in place, so that deployment ids, run
history and whatever was paused in the Prefect UI survive (`prefect deploy` re-creates trigger automations,
and `prefect automation create` adds a second copy each time). What is right already is not written again:
Prefect drops the coming runs of a deployment and forgets the heartbeats an automation has counted whenever
either is updated, even to what it was. Beyond what the YAML says it creates

- the work pools, from the templates in `deployments/pools/`, and the queues of the GPU pool,
- the concurrency limit of the Ollama server, when OLLAMA_BASE_URL names one,
- the automation that marks runs as crashed when their machine vanished.

Existing pools, queues and limits keep their type, template, priority and number unless `--gpus` or
`--update-pools` says otherwise: they may have been tuned for the machines that serve them. Nothing is ever
deleted, except a trigger's automation whose trigger left the YAML; a schedule that left it is to be deleted
in the Prefect UI.

The last line on standard output is the report as JSON; errors are one sentence on standard error and
exit code 1 (2 for a wrong argument, YAML or environment variable).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from training.errors import ConfigError, OrchestratorUnavailable, OwnvoiceError
from training.settings import PROJECT_ROOT, SHORTEST_ZOMBIE_S, load_settings

POOL_TEMPLATES = Path(__file__).resolve().parent / "pools"
GPU_QUEUES = {"high": 1, "normal": 5, "bulk": 10}
"""Queue → priority, lower first: somebody waits (high), a threshold or schedule asked (normal), the monthly
round (bulk). A worker takes from `normal` only when `high` is empty."""
POOL_DESCRIPTIONS = {
    "cpu": "Everything but training: extract, prepare, judge, publish, schedule.",
    "gpu": "Training. Its concurrency limit is the number of GPUs.",
}
BUSY = frozenset({429, 502, 503})
TRIGGER_TAG = "prefect.yaml"
"""Marks the automations that stand for a deployment's `triggers:`."""
ZOMBIE_AUTOMATION = "ownvoice: mark runs as crashed when their heartbeat stops"
DEFAULT_VARIABLES = {"OWNVOICE_TIMEZONE": "UTC"}
"""Variables of the YAML that may be unset; any other one must have a value."""
SUPPORTED_KEYS = {
    "name",
    "description",
    "entrypoint",
    "tags",
    "parameters",
    "schedules",
    "triggers",
    "concurrency_limit",
    "enforce_parameter_schema",
    "work_pool",
}
"""Prefect ignores unknown keys of a deployment without a word; we refuse what we would not apply."""


@dataclass
class RegisterReport:
    """What the server holds now, by name, and whether this call made it."""

    api_url: str
    pools: dict[str, str] = field(default_factory=dict)
    """Pool name → `created (process)`, `kept (docker)`, …"""
    queues: dict[str, str] = field(default_factory=dict)
    """`pool/queue` → `created` or `kept`."""
    limits: dict[str, str] = field(default_factory=dict)
    """Global concurrency limit → `created` or `kept`."""
    deployments: dict[str, str] = field(default_factory=dict)
    """`flow/deployment` → id."""
    created: list[str] = field(default_factory=list)
    """`flow/deployment` names that did not exist before."""
    updated: list[str] = field(default_factory=list)
    """`flow/deployment` names that existed and were changed; the others are as they were."""
    automations: dict[str, str] = field(default_factory=dict)
    """Automation name → `created`, `kept`, `updated` or `removed`."""
    seconds: float = 0


def register(
    api_url: str,
    *,
    pool_type: str = "process",
    gpus: int | None = None,
    update_pools: bool = False,
    cpu_pool: str = "cpu",
    gpu_pool: str = "gpu",
    prefect_file: Path = PROJECT_ROOT / "prefect.yaml",
    auth: str | None = None,
    wait_s: float = 0,
    timezone: str = "UTC",
    serving_limit: str | None = None,
    zombie_after_s: float = 540,
) -> RegisterReport:
    """Bring the Prefect server at `api_url` (ends in `/api`) to the state that `prefect_file` describes.

    Flow files are imported for their parameter schemas, so a broken import is an error here and not a
    crashed run later. That import takes seconds, so it happens while a thread waits up to `wait_s` seconds
    for the server and creates the pools; workers can start as soon as the pools exist.

    `gpus` is the concurrency limit of the GPU pool: 1 for a new pool, unchanged for an existing one.
    `auth` is `user:password` of a server with PREFECT_SERVER_API_AUTH_STRING. `timezone`, `serving_limit`
    and `zombie_after_s` (seconds without a heartbeat) are those of `training.settings.Settings`.

    Raises: OrchestratorUnavailable when the server does not answer; ConfigError when the YAML, a flow file
    or an environment variable that the YAML names is unusable.
    """
    started = time.monotonic()
    report = RegisterReport(api_url=api_url)
    declared = read_deployments(prefect_file, {"OWNVOICE_TIMEZONE": timezone})
    pool_names = {"cpu": cpu_pool, "gpu": gpu_pool}

    def make_pools() -> None:
        with _connect(api_url, auth) as client:
            _wait_until_ready(client, wait_s)
            for name, role in ((cpu_pool, "cpu"), (gpu_pool, "gpu")):
                _ensure_pool(client, report, name, role, pool_type, gpus, update_pools)
            for queue, priority in GPU_QUEUES.items():
                _ensure_queue(client, report, gpu_pool, queue, priority)
            if serving_limit is not None:
                _ensure_limit(client, report, serving_limit)

    pools = _Background(make_pools)
    flows = [_load_flow(item["entrypoint"], prefect_file) for item in declared]
    pools.join()

    with _connect(api_url, auth) as client:
        for item, flow in zip(declared, flows, strict=True):
            _apply_deployment(client, report, item, flow, pool_names)
        _apply_automation(client, report, _zombie_automation(zombie_after_s))
    report.seconds = round(time.monotonic() - started, 2)
    return report


def read_deployments(
    prefect_file: Path = PROJECT_ROOT / "prefect.yaml",
    variables: Mapping[str, str] = DEFAULT_VARIABLES,
) -> list[dict[str, Any]]:
    """Return the deployments of `prefect_file`, each with its effective `pull` steps.

    `{{ $NAME }}` is replaced from `variables`, then from the environment. Raises ConfigError for an unset
    variable (Prefect itself would put an empty string there), an unsupported key or a missing one.
    """
    where = prefect_file.name
    try:
        document = yaml.safe_load(prefect_file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        raise ConfigError(f"{prefect_file} cannot be read: {' '.join(str(exc).split())}.") from exc
    listed = document.get("deployments") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not all(isinstance(raw, dict) for raw in listed):
        raise ConfigError(f"{prefect_file} has no list of deployments; compare it with the project's own.")
    declared = []
    for raw in listed:
        name = raw.get("name", "(without a name)")
        if unknown := sorted(raw.keys() - SUPPORTED_KEYS):
            raise ConfigError(
                f"{where}: deployment {name} has {', '.join(unknown)}, which is not applied; "
                f"known keys are {', '.join(sorted(SUPPORTED_KEYS))}."
            )
        if missing := [key for key in ("name", "entrypoint", "work_pool") if not raw.get(key)]:
            raise ConfigError(f"{where}: deployment {name} lacks {', '.join(missing)}.")
        if not isinstance(raw["work_pool"], dict) or "name" not in raw["work_pool"]:
            raise ConfigError(f"{where}: deployment {name} needs work_pool: {{name: …}}.")
        # Event templates such as {{ event.payload.user_id }} belong to the server, not to this machine.
        triggers = raw.pop("triggers", None) or []
        item = _fill_environment(raw, where, variables)
        item["triggers"] = triggers
        item["pull"] = _fill_environment(document.get("pull") or [], where, variables)
        declared.append(item)
    return declared


def _fill_environment(value: Any, where: str, variables: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _fill_environment(item, where, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_environment(item, where, variables) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        found = variables.get(name) or os.environ.get(name)
        if not found:
            raise ConfigError(f"{where} needs the environment variable {name}, which is not set; set it.")
        return found

    return re.sub(r"{{\s*\$(\w+)\s*}}", fill, value)


def _load_flow(entrypoint: str, prefect_file: Path) -> Any:
    # Imported here: prefect costs about two seconds, and --help should not.
    from prefect.flows import load_flow_from_entrypoint

    try:
        # Without use_placeholder_flow=False a file that cannot be imported still deploys, from its syntax
        # tree, and only its runs crash.
        return load_flow_from_entrypoint(
            str(prefect_file.resolve().parent / entrypoint), use_placeholder_flow=False
        )
    except Exception as exc:
        reason = str(exc.__cause__ or exc).strip().splitlines()
        raise ConfigError(
            f"{entrypoint} cannot be loaded: {reason[-1] if reason else type(exc).__name__}. "
            "Correct the flow file; nothing was deployed from it."
        ) from exc


# ---- the server ------------------------------------------------------------------------------------


class _Background:
    """A thread whose exception is raised again by `join`."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as exc:
            self._error = exc

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error


@contextmanager
def _connect(api_url: str, auth: str | None) -> Iterator[httpx.Client]:
    credentials = None
    if auth:
        user, _, password = auth.partition(":")
        credentials = (user, password)
    # A server on SQLite may hold a write for seconds while it migrates or writes events.
    with httpx.Client(
        base_url=api_url.rstrip("/") + "/",
        auth=credentials,
        timeout=30,
        transport=httpx.HTTPTransport(retries=2),
    ) as client:
        try:
            yield client
        except httpx.TransportError as exc:
            raise OrchestratorUnavailable(
                f"The Prefect server at {api_url} does not answer ({type(exc).__name__}). "
                "Start the local stack with `ownvoice up`, or correct PREFECT_API_URL."
            ) from exc
        except httpx.HTTPStatusError as exc:
            raise _refusal(exc, api_url) from exc


def _refusal(error: httpx.HTTPStatusError, api_url: str) -> OwnvoiceError:
    status = error.response.status_code
    if status == 401 and "Authorization" in error.request.headers:
        return ConfigError(
            f"The Prefect server at {api_url} refused the password; correct PREFECT_API_AUTH_STRING."
        )
    if status == 401:
        return ConfigError(
            f"The Prefect server at {api_url} asks for a password; "
            "set PREFECT_API_AUTH_STRING to user:password."
        )
    if status in BUSY:
        return OrchestratorUnavailable(
            f"The Prefect server at {api_url} is busy (HTTP {status}); run the same command again."
        )
    return ConfigError(
        f"The Prefect server at {api_url} refused {error.request.method} {error.request.url.path} "
        f"(HTTP {status}): {error.response.text[:300]}"
    )


def _wait_until_ready(client: httpx.Client, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            if client.get("ready").is_success:
                return
        except httpx.TransportError:
            if time.monotonic() >= deadline:
                raise
        if time.monotonic() >= deadline:
            raise OrchestratorUnavailable(
                f"The Prefect server at {client.base_url} is not ready after {wait_s:.0f} s; look at its log."
            )
        time.sleep(0.1)


def _send(client: httpx.Client, method: str, path: str, body: Any = None) -> Any:
    """Send one request; a server that is briefly busy (SQLite lock: 503, or no answer in time) is asked up to
    four times."""
    for attempt in range(4):
        try:
            response = client.request(method, path, json=body)
        except httpx.ReadTimeout:
            if attempt == 3:
                raise
            continue
        if response.status_code not in BUSY:
            break
        time.sleep(0.5 * 2**attempt)
    response.raise_for_status()
    try:
        return response.json() if response.content else None
    except ValueError as exc:
        raise ConfigError(
            f"{client.base_url} is not a Prefect API: {path} was not answered in JSON. "
            "Correct PREFECT_API_URL; it ends in /api."
        ) from exc


def _create(client: httpx.Client, path: str, body: dict[str, Any]) -> None:
    """Create what has a unique name. Whoever was faster, another registration or the first attempt of this
    request (a server that answers 503 may have done it all the same), made what is wanted."""
    try:
        _send(client, "POST", path, body)
    except httpx.HTTPStatusError as exc:
        if exc.response.status_code != 409:
            raise


def _find(client: httpx.Client, path: str) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = _send(client, "GET", path)
    except httpx.HTTPStatusError as exc:
        if exc.response.status_code == 404:
            return None
        raise
    return found


def _ensure_pool(
    client: httpx.Client,
    report: RegisterReport,
    name: str,
    role: str,
    pool_type: str,
    gpus: int | None,
    update: bool,
) -> None:
    existing = _find(client, f"work_pools/{name}")
    limit = gpus if role == "gpu" else None
    template = "docker-gpu" if (role, pool_type) == ("gpu", "docker") else pool_type
    base_job_template = json.loads((POOL_TEMPLATES / f"{template}.json").read_text(encoding="utf-8"))
    if existing is None:
        _create(
            client,
            "work_pools/",
            {
                "name": name,
                "type": pool_type,
                "description": POOL_DESCRIPTIONS[role],
                "base_job_template": base_job_template,
                "concurrency_limit": (limit or 1) if role == "gpu" else None,
            },
        )
        report.pools[name] = f"created ({pool_type})"
        return
    changes: dict[str, Any] = {}
    if limit is not None and existing["concurrency_limit"] != limit:
        changes["concurrency_limit"] = limit
    if update and existing["type"] == pool_type:
        changes["base_job_template"] = base_job_template
    if changes:
        _send(client, "PATCH", f"work_pools/{name}", changes)
    report.pools[name] = f"{'updated' if changes else 'kept'} ({existing['type']})"


def _ensure_queue(client: httpx.Client, report: RegisterReport, pool: str, queue: str, priority: int) -> None:
    if _find(client, f"work_pools/{pool}/queues/{queue}") is None:
        _create(client, f"work_pools/{pool}/queues", {"name": queue, "priority": priority})
        report.queues[f"{pool}/{queue}"] = "created"
    else:
        report.queues[f"{pool}/{queue}"] = "kept"


def _ensure_limit(client: httpx.Client, report: RegisterReport, name: str) -> None:
    """Let one task at a time change the models of an Ollama server; a limit that exists keeps its number."""
    report.limits[name] = "kept"
    if _find(client, f"v2/concurrency_limits/{name}") is None:
        _create(client, "v2/concurrency_limits/", {"name": name, "limit": 1})
        report.limits[name] = "created"


def _apply_deployment(
    client: httpx.Client,
    report: RegisterReport,
    item: dict[str, Any],
    flow: Any,
    pool_names: dict[str, str],
) -> None:
    full_name = f"{flow.name}/{item['name']}"
    body = _deployment_body(item, flow, pool_names)
    schedules = [_schedule(full_name, entry) for entry in item.get("schedules") or []]
    existing = _find(client, f"deployments/name/{full_name}")
    if existing is None:
        flow_id = _send(client, "POST", "flows/", {"name": flow.name})["id"]
        created = _send(
            client,
            "POST",
            "deployments/",
            {**body, "name": item["name"], "flow_id": flow_id, "schedules": schedules},
        )
        deployment_id = created["id"]
        report.created.append(full_name)
    else:
        deployment_id = existing["id"]
        changed = not _is_applied(body, existing)
        if changed:
            _send(client, "PATCH", f"deployments/{deployment_id}", body)
        # One by one: together with the deployment, Prefect would delete and re-create all schedules as soon
        # as somebody has added one without a slug in the UI, and those paused there would run again.
        changed |= _apply_schedules(client, existing, schedules)
        if changed:
            report.updated.append(full_name)
    report.deployments[full_name] = deployment_id
    _apply_triggers(client, report, full_name, deployment_id, item["triggers"])


def _deployment_body(item: dict[str, Any], flow: Any, pool_names: dict[str, str]) -> dict[str, Any]:
    from prefect.utilities.callables import parameter_schema

    pool = item["work_pool"]
    limit = item.get("concurrency_limit")
    return {
        "description": item.get("description") or flow.description,
        "version": flow.version,
        "tags": item.get("tags") or [],
        "parameters": item.get("parameters") or {},
        "parameter_openapi_schema": parameter_schema(flow).model_dump(mode="json", exclude_unset=True),
        "enforce_parameter_schema": item.get("enforce_parameter_schema", True),
        "entrypoint": item["entrypoint"],
        "path": None,
        "pull_steps": item["pull"],
        # The YAML says `cpu` and `gpu`; OWNVOICE_CPU_POOL and OWNVOICE_GPU_POOL rename them for one server.
        "work_pool_name": pool_names.get(pool["name"], pool["name"]),
        "work_queue_name": pool.get("work_queue_name") or "default",
        "job_variables": pool.get("job_variables") or {},
        "concurrency_limit": limit.get("limit") if isinstance(limit, dict) else limit,
        "concurrency_options": {key: value for key, value in limit.items() if key != "limit"}
        if isinstance(limit, dict)
        else None,
    }


def _is_applied(body: dict[str, Any], existing: dict[str, Any]) -> bool:
    """Return whether a deployment holds `body` already. The server keeps its limit in a record of its own."""
    limit = (existing.get("global_concurrency_limit") or {}).get("limit")
    options = existing.get("concurrency_options") or {}
    wanted = body["concurrency_options"] or {}
    held = {**existing, "concurrency_limit": limit, "tags": sorted(existing["tags"])}
    held["concurrency_options"] = {key: options.get(key) for key in wanted} or None
    asked = {**body, "tags": sorted(body["tags"]), "concurrency_options": wanted or None}
    return all(held.get(key) == value for key, value in asked.items())


def _apply_schedules(client: httpx.Client, existing: dict[str, Any], schedules: list[dict[str, Any]]) -> bool:
    """Add or change the schedules of a deployment by their slugs; returns whether anything was done.

    `active` is written only when the YAML says so: whoever paused a schedule in the UI meant it.
    """
    known = {item["slug"]: item for item in existing["schedules"] if item.get("slug")}
    path = f"deployments/{existing['id']}/schedules"
    changed = False
    for schedule in schedules:
        held = known.get(schedule["slug"])
        if held is None:
            _send(client, "POST", path, [schedule])
        elif not _holds(held, schedule):
            _send(client, "PATCH", f"{path}/{held['id']}", schedule)
        else:
            continue
        changed = True
    return changed


def _holds(held: Any, wanted: Any) -> bool:
    """Return whether `held`, a server's answer, says what `wanted` does; it may say more (ids, defaults).

    Lists are compared without their order: the server keeps sets.
    """
    if isinstance(wanted, dict):
        return isinstance(held, dict) and all(_holds(held.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return (
            isinstance(held, list)
            and len(held) == len(wanted)
            and all(any(_holds(other, value) for other in held) for value in wanted)
        )
    return bool(held == wanted)


def _schedule(full_name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Translate a schedule of prefect.yaml; the slug is required, it is how a later call finds it again."""
    kinds = [kind for kind in ("cron", "interval", "rrule") if kind in entry]
    if len(kinds) != 1 or not entry.get("slug"):
        raise ConfigError(f"{full_name}: a schedule needs a slug and exactly one of cron, interval, rrule.")
    schedule = {
        key: value
        for key, value in entry.items()
        if key in ("cron", "interval", "rrule", "timezone", "anchor_date", "day_or")
    }
    if not all(key in ("active", "parameters", "slug") or key in schedule for key in entry):
        raise ConfigError(f"{full_name}: schedule {entry['slug']} has a key that Prefect does not know.")
    result: dict[str, Any] = {"schedule": schedule, "slug": entry["slug"]}
    return result | {key: entry[key] for key in ("active", "parameters") if key in entry}


def _apply_triggers(
    client: httpx.Client,
    report: RegisterReport,
    full_name: str,
    deployment_id: str,
    triggers: list[dict[str, Any]],
) -> None:
    """Keep one automation per trigger, matched by name, so that one paused in the UI stays paused."""
    from uuid import UUID

    from prefect.events import DeploymentTriggerTypes
    from pydantic import TypeAdapter, ValidationError

    related = _send(client, "GET", f"automations/related-to/prefect.deployment.{deployment_id}")
    known = {item["name"]: item for item in related}
    adapter: TypeAdapter[Any] = TypeAdapter(DeploymentTriggerTypes)
    for number, spec in enumerate(triggers, start=1):
        try:
            trigger = adapter.validate_python({"name": f"{full_name} trigger {number}", **spec})
        except (ValidationError, TypeError) as exc:
            reason = exc.errors()[0]["msg"] if isinstance(exc, ValidationError) else exc
            raise ConfigError(
                f"{full_name}: trigger {number} is not one that Prefect knows: {reason}."
            ) from exc
        trigger.set_deployment_id(UUID(deployment_id))
        # The owner makes the server remove the automation together with its deployment.
        body = trigger.as_automation().model_dump(mode="json") | {"tags": [TRIGGER_TAG]}
        _put_automation(client, report, body, known.pop(body["name"], None))
    for name, item in known.items():
        # The server does not tell who owns an automation; without the tag it may be somebody's own.
        if TRIGGER_TAG in item["tags"]:
            _send(client, "DELETE", f"automations/{item['id']}")
            report.automations[name] = "removed"


def _zombie_automation(after_s: float) -> dict[str, Any]:
    """Describe the automation of Prefect's page "Detect zombie flows", which a server does not come with.

    The wildcard in `expect` is needed because events carry the state's name, which a flow may choose.
    """
    return {
        "name": ZOMBIE_AUTOMATION,
        "description": f"No heartbeat for {after_s:.0f} s: the machine of the run is gone.",
        "enabled": True,
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "after": ["prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.*"],
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "for_each": ["prefect.resource.id"],
            "threshold": 1,
            "within": float(after_s),
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "message": f"No heartbeat for {after_s:.0f} s: the machine that ran this is gone.",
            }
        ],
    }


def _apply_automation(client: httpx.Client, report: RegisterReport, body: dict[str, Any]) -> None:
    found = _automations_named(client, body["name"])
    _put_automation(client, report, body, found[0] if found else None)


def _automations_named(client: httpx.Client, name: str) -> list[dict[str, Any]]:
    """Return the automations of a name, oldest first."""
    found = _send(client, "POST", "automations/filter", {"automations": {"name": {"any_": [name]}}})
    return sorted(found, key=lambda item: (str(item["created"]), str(item["id"])))


def _create_automation(client: httpx.Client, body: dict[str, Any]) -> None:
    """Create an automation once. Their names are not unique to the server: of exact copies, which a second
    registration at the same moment or a repeated request makes, the oldest stays."""
    _send(client, "POST", "automations/", body)
    wanted = {key: value for key, value in body.items() if key != "owner_resource"}
    for copy in [item for item in _automations_named(client, body["name"]) if _holds(item, wanted)][1:]:
        _delete(client, f"automations/{copy['id']}")


def _delete(client: httpx.Client, path: str) -> None:
    try:
        _send(client, "DELETE", path)
    except httpx.HTTPStatusError as exc:
        if exc.response.status_code != 404:
            raise


def _put_automation(
    client: httpx.Client, report: RegisterReport, body: dict[str, Any], existing: dict[str, Any] | None
) -> None:
    if existing is None:
        _create_automation(client, body)
        report.automations[body["name"]] = "created"
        return
    update = body | {"enabled": existing["enabled"]}
    update.pop("owner_resource", None)  # set once, at creation; not in the server's answers
    if _holds(existing, update):
        # Written again it would forget the heartbeats it has counted: a machine that is already gone sends
        # no other, and its run would stay Running for ever.
        report.automations[body["name"]] = "kept"
        return
    _send(client, "PUT", f"automations/{existing['id']}", update)
    report.automations[body["name"]] = "updated"


def main() -> int:
    parser = argparse.ArgumentParser(description="Register pools, deployments and automations; idempotent.")
    parser.add_argument("--api-url", help="Prefect API, ends in /api; default: PREFECT_API_URL")
    parser.add_argument("--prefect-file", type=Path, default=PROJECT_ROOT / "prefect.yaml")
    parser.add_argument("--pool-type", choices=["process", "docker"], default="process")
    parser.add_argument("--gpus", type=int, help="concurrency limit of the GPU pool; new pools get 1")
    parser.add_argument("--update-pools", action="store_true", help="give existing pools our job template")
    parser.add_argument(
        "--zombie-after",
        type=float,
        metavar="S",
        help="seconds without a heartbeat after which a run counts as crashed; "
        "default: OWNVOICE_ZOMBIE_AFTER_S or 540",
    )
    parser.add_argument("--wait", type=float, default=0, metavar="S", help="seconds to wait for the server")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        api_url = arguments.api_url or settings.prefect_api_url
        if not api_url:
            raise ConfigError("No Prefect server is named; set PREFECT_API_URL or give --api-url.")
        zombie_after_s = arguments.zombie_after or settings.zombie_after_s
        if zombie_after_s < SHORTEST_ZOMBIE_S:
            raise ConfigError(
                f"--zombie-after {zombie_after_s:g} is too short: heartbeats are 30 s apart or more; "
                f"give {SHORTEST_ZOMBIE_S} or more."
            )
        auth = settings.prefect_api_auth_string
        report = register(
            api_url,
            pool_type=arguments.pool_type,
            gpus=arguments.gpus,
            update_pools=arguments.update_pools,
            cpu_pool=settings.cpu_pool,
            gpu_pool=settings.gpu_pool,
            prefect_file=arguments.prefect_file,
            auth=auth.get_secret_value() if auth else None,
            wait_s=arguments.wait,
            timezone=settings.timezone,
            serving_limit=settings.serving_limit,
            zombie_after_s=zombie_after_s,
        )
    except OwnvoiceError as exc:
        print(exc, file=sys.stderr)
        return exc.exit_code
    print(json.dumps(asdict(report)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
