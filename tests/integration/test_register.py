"""deployments/register.py and a real Prefect server: what it makes, what it leaves alone, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.prefect_server import PASSWORD, PrefectServer, bare_environment, prefect_server
from tests.stack import FLOW

OLLAMA = "http://gpu-7.example.org:11434/api"
RACED = "http://gpu-8.example.org:11434"
LIMIT = "ollama:gpu-7.example.org:11434"
ZOMBIES = "ownvoice: mark runs as crashed when their heartbeat stops"
WINDOW_S = 10
"""The `within` of the trigger of dispatch-jobs."""
HELLO = """
deployments:
  - name: burst
    entrypoint: hello.py:hello
    description: greets
    tags: [b, a]
    work_pool: {{name: {pool}, work_queue_name: normal}}
    concurrency_limit: {{limit: 1, collision_strategy: CANCEL_NEW}}
    schedules:
      - {{slug: nightly, cron: "0 3 * * *", timezone: "{{{{ $OWNVOICE_TIMEZONE }}}}"}}
      - {{slug: paused-in-ui, cron: "0 4 * * *", timezone: UTC}}
    triggers:
      - {{type: event, name: hello on request, expect: [ownvoice.test], threshold: 1, within: {window}}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PrefectServer]:
    with prefect_server() as running:
        yield running


@pytest.fixture(scope="module")
def registered(server: PrefectServer) -> dict[str, Any]:
    """The report of the first registration of the project itself, with an Ollama server."""
    return report(server.register(OLLAMA_BASE_URL=OLLAMA))


@pytest.fixture(scope="module")
def hello(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hello(tmp_path_factory.mktemp("hello"))


def write_hello(folder: Path, *, pool: str = "gpu", window: int = WINDOW_S) -> Path:
    (folder / "hello.py").write_text(FLOW)
    (folder / "prefect.yaml").write_text(HELLO.format(pool=pool, window=window))
    return folder / "prefect.yaml"


def report(finished: Any) -> dict[str, Any]:
    assert finished.returncode == 0, finished.stderr
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


def counts(server: PrefectServer) -> dict[str, int]:
    kinds = ("deployments", "automations", "work_pools", "flows")
    found: dict[str, int] = {kind: server.post(f"{kind}/count", {}) for kind in kinds}
    found["queues"] = len(server.post("work_queues/filter", {}))
    found["limits"] = len(server.post("v2/concurrency_limits/filter", {}))
    found["schedules"] = sum(len(item["schedules"]) for item in server.post("deployments/filter", {}))
    return found


# ---- at the same time ---------------------------------------------------------------------------------


def test_two_registrations_of_a_new_server_at_once_both_succeed_and_make_everything_once(
    server: PrefectServer,
) -> None:
    """First in this module: nothing is there yet. A repeated request of one registration looks the same."""
    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(lambda _: server.register(OLLAMA_BASE_URL=RACED), range(2)))
    assert [finished.stderr for finished in both] == ["", ""]
    named = [item["name"] for item in server.post("automations/filter", {})]
    assert len(named) == len(set(named)) and ZOMBIES in named
    before = counts(server)
    assert set(report(server.register(OLLAMA_BASE_URL=RACED))["automations"].values()) == {"kept"}
    assert counts(server) == before


# ---- what it makes -----------------------------------------------------------------------------------


def test_second_registration_changes_nothing(server: PrefectServer, registered: dict[str, Any]) -> None:
    before = counts(server)
    again = report(server.register(OLLAMA_BASE_URL=OLLAMA))
    assert counts(server) == before
    assert (again["created"], again["updated"]) == ([], [])
    assert again["deployments"] == registered["deployments"]
    assert set(again["automations"].values()) == {"kept"}
    assert {*again["queues"].values(), *again["limits"].values()} == {"kept"}


def test_gpu_pool_has_its_three_queues(server: PrefectServer, registered: dict[str, Any]) -> None:
    assert set(registered["queues"]) == {"gpu/high", "gpu/normal", "gpu/bulk"}
    queues = server.post("work_pools/gpu/queues/filter", {})
    order = [item["name"] for item in sorted(queues, key=lambda item: item["priority"])]
    assert [name for name in order if name != "default"] == ["high", "normal", "bulk"]


