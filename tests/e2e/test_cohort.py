"""Eight people in one run: each trainer loads the base once, and what happens to one happens to nobody else.

Their rows are what the app writes: PENDING, nobody's yet. One data set is spoilt after it was prepared, and
one job is cancelled while it waits for its turn.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest

from store import jobs, users
from tasks.trainers import decide_trainers, usable_cores
from tests.e2e.stack import SMALL, TRAIN_S, Running, wait_for
from training.config import load_train_config
from training.schemas import JobStatus, Trigger

pytestmark = pytest.mark.slow

PEOPLE = [f"person{n}@example.net" for n in range(1, 9)]
POISONED, CANCELLED = 2, 7
SPOILT = "marsupilami"
"""Stands for mail text in the data set that cannot be read."""
STARTED_WITHIN_S = 15.0


class Cohort(NamedTuple):
    """The eight jobs as they ended, in the order of their rows."""

    jobs: list[dict[str, Any]]
    runs: list[dict[str, Any]]
    """Their GPU flow runs."""
    row_to_run_s: float


@pytest.fixture(scope="module")
def cohort(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cohort]:
    preset = tmp_path_factory.mktemp("cohort") / "few-steps.yaml"
    preset.write_text(SMALL.format(epochs=1, steps=6))
    config = load_train_config(str(preset))
    for email in PEOPLE:
        running.import_sample(email)
    with running.database() as db:
        made = [
            jobs.create_job(
                db,
                users.find_user(db, email).id,
                base_model="smollm2-135m",
                config=config.model_dump(mode="json"),
                lora_rank=config.lora.rank,
                lora_alpha=config.lora.alpha,
                trigger=Trigger.APP,
            )
            for email in PEOPLE
        ]
    ids = [job.id for job in made]
    tell_of_waiting_rows(running)
    spoilt = running.folder(ids[POISONED])
    wait_for((spoilt / "report.json").exists, "the data set to spoil")
    (spoilt / "dataset.jsonl").write_text(f'{{"{SPOILT}":')
    wait_for(lambda: running.row(ids[0]).status == JobStatus.TRAINING or None, "the training to begin")
    running.command("cancel", ids[CANCELLED], "--json")
    wait_for(
        lambda: all(running.row(id).status.is_final for id in ids) or None,
        "all eight to end",
        timeout_s=2 * TRAIN_S,
    )
    ended = [running.job(id) for id in ids]
    first_run = running.prefect(f"flow_runs/{ended[0]['flowRunId']}")
    made_at = datetime.fromisoformat(ended[-1]["createdAt"])
    begun = datetime.fromisoformat(first_run["start_time"].replace("Z", "+00:00"))
    yield Cohort(ended, running.training_runs(ids[0]), (begun - made_at).total_seconds())


def tell_of_waiting_rows(running: Running) -> None:
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "ownvoice.job.created",
        "resource": {"prefect.resource.id": "ownvoice.jobs"},
        "payload": {},
        "related": [],
    }
    url = f"{running.written['prefectApiUrl']}/events"
    assert httpx.post(url, json=[event], timeout=30).status_code == 204


def test_six_of_eight_are_served_and_two_ended_for_their_own_reasons(cohort: Cohort) -> None:
    ends = [(job["status"], job["outcome"] or job["errorCode"]) for job in cohort.jobs]
    assert ends[POISONED] == ("FAILED", "CONFIG")
    assert ends[CANCELLED][0] == "CANCELLED"
    others = [end for n, end in enumerate(ends) if n not in (POISONED, CANCELLED)]
    assert others == [("COMPLETED", "PROMOTED")] * 6


def test_all_eight_shared_one_run_on_each_pool_and_each_trainer_loaded_the_base_once(
    running: Running, cohort: Cohort
) -> None:
    assert len({job["flowRunId"] for job in cohort.jobs}) == 1
    (run,) = cohort.runs
    assert sorted(tag for tag in run["tags"] if tag.startswith("job:")) == sorted(
        f"job:{job['id']}" for job in cohort.jobs
    )
    body = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
    messages = [line["message"] for line in running.prefect_all("logs/filter", body)]
    loads = sum(message.startswith("loaded smollm2-135m") for message in messages)
    short_of_memory = any(message.startswith("One process trains all") for message in messages)
    assert loads == (1 if short_of_memory else decide_trainers(len(PEOPLE), usable_cores()))
    served = [job["metrics"] for job in cohort.jobs if job["status"] == "COMPLETED"]
    assert {(metrics["trainers"], metrics["device"]) for metrics in served} == {
        (loads, "cpu (1 thread)" if loads > 1 else served[0]["device"])
    }


def test_each_person_has_progress_and_cost_of_their_own(running: Running, cohort: Cohort) -> None:
    artifacts = {
        item["key"]: item
        for item in running.prefect_all("artifacts/latest/filter")
        if item["key"] is not None
    }
    for number, job in enumerate(cohort.jobs):
        if number in (POISONED, CANCELLED):
            continue
        steps = [event["data"]["step"] for event in job["events"] if "step" in event["data"]]
        assert steps == sorted(steps) and steps[-1] == 6
        assert artifacts[f"progress-{job['id']}"]["data"] == job["progress"] == 100


def test_spoilt_data_set_is_named_without_its_text(cohort: Cohort) -> None:
    job = cohort.jobs[POISONED]
    assert job["errorCode"] == "CONFIG" and "Line 1 of the data set" in job["errorMessage"]
    assert SPOILT not in str(job)


def test_cancelled_job_leaves_nothing_behind(running: Running, cohort: Cohort) -> None:
    assert not running.folder(cohort.jobs[CANCELLED]["id"]).exists()
    email = PEOPLE[CANCELLED]
    assert running.command("train", email, "--config", "cpu-smoke", "--json").json["status"] == "PENDING"
    (job,) = [job for job in running.command("jobs", email, "--json").json if job["version"] == 2]
    running.command("cancel", job["id"], "--json")


def test_rows_of_the_app_are_started_within_fifteen_seconds_by_the_event(cohort: Cohort) -> None:
    assert cohort.row_to_run_s < STARTED_WITHIN_S
