"""Killed processes and an absent serving engine: nothing is lost, and the job goes on from where it stood.

One job lives through all of it, each fixture being its next misfortune and the facts at that moment:

    training process killed → goes on by itself; flow process killed → goes on by itself;
    Ollama away → FAILED; retry, Ollama there → published
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from tests.adapters import smollm2_gguf
from tests.e2e.stack import PATIENCE, SMALL, TRAIN_S, CommandLine, Running, wait_for
from tests.e2e.weird_mail import write_weird_mailbox
from tests.ollama_server import OllamaServer
from training.base_models import find_base_model
from training.schemas import JobStatus

OLIN = "olin@example.net"


class Moment(NamedTuple):
    """The job after something happened to it."""

    job: dict[str, Any]
    files: frozenset[str]
    training_runs: tuple[str, ...]
    ai_model: str | None


def look(running: Running, job_id: str) -> Moment:
    job = running.job(job_id)
    folder = running.folder(job_id)
    with running.database() as database, database.connection() as connection:
        row = connection.execute('SELECT "aiModel" FROM "User" WHERE "id" = %s', (job["userId"],)).fetchone()
    return Moment(
        job=job,
        files=frozenset(path.name for path in folder.iterdir()) if folder.exists() else frozenset(),
        training_runs=tuple(run["id"] for run in running.training_runs(job_id)),
        ai_model=row[0] if row else None,
    )


def wait_for_step(running: Running, job_id: str, since: str, at_least: int) -> None:
    """Wait until the training has reported a step after the newest event with the message `since`."""

    def reached() -> bool:
        row, events = running.row(job_id), running.events(job_id)
        assert row.status not in (JobStatus.COMPLETED, JobStatus.FAILED), f"{row.status}: {row.error_message}"
        said = [n for n, event in enumerate(events) if event.message.startswith(since)]
        new = [event.data for event in events[said[-1] :]] if said else []
        return any(data.get("phase") == "train" and data["step"] >= at_least for data in new)

    wait_for(reached, f"step {at_least} of job {job_id}", timeout_s=240 * PATIENCE)


# ---- the misfortunes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ollama_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def ollama_command(running: Running, ollama_port: int) -> Iterator[CommandLine]:
    """The command line of a stack whose CPU worker serves with Ollama; nobody listens on its port yet."""
    command = running.command.with_variables(
        OWNVOICE_SERVING="ollama",
        OLLAMA_BASE_URL=f"http://127.0.0.1:{ollama_port}",
        OWNVOICE_SERVING_WAIT_S="3",
    )
    restart_cpu_worker(running, command)
    yield command
    restart_cpu_worker(running, running.command)


def restart_cpu_worker(running: Running, command: CommandLine) -> None:
    """Replace the worker by one with the variables of `command`: `up` starts again what died."""
    wait_for(lambda: not running.runs_of("worker-cpu"), "the runs of the CPU worker to end")
    before = running.worker("worker-cpu")
    before.kill()
    before.wait(10)
    command("up", timeout_s=300)
    assert running.worker("worker-cpu") != before


@pytest.fixture(scope="module")
def training_killed(
    running: Running, ollama_command: CommandLine, tmp_path_factory: pytest.TempPathFactory
) -> Moment:
    folder = tmp_path_factory.mktemp("olin")
    preset = folder / "short-steps.yaml"
    preset.write_text(SMALL.format(epochs=6, steps=40))
    running.import_sample(OLIN)
    # Odd mail goes through a whole training, not only through the cleaner.
    running.command("import", write_weird_mailbox(folder / "odd.mbox", OLIN), "--user", OLIN)
    job_id = ollama_command("train", OLIN, "--config", preset, "--json").json["id"]
    wait_for_step(running, job_id, "Created", at_least=4)
    wait_for((running.folder(job_id) / "checkpoint" / "state.pt").exists, "a checkpoint")
    (process,) = running.runs_of("worker-gpu")
    process.kill()
    wait_for_step(running, job_id, "The training process died", at_least=5)
    return look(running, job_id)


@pytest.fixture(scope="module")
def flow_killed(running: Running, training_killed: Moment) -> Moment:
    job_id = training_killed.job["id"]
    running.run_process(job_id).kill()
    wait_for_step(running, job_id, "Queued again", at_least=6)
    return look(running, job_id)


@pytest.fixture(scope="module")
def unserved(running: Running, flow_killed: Moment) -> Moment:
    job_id = flow_killed.job["id"]
    running.wait_for_job(job_id, "FAILED")
    return look(running, job_id)


@pytest.fixture(scope="module")
def ollama(
    tmp_path_factory: pytest.TempPathFactory, unserved: Moment, ollama_port: int
) -> Iterator[OllamaServer]:
    with OllamaServer(tmp_path_factory.mktemp("ollama"), port=ollama_port) as server:
        server.preload_base(find_base_model("smollm2-135m").ollama_name, smollm2_gguf())
        yield server


@pytest.fixture(scope="module")
def published(
    running: Running, unserved: Moment, ollama: OllamaServer, ollama_command: CommandLine
) -> Moment:
    ollama_command("retry", unserved.job["id"], "--follow", "--json", timeout_s=TRAIN_S)
    return look(running, unserved.job["id"])


# ---- what people see ---------------------------------------------------------------------------------


def test_training_whose_process_is_killed_goes_on_by_itself(training_killed: Moment) -> None:
    job = training_killed.job
    assert (job["status"], job["errorCode"], job["attempts"]) == ("TRAINING", None, 1)
    told = [event for event in job["events"] if event["message"].startswith("The training process died")]
    assert [(event["level"], "attempt 2 of 3" in event["message"]) for event in told] == [("warn", True)]
    assert len(training_killed.training_runs) == 2
    assert training_killed.ai_model is None


def test_job_whose_flow_is_killed_goes_on_by_itself_in_another_run(
    training_killed: Moment, flow_killed: Moment
) -> None:
    job = flow_killed.job
    assert (job["status"], job["errorCode"], job["attempts"]) == ("TRAINING", None, 2)
    assert job["flowRunId"] != training_killed.job["flowRunId"]
    told = [event for event in job["events"] if event["message"].startswith("Queued again")]
    assert len(told) == 1 and "died at stage train" in told[0]["message"]
    assert flow_killed.ai_model is None


def test_killed_training_resumed_from_its_checkpoint_each_time(running: Running, unserved: Moment) -> None:
    training = json.loads((running.folder(unserved.job["id"]) / "metrics.json").read_text())["training"]
    assert 0 < training["resumedFromStep"] < 40
    assert training["steps"] == unserved.job["metrics"]["steps"] == 40
    assert len(unserved.training_runs) == 3


def test_absent_serving_engine_fails_the_job_and_keeps_its_adapter(
    unserved: Moment, ollama_port: int
) -> None:
    job = unserved.job
    assert (job["status"], job["errorCode"], job["stage"]) == ("FAILED", "SERVING_UNAVAILABLE", "evaluate")
    assert f"127.0.0.1:{ollama_port}" in job["errorMessage"]
    assert {"adapter", "adapter.gguf", "metrics.json", "run.json"} <= unserved.files
    assert unserved.ai_model is None


def test_retry_publishes_the_kept_adapter_without_training_again(unserved: Moment, published: Moment) -> None:
    job = published.job
    assert (job["status"], job["outcome"]) == ("COMPLETED", "PROMOTED")
    assert published.ai_model == job["modelName"] == f"emailai-{job['userId']}:v1"
    assert published.training_runs == unserved.training_runs and published.training_runs
    assert job["timings"]["train"] == unserved.job["timings"]["train"]
    assert job["adapterDigest"] == unserved.job["adapterDigest"]
    assert not {"dataset.jsonl", "held_out.jsonl", "outputs.json", "checkpoint"} & published.files


def test_write_answers_through_the_engine_that_the_settings_name(
    published: Moment, ollama: OllamaServer, ollama_command: CommandLine
) -> None:
    asked = len(ollama.requests)
    answer = ollama_command(
        "write", OLIN, "Write an email about: the paint is late", "--max-tokens", "30", "--json"
    )
    assert answer.json["model"] == published.job["modelName"] and answer.json["text"].strip()
    chats = [request.json for request in ollama.requests[asked:] if request.path == "/api/chat"]
    assert [chat["model"] for chat in chats if chat] == [published.job["modelName"]]


def test_serving_engine_away_while_writing_is_one_sentence(
    published: Moment, running: Running, ollama_command: CommandLine
) -> None:
    nobody = running.command.with_variables(OLLAMA_BASE_URL="http://127.0.0.1:9")
    error = nobody("write", OLIN, "Write an email about: the paint is late", "--json", code=1).error
    assert error["code"] == "SERVING_UNAVAILABLE"
    assert "127.0.0.1:9" in error["message"]
