"""Servers that go away for half a minute while a job runs: it waits, or is recovered, and ends right."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from store import embedded
from tests.e2e.stack import SMALL, TRAIN_S, Running, wait_for
from tests.e2e.test_faults import wait_for_step

pytestmark = pytest.mark.slow

PERSON = "wanda@example.net"
AWAY_S = 30.0


@pytest.fixture(scope="module")
def preset(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    running.import_sample(PERSON)
    path = tmp_path_factory.mktemp("wanda") / "short-steps.yaml"
    path.write_text(SMALL.format(epochs=6, steps=40))
    return path


@pytest.fixture
def training(running: Running, preset: Path) -> Iterator[str]:
    """A job that has just begun to train, with a minute or less of it left."""
    job_id = running.command("train", PERSON, "--config", preset, "--json").json["id"]
    wait_for_step(running, job_id, "Created", at_least=2)
    yield job_id


def database_away(running: Running) -> None:
    embedded.stop(running.home)
    time.sleep(AWAY_S)
    embedded.start(running.home)


def prefect_server_away(running: Running) -> None:
    pids = {item["name"]: item["pid"] for item in running.written["processes"]}
    running.worker("prefect-server").kill()
    time.sleep(AWAY_S)
    running.command("up", timeout_s=300)
    assert {item["name"]: item["pid"] for item in running.written["processes"]} != pids


def cpu_worker_killed(running: Running) -> None:
    running.worker("worker-cpu").kill()
    running.command("up", timeout_s=300)


def gpu_worker_killed(running: Running) -> None:
    running.worker("worker-gpu").kill()
    running.command("up", timeout_s=300)


@pytest.mark.parametrize(
    "misfortune", [database_away, prefect_server_away, cpu_worker_killed, gpu_worker_killed]
)
def test_job_ends_right_when_a_server_goes_away_while_it_trains(
    running: Running, training: str, misfortune: Callable[[Running], None]
) -> None:
    misfortune(running)

    def ended() -> dict[str, Any] | None:
        return running.job(training) if running.row(training).status.is_final else None

    job = wait_for(ended, "the job to end", 2 * TRAIN_S)
    assert (job["status"], job["outcome"]) == ("COMPLETED", "PROMOTED"), (
        job["errorCode"],
        job["errorMessage"],
    )
    assert job["metrics"]["steps"] == 40
