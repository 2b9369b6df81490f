"""One job per person at a time, and stopping it: by command and from Prefect's own page, early and late."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.e2e.stack import PATIENCE, SMALL, Answer, CommandLine, Running, finish, wait_for

THEA = "thea@example.net"
CANCEL_S = 15.0
"""What the design promises for stopping a training; asserted with slack for a busy machine."""
SLACK = 2.0


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preset that trains for many minutes."""
    preset = tmp_path_factory.mktemp("thea") / "endless.yaml"
    preset.write_text(SMALL.format(epochs=50, steps=2000))
    return preset


@pytest.fixture(scope="module")
def two_trains(running: Running, endless: Path) -> tuple[Answer, Answer]:
    """Two `train` commands for one person, started in the same moment: the one that ran, the other."""
    running.import_sample(THEA)
    both = [running.command.start("train", THEA, "--config", endless, "--json") for _ in range(2)]
    for process in both:
        process.wait(120)
    winner, loser = sorted(both, key=lambda process: process.returncode)
    return finish(winner, 0), finish(loser, 3)


class Cancelled(NamedTuple):
    job: dict[str, Any]
    seconds: float
    had: set[str]
    """Files in the job folder before."""


@pytest.fixture(scope="module")
def cancelled(running: Running, two_trains: tuple[Answer, Answer]) -> Cancelled:
    """The job that ran, cancelled while it trained."""
    job_id = two_trains[0].json["id"]
    wait_for_training(running, job_id)
    had = {path.name for path in running.folder(job_id).iterdir()}
    started = time.monotonic()
    running.command("cancel", job_id, "--json")
    return Cancelled(running.job(job_id), time.monotonic() - started, had)


@pytest.fixture
def paused_cpu_pool(running: Running) -> Iterator[None]:
    yield from paused(running, "cpu")


@pytest.fixture
def paused_gpu_pool(running: Running) -> Iterator[None]:
    yield from paused(running, "gpu")


def paused(running: Running, pool: str) -> Iterator[None]:
    """No worker takes up a run of the pool meanwhile."""
    url = f"{running.written['prefectApiUrl']}/work_pools/{pool}"
    httpx.patch(url, json={"is_paused": True}).raise_for_status()
    yield
    httpx.patch(url, json={"is_paused": False}).raise_for_status()


def wait_for_training(running: Running, job_id: str) -> None:
    def trains() -> bool:
        return any(event.data.get("phase") == "train" for event in running.events(job_id))

    wait_for(trains, f"job {job_id} to train", timeout_s=240 * PATIENCE)


def test_second_train_for_a_person_is_told_of_the_first(two_trains: tuple[Answer, Answer]) -> None:
    winner, loser = two_trains
    assert winner.json["status"] == "PENDING"
    assert loser.error["code"] == "JOB_ALREADY_ACTIVE"
    assert winner.json["id"] in loser.error["message"]


def test_cancel_stops_a_training_within_seconds(cancelled: Cancelled, running: Running) -> None:
    assert cancelled.job["status"] == "CANCELLED"
    assert cancelled.seconds < CANCEL_S * SLACK
    wait_for(lambda: not running.runs_of("worker-gpu"), "the training process to end", timeout_s=30)


def test_cancelled_job_leaves_neither_mail_nor_adapter(cancelled: Cancelled, running: Running) -> None:
    assert {"dataset.jsonl", "held_out.jsonl"} <= cancelled.had
    assert not running.folder(cancelled.job["id"]).exists()
    assert cancelled.job["modelName"] is None
    with running.database() as database, database.connection() as connection:
        row = connection.execute(
            'SELECT "aiModel", "loraAdapterId" FROM "User" WHERE "id" = %s', (cancelled.job["userId"],)
        ).fetchone()
    assert row == (None, None)


def test_cancelled_runs_end_in_prefect_too(cancelled: Cancelled, running: Running) -> None:
    parent = f"flow_runs/{cancelled.job['flowRunId']}"
    wait_for(
        lambda: running.prefect(parent)["state_type"] == "CANCELLED", "the flow run to end cancelled", 30
    )
    (training,) = running.training_runs(cancelled.job["id"])
    assert training["state_type"] in ("FAILED", "CANCELLED")


@pytest.mark.usefixtures("cancelled", "paused_cpu_pool")
def test_job_that_nobody_has_taken_up_is_cancelled_at_once(running: Running, endless: Path) -> None:
    waiting = running.command("train", THEA, "--config", endless, "--json").json
    ended = running.command("cancel", waiting["id"], "--json").json
    assert (ended["status"], ended["version"]) == ("CANCELLED", waiting["version"])
    assert running.prefect(f"flow_runs/{waiting['flowRunId']}")["state_type"] == "CANCELLED"
    error = running.command("cancel", waiting["id"], "--json", code=3).error
    assert error["code"] == "INVALID_TRANSITION"


@pytest.mark.usefixtures("cancelled", "paused_cpu_pool")
def test_waiting_job_is_cancelled_while_the_prefect_server_is_away(running: Running, endless: Path) -> None:
    waiting = running.command("train", THEA, "--config", endless, "--json").json
    away = running.command.with_variables(PREFECT_API_URL="http://127.0.0.1:9/api")
    assert away("cancel", waiting["id"], "--json").json["status"] == "CANCELLED"


@pytest.mark.usefixtures("cancelled")
def test_cancel_on_prefects_page_stops_the_job_as_the_command_does(running: Running, endless: Path) -> None:
    job = running.command("train", THEA, "--config", endless, "--json").json
    wait_for_training(running, job["id"])
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    running.prefect(f"flow_runs/{job['flowRunId']}/set_state", state)
    ended = running.wait_for_job(job["id"], "CANCELLED", timeout_s=120)
    assert ended["errorCode"] is None
    wait_for(lambda: not running.runs_of("worker-gpu"), "the training process to end", timeout_s=60)
    # A training that is still at work would make its folder anew with the next progress.
    assert not running.folder(job["id"]).exists()


@pytest.mark.usefixtures("cancelled", "paused_gpu_pool")
def test_job_that_is_cancelled_after_its_process_died_leaves_no_mail(
    running: Running, command: CommandLine, endless: Path
) -> None:
    job = command("train", THEA, "--config", endless, "--json").json
    running.wait_for_job(job["id"], "TRAINING")
    wait_for(lambda: running.training_runs(job["id"]), "the training to be asked for")
    running.run_process(job["id"]).kill()

    def waits_again() -> bool:
        return any(event.message.startswith("Queued again") for event in running.events(job["id"]))

    wait_for(waits_again, "the job to be queued again")
    assert [run["state_type"] for run in running.training_runs(job["id"])] == ["CANCELLED"]
    assert (running.folder(job["id"]) / "dataset.jsonl").exists()

    command("cancel", job["id"], "--json")
    running.wait_for_job(job["id"], "CANCELLED")
    assert not running.folder(job["id"]).exists()
    assert {run["state_type"] for run in running.training_runs(job["id"])} == {"CANCELLED"}
