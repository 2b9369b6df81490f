"""A machine that is gone with its worker and its run: nobody is left to say so but the automation."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app import local
from app.orchestrator import Orchestrator
from tests.e2e.stack import wait_for
from tests.stack import stack_settings, temporary_home, write_hello_project
from training.settings import PROJECT_ROOT, SHORTEST_ZOMBIE_S, Settings

HEARTBEAT_S = 30
"""The shortest that Prefect allows."""
NOTICED_S = HEARTBEAT_S + 2 * SHORTEST_ZOMBIE_S
"""The window begins at the last heartbeat and is looked at once per window; and slack for a busy machine."""
FIRST_PORT = 4820

pytestmark = pytest.mark.slow


@pytest.fixture
def stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Settings, local.Stack, Orchestrator]]:
    """A stack in a home of its own whose runs report every 30 s and are given up after a minute."""
    for name in ("PREFECT_API_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", str(HEARTBEAT_S))
    prefect_file = write_hello_project(tmp_path)
    with temporary_home() as home:
        settings = stack_settings(home)
        running = local.up(settings, prefect_file=prefect_file, first_port=FIRST_PORT)
        command = [sys.executable, str(PROJECT_ROOT / "deployments" / "register.py")]
        command += ["--api-url", running.prefect_api_url, "--prefect-file", str(prefect_file)]
        subprocess.run([*command, "--zombie-after", str(SHORTEST_ZOMBIE_S)], check=True, capture_output=True)
        with Orchestrator(running.prefect_api_url) as orchestrator:
            yield settings, running, orchestrator


def test_run_whose_machine_is_gone_ends_crashed_and_a_good_one_does_not(
    stack: tuple[Settings, local.Stack, Orchestrator],
) -> None:
    _, running, orchestrator = stack
    good = orchestrator.start_run("hello/gpu", {"seconds": 600})
    lost = orchestrator.start_run("hello/cpu", {"seconds": 600})
    for run in (good, lost):
        wait_for(lambda run=run: orchestrator.run_state(run).type == "RUNNING", "both runs to run")
    time.sleep(2)  # a run reports for the first time as it begins
    item = running.process("worker-cpu")
    assert item is not None
    worker = psutil.Process(item.pid)
    machine = [*worker.children(recursive=True), worker]
    worker.kill()  # first, so that it cannot say that its run crashed
    for process in machine:
        if process.is_running():
            process.kill()
    killed = time.monotonic()

    wait_for(lambda: orchestrator.run_state(lost).is_final, "the automation", timeout_s=NOTICED_S)
    taken_s = time.monotonic() - killed
    print(f"crashed by the automation {taken_s:.0f} s after the kill")
    state = orchestrator.run_state(lost)
    assert (state.type, state.message) == (
        "CRASHED",
        f"No heartbeat for {SHORTEST_ZOMBIE_S} s: the machine that ran this is gone.",
    )
    assert taken_s > SHORTEST_ZOMBIE_S - HEARTBEAT_S - 5, "it was somebody else who noticed"
    assert orchestrator.run_state(good).type == "RUNNING", "a run that reports is left alone"
