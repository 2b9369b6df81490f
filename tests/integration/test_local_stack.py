"""`ownvoice up`, `down` and `status` with real processes, and the Prefect server as seen over REST."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from app import local
from app.orchestrator import Orchestrator
from tests.stack import SECRET_VARIABLES, stack_settings, write_hello_project
from training.allocator import find_allocator
from training.errors import ConfigError, OrchestratorUnavailable
from training.schemas import Schema
from training.settings import PROJECT_ROOT, Settings

StackOf = tuple[Settings, local.Stack]


@pytest.fixture
def prefect(local_stack: StackOf) -> Iterator[Orchestrator]:
    with Orchestrator(local_stack[1].prefect_api_url) as orchestrator:
        yield orchestrator


def _wait(orchestrator: Orchestrator, run_id: str, *types: str, timeout_s: float = 60) -> str:
    deadline = time.monotonic() + timeout_s
    while (state := orchestrator.run_state(run_id)).type not in types:
        assert time.monotonic() < deadline, f"still {state} after {timeout_s} s"
        time.sleep(0.1)
    return state.type


def _process(stack: local.Stack, name: str) -> psutil.Process:
    item = stack.process(name)
    assert item is not None
    return psutil.Process(item.pid)


def _kill(stack: local.Stack, name: str) -> None:
    process = _process(stack, name)
    process.kill()
    process.wait(10)


def _count(stack: local.Stack, what: str, body: dict[str, Any] | None = None) -> int:
    found: int = httpx.post(f"{stack.prefect_api_url}/{what}/count", json=body or {}).json()
    return found


# ---- running -----------------------------------------------------------------------------------------


def test_everything_answers_after_up(local_stack: StackOf) -> None:
    settings, stack = local_stack
    seen = local.status(settings)
    assert seen is not None and seen.dead == ()
    assert [item.name for item in seen.processes] == ["prefect-server", "worker-cpu", "worker-gpu"]
    page = httpx.get(stack.ui_url, headers={"accept": "text/html"}, follow_redirects=True)
    assert page.status_code == 200 and "<html" in page.text
    assert local.prefect_api_url(settings) == stack.prefect_api_url


def test_second_up_attaches_in_seconds(local_stack: StackOf, hello_project: Path) -> None:
    settings, stack = local_stack
    started = time.monotonic()
    steps: dict[str, str] = {}
    again = local.up(settings, steps.__setitem__, prefect_file=hello_project)
    assert time.monotonic() - started < 5
    assert again.processes == stack.processes
    assert again.started_at == stack.started_at
    assert steps["prefect-server"] == "already running"
    assert steps["deployments"] == "already registered"


def test_second_up_names_the_setting_that_a_running_worker_does_not_have(
    local_stack: StackOf, hello_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[str, str] = {}
    monkeypatch.setenv("OLLAMA_BASE_URL", "http://127.0.0.1:1")
    for name, value in SECRET_VARIABLES.items():
        monkeypatch.setenv(name, value)
    local.up(local_stack[0], steps.__setitem__, prefect_file=hello_project)
    assert steps["worker-cpu"].endswith("apply OLLAMA_BASE_URL")


def test_gpu_worker_holds_no_database_or_api_credentials(local_stack: StackOf) -> None:
    _, stack = local_stack
    cpu = _process(stack, "worker-cpu").environ()
    gpu = _process(stack, "worker-gpu").environ()
    assert cpu["DATABASE_URL"] == stack.database_url
    assert cpu["INTERNAL_API_KEY"] == SECRET_VARIABLES["INTERNAL_API_KEY"]
    assert "DATABASE_URL" not in gpu
    assert not SECRET_VARIABLES.keys() & gpu.keys()
    assert not set(SECRET_VARIABLES.values()) & set(gpu.values())
    assert stack.database_url not in gpu.values()
    assert not any("DATABASE" in name for name in gpu)
    assert gpu["PREFECT_API_URL"] == stack.prefect_api_url
    assert gpu["OWNVOICE_STORAGE_URL"] == cpu["OWNVOICE_STORAGE_URL"]


def test_only_training_takes_the_faster_allocator(local_stack: StackOf) -> None:
    _, stack = local_stack
    assert _process(stack, "worker-gpu").environ().get("LD_PRELOAD") == find_allocator()
    assert _process(stack, "worker-cpu").environ().get("LD_PRELOAD") == os.environ.get("LD_PRELOAD")


def test_server_is_reachable_from_this_machine_only(local_stack: StackOf) -> None:
    server = _process(local_stack[1], "prefect-server")
    listening = [item.laddr.ip for item in server.net_connections("tcp") if item.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]


def test_state_file_is_private(local_stack: StackOf) -> None:
    assert (local_stack[0].home / "stack.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("pool", ["cpu", "gpu"])
def test_run_starts_within_seconds_on(pool: str, prefect: Orchestrator) -> None:
    run_id = prefect.start_run(f"hello/{pool}", {})
    # Measured 3 to 5 s on an idle two-core machine; Prefect's own polling would add up to 10.
    assert _wait(prefect, run_id, "COMPLETED", "FAILED", "CRASHED", timeout_s=40) == "COMPLETED"


def test_schedule_yields_scheduled_runs(local_stack: StackOf) -> None:
    """With a wrong SQLAlchemy the scheduler fails without a word and nothing is ever scheduled."""
    stack = local_stack[1]
    gpu = httpx.get(f"{stack.prefect_api_url}/deployments/name/hello/gpu").json()
    wanted = {
        "deployments": {"id": {"any_": [gpu["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    # The scheduler looks at new deployments every five seconds, and at all of them once a minute: before
    # another test pauses the schedule, there is nothing to wait for.
    deadline = time.monotonic() + 120
    while _count(stack, "flow_runs", wanted) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.5)


# ---- the REST client ---------------------------------------------------------------------------------


def test_same_idempotency_key_names_the_same_run(prefect: Orchestrator) -> None:
    first = prefect.start_run("hello/cpu", {}, idempotency_key="job-7:1", name="first", tags=["seven"])
    assert prefect.start_run("hello/cpu", {}, idempotency_key="job-7:1") == first
    assert prefect.start_run("hello/cpu", {}, idempotency_key="job-7:2") != first
    assert prefect.ui_url(first).endswith(f"/runs/flow-run/{first}")
    # The server sends the page to browsers only.
    assert httpx.get(prefect.ui_url(first), headers={"accept": "text/html"}).status_code == 200


def test_cancel_stops_a_live_run(prefect: Orchestrator) -> None:
    run_id = prefect.start_run("hello/cpu", {"seconds": 120})
    _wait(prefect, run_id, "RUNNING")
    assert prefect.cancel_run(run_id).type == "CANCELLING"
    assert _wait(prefect, run_id, "CANCELLED", timeout_s=40) == "CANCELLED"
    assert prefect.cancel_run(run_id).type == "CANCELLED"


def test_cancel_of_a_run_that_never_started_is_final_at_once(
    local_stack: StackOf, prefect: Orchestrator
) -> None:
    api = local_stack[1].prefect_api_url
    httpx.patch(f"{api}/work_pools/cpu", json={"is_paused": True}).raise_for_status()
    try:
        run_id = prefect.start_run("hello/cpu", {})
        assert prefect.cancel_run(run_id).type == "CANCELLED"
    finally:
        httpx.patch(f"{api}/work_pools/cpu", json={"is_paused": False}).raise_for_status()


def test_wrong_requests_are_named(prefect: Orchestrator) -> None:
    with pytest.raises(ConfigError, match="no deployment hello/nowhere"):
        prefect.start_run("hello/nowhere", {})
    with pytest.raises(ConfigError, match=r"does not take these parameters \(seconds\)"):
        prefect.start_run("hello/cpu", {"seconds": "many"})
    with pytest.raises(ConfigError, match="no queue hihg"):
        prefect.start_run("hello/gpu", {}, queue="hihg")
    with pytest.raises(ConfigError, match="has no flow run"):
        prefect.run_state("00000000-0000-4000-8000-000000000000")


def test_server_that_is_not_there_is_named_with_the_next_step() -> None:
    with Orchestrator("http://127.0.0.1:9/api") as nobody:
        assert not nobody.ready()
        with pytest.raises(OrchestratorUnavailable, match="Start the local stack with `ownvoice up`"):
            nobody.start_run("hello/cpu", {})


def test_embedded_server_does_not_refuse_requests_that_come_together(local_stack: StackOf) -> None:
    """Stock Prefect on SQLite answers most of these with 503 (see app/prefect_server.py)."""
    api = local_stack[1].prefect_api_url
    deployment = httpx.get(f"{api}/deployments/name/hello/cpu").json()["id"]

    def create_and_cancel(_: int) -> list[int]:
        with httpx.Client(base_url=f"{api}/", timeout=60) as client:
            codes = []
            for _ in range(4):
                made = client.post(
                    f"deployments/{deployment}/create_flow_run",
                    json={
                        "state": {
                            "type": "SCHEDULED",
                            "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"},
                        }
                    },
                )
                codes.append(made.status_code)
                if made.status_code == 201:
                    state = {"state": {"type": "CANCELLED"}}
                    codes.append(
                        client.post(f"flow_runs/{made.json()['id']}/set_state", json=state).status_code
                    )
            return codes

    with ThreadPoolExecutor(4) as threads:
        codes = [code for result in threads.map(create_and_cancel, range(4)) for code in result]
    assert codes == [201] * 32


# ---- register.py -------------------------------------------------------------------------------------


def _register(stack: local.Stack, prefect_file: Path) -> subprocess.CompletedProcess[str]:
    script = PROJECT_ROOT / "deployments" / "register.py"
    command = [sys.executable, str(script), "--api-url", stack.prefect_api_url]
    return subprocess.run(
        [*command, "--prefect-file", str(prefect_file)], capture_output=True, text=True, check=False
    )


def test_register_twice_makes_no_duplicates_and_keeps_pauses(
    local_stack: StackOf, hello_project: Path
) -> None:
    stack = local_stack[1]
    api = stack.prefect_api_url
    before = httpx.get(f"{api}/deployments/name/hello/gpu").json()
    schedule = before["schedules"][0]["id"]
    path = f"{api}/deployments/{before['id']}/schedules/{schedule}"
    httpx.patch(path, json={"active": False}).raise_for_status()
    automation = httpx.get(f"{api}/automations/related-to/prefect.deployment.{before['id']}").json()[0]
    httpx.patch(f"{api}/automations/{automation['id']}", json={"enabled": False}).raise_for_status()
    counts = [_count(stack, what) for what in ("deployments", "automations", "work_pools")]

    for _ in range(2):
        assert _register(stack, hello_project).returncode == 0

    after = httpx.get(f"{api}/deployments/name/hello/gpu").json()
    assert after["id"] == before["id"]
    assert [(item["id"], item["active"]) for item in after["schedules"]] == [(schedule, False)]
    assert not httpx.get(f"{api}/automations/{automation['id']}").json()["enabled"]
    assert [_count(stack, what) for what in ("deployments", "automations", "work_pools")] == counts
    assert counts == [2, 2, 2]


def test_gpu_pool_serves_people_who_wait_first(local_stack: StackOf) -> None:
    api = local_stack[1].prefect_api_url
    assert httpx.get(f"{api}/work_pools/gpu").json()["concurrency_limit"] == 1
    queues = httpx.post(f"{api}/work_pools/gpu/queues/filter", json={}).json()
    order = [item["name"] for item in sorted(queues, key=lambda item: item["priority"])]
    assert [name for name in order if name != "default"] == ["high", "normal", "bulk"]


def test_register_says_in_one_sentence_what_is_missing(hello_project: Path) -> None:
    script = str(PROJECT_ROOT / "deployments" / "register.py")
    environment = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    nothing = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert (nothing.returncode, nothing.stderr) == (
        2,
        "No Prefect server is named; set PREFECT_API_URL or give --api-url.\n",
    )
    command = [sys.executable, script, "--api-url", "http://127.0.0.1:9/api"]
    nobody = subprocess.run(
        [*command, "--prefect-file", str(hello_project)], capture_output=True, text=True, check=False
    )
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("The Prefect server at http://127.0.0.1:9/api does not answer")
    assert nobody.stderr.count("\n") == 1


def test_trigger_that_left_the_yaml_loses_its_automation(
    local_stack: StackOf, hello_project: Path, tmp_path: Path
) -> None:
    stack = local_stack[1]
    before = _count(stack, "automations")
    text = hello_project.read_text()
    (tmp_path / "prefect.yaml").write_text(text[: text.index("    triggers:")])
    (tmp_path / "hello.py").write_text((hello_project.parent / "hello.py").read_text())
    assert '"hello on request": "removed"' in _register(stack, tmp_path / "prefect.yaml").stdout
    assert _count(stack, "automations") == before - 1
    assert _register(stack, hello_project).returncode == 0
    assert _count(stack, "automations") == before


# ---- dying and stopping ------------------------------------------------------------------------------


def test_dead_worker_alone_is_replaced(local_stack: StackOf, hello_project: Path) -> None:
    settings, _ = local_stack
    stack = local.status(settings)
    assert stack is not None
    _kill(stack, "worker-gpu")
    broken = local.status(settings)
    assert broken is not None and broken.dead == ("worker-gpu",)
    repaired = local.up(settings, prefect_file=hello_project)
    assert repaired.healthy
    assert repaired.process("worker-gpu") != stack.process("worker-gpu")
    assert repaired.process("worker-cpu") == stack.process("worker-cpu")
    assert repaired.process("prefect-server") == stack.process("prefect-server")


def test_dead_server_is_replaced_on_its_port(local_stack: StackOf, hello_project: Path) -> None:
    settings, stack = local_stack
    _kill(stack, "prefect-server")
    with pytest.raises(OrchestratorUnavailable):
        local.prefect_api_url(settings)
    repaired = local.up(settings, prefect_file=hello_project)
    assert repaired.prefect_api_url == stack.prefect_api_url
    assert local.status(settings) == repaired.model_copy(update={"dead": ()})
    with Orchestrator(repaired.prefect_api_url) as orchestrator:
        run_id = orchestrator.start_run("hello/cpu", {})
        assert _wait(orchestrator, run_id, "COMPLETED", "FAILED", "CRASHED") == "COMPLETED"


def test_down_leaves_nothing_running_even_with_a_live_run(stack_home: Path, tmp_path: Path) -> None:
    settings = stack_settings(stack_home)
    stack = local.up(settings, prefect_file=write_hello_project(tmp_path), first_port=4760)
    with Orchestrator(stack.prefect_api_url) as orchestrator:
        _wait(orchestrator, orchestrator.start_run("hello/cpu", {"seconds": 300}), "RUNNING")
    family = [
        member
        for item in stack.processes
        for member in (psutil.Process(item.pid), *psutil.Process(item.pid).children(recursive=True))
    ]
    assert len(family) > 3
    assert local.down(settings)
    assert [process for process in family if process.is_running() and process.status() != "zombie"] == []
    assert local.status(settings) is None
    assert not local.embedded.status(settings.home).running
    assert not local.down(settings)


def test_two_stacks_that_start_in_the_same_second_have_a_server_each(
    stack_home: Path, tmp_path: Path
) -> None:
    project = write_hello_project(tmp_path)
    both = [stack_settings(stack_home / name) for name in ("one", "two")]
    try:
        with ThreadPoolExecutor(2) as together:
            stacks = list(
                together.map(lambda each: local.up(each, prefect_file=project, first_port=4820), both)
            )
        urls = {stack.prefect_api_url for stack in stacks}
        assert len(urls) == 2
        for stack in stacks:
            server = stack.process("prefect-server")
            assert server is not None and local._listens(server, stack.prefect_api_url)
            assert not any(local._listens(server, url) for url in urls - {stack.prefect_api_url})
            assert _count(stack, "deployments") == 2
    finally:
        for each in both:
            local.down(each)


def test_failed_up_stops_what_it_started(stack_home: Path, tmp_path: Path) -> None:
    (tmp_path / "prefect.yaml").write_text(
        "deployments: [{name: a, entrypoint: 'missing.py:f', work_pool: {name: cpu}}]"
    )
    settings = stack_settings(stack_home)
    mine = psutil.Process()
    before = {process.pid for process in mine.children()}
    seen: set[int] = set()
    with pytest.raises(ConfigError, match=r"missing.py:f cannot be loaded"):
        local.up(
            settings,
            lambda step, state: seen.update(process.pid for process in mine.children()),
            prefect_file=tmp_path / "prefect.yaml",
            first_port=4780,
        )
    assert seen - before
    assert [
        pid for pid in seen - before if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
    ] == []
    assert not local.embedded.status(settings.home).running
    assert not (settings.home / "stack.json").exists()


def test_pid_that_belongs_to_somebody_else_is_never_signalled(tmp_path: Path) -> None:
    """After a reboot the file names pids that now belong to anything."""
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    try:
        settings = stack_settings(tmp_path)
        item = local.StackProcess(
            name="worker-cpu", pid=stranger.pid, start_time=time.time() - 86_400, log="gone.log"
        )
        stale = local.Stack(
            home=str(tmp_path),
            prefect_api_url="http://127.0.0.1:9/api",
            ui_url="http://127.0.0.1:9",
            processes=(item,),
            started_at="2026-01-01T00:00:00Z",
        )
        assert isinstance(stale, Schema)
        (tmp_path / "stack.json").write_text(stale.model_dump_json(by_alias=True))
        assert local.status(settings) is None
        assert not local.down(settings)
        assert stranger.poll() is None
    finally:
        stranger.send_signal(signal.SIGKILL)
        stranger.wait()


@pytest.mark.parametrize(
    "changed",
    [{"timezone": "Europe/Berlin"}, {"ollama_base_url": "http://gpu-7:11434"}, {"zombie_after_s": 90.0}],
)
def test_setting_that_a_registration_uses_makes_up_register_again(
    changed: dict[str, Any], hello_project: Path, tmp_path: Path
) -> None:
    settings = stack_settings(tmp_path).model_copy(update={"ollama_base_url": None})
    known = local._fingerprint(hello_project, settings)
    assert local._fingerprint(hello_project, settings) == known
    assert local._fingerprint(hello_project, settings.model_copy(update=changed)) != known


def test_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert local._free_port(port) != port