def test_ollama_server_gets_a_limit_of_one_that_keeps_the_number_given_to_it(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    assert registered["limits"] == {LIMIT: "created"}
    assert server.get(f"v2/concurrency_limits/{LIMIT}")["limit"] == 1
    server.patch(f"v2/concurrency_limits/{LIMIT}", {"limit": 3})
    assert report(server.register(OLLAMA_BASE_URL=OLLAMA))["limits"] == {LIMIT: "kept"}
    assert server.get(f"v2/concurrency_limits/{LIMIT}")["limit"] == 3


def test_only_workers_of_the_gpu_pool_are_offered_the_training(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    path = "deployments/name/train-adapters/gpu"
    training = server.get(path)
    assert (training["work_pool_name"], training["work_queue_name"]) == ("gpu", "normal")
    run = server.post(
        f"deployments/{training['id']}/create_flow_run",
        {"parameters": {"job_ids": [], "base_model": "smollm2-135m", "storage_url": "nowhere"}},
    )
    try:
        now = datetime.now(UTC).isoformat()
        offered = {
            pool: [
                item["flow_run"]["id"]
                for item in server.post(
                    f"work_pools/{pool}/get_scheduled_flow_runs", {"scheduled_before": now}
                )
            ]
            for pool in ("cpu", "gpu")
        }
        assert run["id"] in offered["gpu"] and run["id"] not in offered["cpu"]
    finally:
        server.post(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}})

    server.patch(f"deployments/{training['id']}", {"work_pool_name": "cpu"})
    assert report(server.register())["updated"] == ["train-adapters/gpu"]
    assert server.get(path)["work_pool_name"] == "gpu"


def test_window_of_the_zombie_automation_follows_the_option(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    def within() -> float:
        body = {"automations": {"name": {"any_": [ZOMBIES]}}}
        (automation,) = server.post("automations/filter", body)
        assert f"{automation['trigger']['within']:.0f} s" in automation["actions"][0]["message"]
        seconds: float = automation["trigger"]["within"]
        return seconds

    assert registered["automations"][ZOMBIES] in ("created", "kept") and within() == 540
    assert report(server.register(None, "--zombie-after", "90"))["automations"][ZOMBIES] == "updated"
    assert within() == 90
    assert report(server.register(OWNVOICE_ZOMBIE_AFTER_S="120"))["automations"][ZOMBIES] == "updated"
    assert within() == 120
    report(server.register())
    assert within() == 540


def test_event_of_a_new_job_starts_the_dispatcher_that_looks_for_longer(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    dispatcher = registered["deployments"]["dispatch-jobs/every-minute"]
    (automation,) = server.get(f"automations/related-to/prefect.deployment.{dispatcher}")
    assert automation["enabled"] and automation["trigger"]["within"] == WINDOW_S
    (action,) = automation["actions"]
    assert action["deployment_id"] == dispatcher and action["parameters"]["linger_s"] > WINDOW_S


# ---- what it leaves alone ----------------------------------------------------------------------------


def test_what_was_paused_or_added_in_the_ui_stays(
    server: PrefectServer, registered: dict[str, Any], hello: Path, tmp_path: Path
) -> None:
    report(server.register(hello))
    path = "deployments/name/hello/burst"
    before = server.get(path)
    schedules = {item["slug"]: item["id"] for item in before["schedules"]}
    own = f"deployments/{before['id']}/schedules"
    server.patch(f"{own}/{schedules['paused-in-ui']}", {"active": False})
    # The UI gives its schedules no slug.
    added = {"schedule": {"cron": "0 5 * * *", "timezone": "UTC"}, "active": True}
    server.post(own, [added])
    (trigger,) = server.get(f"automations/related-to/prefect.deployment.{before['id']}")
    server.patch(f"automations/{trigger['id']}", {"enabled": False})

    changed = write_hello(tmp_path, window=20)
    assert report(server.register(changed, OWNVOICE_TIMEZONE="Europe/Berlin"))["updated"] == ["hello/burst"]

    after = server.get(path)
    seen = {item["slug"]: item for item in after["schedules"]}
    assert len(after["schedules"]) == 3 and None in seen
    assert {slug: seen[slug]["id"] for slug in schedules} == schedules
    assert not seen["paused-in-ui"]["active"] and seen["nightly"]["active"]
    assert seen["nightly"]["schedule"]["timezone"] == "Europe/Berlin"
    (kept,) = server.get(f"automations/related-to/prefect.deployment.{before['id']}")
    assert (kept["id"], kept["enabled"], kept["trigger"]["within"]) == (trigger["id"], False, 20)
    server.patch(f"automations/{trigger['id']}", {"enabled": True})


def test_limit_of_a_deployment_comes_and_goes_with_the_yaml(
    server: PrefectServer, registered: dict[str, Any], hello: Path, tmp_path: Path
) -> None:
    report(server.register(hello))
    found = server.get("deployments/name/hello/burst")
    assert found["global_concurrency_limit"]["limit"] == 1
    assert found["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    lines = write_hello(tmp_path).read_text().splitlines(keepends=True)
    without = "".join(line for line in lines if "concurrency_limit" not in line)
    (tmp_path / "prefect.yaml").write_text(without)
    report(server.register(tmp_path / "prefect.yaml"))
    assert server.get("deployments/name/hello/burst")["global_concurrency_limit"] is None
    assert report(server.register(tmp_path / "prefect.yaml"))["updated"] == []


# ---- the event trigger -------------------------------------------------------------------------------


def test_burst_of_events_starts_one_run_per_window_and_none_is_late(
    server: PrefectServer, registered: dict[str, Any], hello: Path
) -> None:
    """A reactive trigger fires at its first event, then passes over events until its window has ended.

    What it passes over is seen by the run that the first event started: dispatch-jobs looks for longer than
    the window.
    """
    report(server.register(hello))
    deployment = server.get("deployments/name/hello/burst")["id"]

    def send(events: int) -> None:
        now = datetime.now(UTC).isoformat()
        resource = {"prefect.resource.id": "ownvoice.job.7"}
        event = {"occurred": now, "event": "ownvoice.test", "resource": resource, "payload": {}}
        server.post("events", [{**event, "id": str(uuid4())} for _ in range(events)])

    def runs() -> list[float]:
        body = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"tags": {"all_": ["a"]}}}
        found = [item for item in server.post("flow_runs/filter", body) if not item["auto_scheduled"]]
        return sorted(datetime.fromisoformat(item["created"]).timestamp() for item in found)

    started = time.time()
    send(50)
    time.sleep(WINDOW_S / 2)
    send(50)
    first = runs()
    assert len(first) == 1 and first[0] - started < 3
    time.sleep(max(0.0, started + WINDOW_S + 0.5 - time.time()))
    again = time.time()
    send(20)
    time.sleep(3)
    assert len(runs()) == 2 and runs()[1] - again < 3


# ---- the forms ---------------------------------------------------------------------------------------


def form(server: PrefectServer, deployment: str) -> dict[str, Any]:
    """Return the parameters of a deployment as the server describes them to the UI, references resolved."""
    schema = server.get(f"deployments/name/{deployment}")["parameter_openapi_schema"]
    definitions = schema.get("definitions") or schema.get("$defs") or {}
    fields = {}
    for name, described in schema["properties"].items():
        reference = described.get("$ref") or (described.get("allOf") or [{}])[0].get("$ref", "")
        fields[name] = {**definitions.get(reference.rpartition("/")[2], {}), **described}
    return {"required": schema.get("required", []), "fields": fields}


def test_train_user_has_a_form_that_explains_itself(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    found = form(server, "train-user/default")
    assert found["required"] == ["user_id"]
    fields = found["fields"]
    assert all(item["title"] and len(item["description"]) > 15 for item in fields.values())
    assert set(fields["trigger"]["enum"]) == {"manual", "schedule", "mail_count", "app", "feedback"}
    assert fields["trigger"]["default"] == "manual"
    assert fields["user_id"]["type"] == "string"


def test_monthly_round_has_a_form_with_choices_and_limits(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    found = form(server, "monthly-retrain/daily-due")
    assert found["required"] == []
    fields = found["fields"]
    assert all(item["title"] and len(item["description"]) > 15 for item in fields.values())
    assert set(fields["mode"]["enum"]) == {"replay", "incremental", "rolling"}
    assert (fields["cohort_size"]["type"], fields["cohort_size"]["minimum"]) == ("integer", 1)
    refused = server.client.post(
        f"deployments/{registered['deployments']['monthly-retrain/daily-due']}/create_flow_run",
        json={"parameters": {"mode": "replya"}},
    )
    assert refused.status_code == 409


def test_every_parameter_of_every_deployment_is_explained(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    bare = [
        f"{deployment}: {name}"
        for deployment in registered["deployments"]
        for name, item in form(server, deployment)["fields"].items()
        if len(item.get("description", "")) < 15 or not item.get("title")
    ]
    assert bare == []


# ---- what it refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        (
            "deployments: [{name: a, entrypoint: 'b.py:b', work_pool: {name: '{{ $NOBODY_SET_THIS }}'}}]",
            "prefect.yaml needs the environment variable NOBODY_SET_THIS, which is not set; set it.",
        ),
        (
            "deployments: [{name: a, entrypoint: 'broken.py:hello', work_pool: {name: cpu}}]",
            "broken.py:hello cannot be loaded: No module named 'no_such_module'",
        ),
        (
            "deployments: [{name: a, entrypoint: 'missing.py:hello', work_pool: {name: cpu}}]",
            "missing.py:hello cannot be loaded",
        ),
        ("- no mapping", "has no list of deployments"),
        ("deployments: [", "cannot be read"),
        (
            "deployments: [{name: a, entrypoint: 'hello.py:hello', work_pool: {name: cpu}, "
            "triggers: [{type: event, posture: Proactive, within: 2}]}]",
            "hello/a: trigger 1 is not one that Prefect knows",
        ),
    ],
)
def test_unusable_yaml_is_refused_in_one_sentence(
    yaml: str, said: str, server: PrefectServer, registered: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "hello.py").write_text(FLOW)
    (tmp_path / "broken.py").write_text("import no_such_module\n" + FLOW)
    (tmp_path / "prefect.yaml").write_text(yaml)
    refused = server.register(tmp_path / "prefect.yaml")
    assert refused.returncode == 2
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("auth", "said"), [(None, "asks for a password"), ("anna:wrong", "refused the password")]
)
def test_wrong_password_is_named(auth: str | None, said: str, server: PrefectServer, hello: Path) -> None:
    refused = server.register(hello, auth=auth)
    assert refused.returncode == 2
    assert said in refused.stderr and refused.stderr.count("\n") == 1
    assert "wrong" not in refused.stderr


def test_address_without_api_is_named(server: PrefectServer, hello: Path) -> None:
    refused = server.register(hello, "--api-url", server.api.removesuffix("/api"))
    assert refused.returncode in (1, 2)
    assert refused.stderr.count("\n") == 1 and "Traceback" not in refused.stderr


def test_unusable_settings_are_named(server: PrefectServer, hello: Path) -> None:
    short = server.register(hello, "--zombie-after", "10")
    assert (short.returncode, short.stderr.count("\n")) == (2, 1)
    assert "--zombie-after 10 is too short" in short.stderr
    nowhere = server.register(hello, OWNVOICE_TIMEZONE="Atlantis/Capital")
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
    assert "OWNVOICE_TIMEZONE is not usable" in nowhere.stderr


# ---- ownvoice deploy ---------------------------------------------------------------------------------


def test_ownvoice_deploy_does_the_same_and_shows_a_table(
    server: PrefectServer, registered: dict[str, Any]
) -> None:
    before = counts(server)
    environment = bare_environment() | {
        "PREFECT_API_URL": server.api,
        "PREFECT_API_AUTH_STRING": PASSWORD,
        "COLUMNS": "100",
    }

    def deploy(*options: str) -> str:
        command = [str(Path(sys.executable).parent / "ownvoice"), "deploy", *options]
        return subprocess.run(
            command, env=environment, cwd=server.home, capture_output=True, text=True, check=True
        ).stdout

    found = json.loads(deploy("--json"))
    assert found["deployments"] == report(server.register())["deployments"]
    shown = deploy()
    for name in (*found["deployments"], *found["queues"], *found["automations"], *found["pools"]):
        (line,) = [line for line in shown.splitlines() if f" {name} " in line]
        assert "kept" in line
    assert counts(server) == before


def test_ownvoice_deploy_says_in_one_sentence_why_not(server: PrefectServer) -> None:
    environment = bare_environment() | {"OWNVOICE_HOME": str(server.home / "nothing")}
    command = [str(Path(sys.executable).parent / "ownvoice"), "deploy"]

    def deploy(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [*command, *options],
            env=environment,
            cwd=server.home,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    code, said = deploy("--json")
    assert (code, said.split(".")[0]) == (1, "No Prefect server is running")
    code, said = deploy("--api-url", server.api)
    assert code == 2 and "asks for a password; set PREFECT_API_AUTH_STRING" in said
    code, said = deploy("--api-url", "http://127.0.0.1:9/api")
    assert code == 1 and "does not answer" in said
