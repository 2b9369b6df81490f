"""Dispatching against a real Prefect server: waiting rows get a run, lost ones get another, nobody gets two.

No worker runs here: what is started stays Scheduled, and the tests put runs into the states that faults
would have left them in.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from store import dispatch, jobs, users
from store.database import Database
from tasks import tools
from tests.prefect_server import prefect_server, used_by_flows
from training.config import load_train_config
from training.schemas import Job, JobStatus, Stage, Trigger

BASE, OTHER_BASE = "smollm2-135m", "llama-3.1-8b"


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """A server of its own, which knows our deployments and automations."""
    with prefect_server() as started:
        assert started.register().returncode == 0
        with used_by_flows(started):
            yield


@pytest.fixture(autouse=True)
def hurried(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.dispatch.QUIET_S", 0.0)


def make_job(db: Database, name: str, base: str = BASE, trigger: Trigger = Trigger.APP) -> Job:
    user = users.create_user(db, f"{name}@example.org", user_id=f"u-{name}", consent=True)
    preset = load_train_config("cpu-smoke")
    return jobs.create_job(
        db,
        user.id,
        base_model=base,
        config=preset.model_dump(mode="json"),
        lora_rank=preset.lora.rank,
        lora_alpha=preset.lora.alpha,
        trigger=trigger,
    )


def dispatch_now(**parameters: Any) -> dict[str, int]:
    from flows.dispatch_jobs import dispatch_jobs

    result: dict[str, int] = dispatch_jobs(**parameters)
    return result


def run_of(job: Job) -> Any:
    from prefect.client.orchestration import get_client

    assert job.flow_run_id is not None
    with get_client(sync_client=True) as client:
        return client.read_flow_run(UUID(job.flow_run_id))


def deployment_of(run: Any) -> str:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return client.read_flow(run.flow_id).name


def put_run(job: Job, state: Any) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(str(job.flow_run_id)), state, force=True)


# ---- starting ----------------------------------------------------------------------------------------


def test_lone_row_gets_a_run_of_its_person(db: Database) -> None:
    job = make_job(db, "anna")
    assert dispatch_now()["runs"] == 1
    run = run_of(jobs.find_job(db, job.id))
    assert deployment_of(run) == "train-user"
    assert run.parameters == {"user_id": "u-anna", "job_id": job.id, "trigger": "app"}
    assert "user:u-anna" in run.tags and run.parent_task_run_id is None


def test_rows_of_one_base_model_share_a_run_up_to_the_cohort_size(db: Database) -> None:
    made = [make_job(db, f"user{n}") for n in range(5)]
    other = make_job(db, "ben", OTHER_BASE)
    assert dispatch_now(cohort_size=3) == {"queuedAgain": 0, "ended": 0, "jobs": 6, "runs": 3, "webhooks": 0}
    bound = [jobs.find_job(db, job.id) for job in made]
    assert [len({job.flow_run_id for job in bound[:3]}), len({job.flow_run_id for job in bound[3:]})] == [
        1,
        1,
    ]
    run = run_of(bound[0])
    assert deployment_of(run) == "train-cohort"
    assert run.parameters == {"job_ids": [job.id for job in made[:3]], "base_model": BASE}
    assert run_of(jobs.find_job(db, other.id)).parameters["user_id"] == "u-ben"


def test_the_monthly_round_does_not_share_a_run_with_people_who_wait(db: Database) -> None:
    waiting, routine = make_job(db, "anna"), make_job(db, "ben", trigger=Trigger.SCHEDULE)
    assert dispatch_now()["runs"] == 2
    runs = {jobs.find_job(db, job.id).flow_run_id for job in (waiting, routine)}
    assert len(runs) == 2


def test_second_dispatch_starts_nothing_twice(db: Database) -> None:
    job = make_job(db, "anna")
    dispatch_now()
    first = jobs.find_job(db, job.id).flow_run_id
    assert dispatch_now()["jobs"] == 0
    assert jobs.find_job(db, job.id).flow_run_id == first


def test_dispatcher_that_died_before_it_noted_its_run_is_repeated_into_the_same_run(db: Database) -> None:
    from tasks.cohort import start_cohort

    job = make_job(db, "anna")
    (claimed,) = dispatch.claim_pending(db)
    first = start_cohort([job.id], BASE)
    with db.connection() as connection:
        connection.execute('UPDATE "FineTuningJob" SET "flowRunId" = NULL WHERE "id" = %s', (job.id,))
    assert start_cohort([claimed.id], BASE) == first


def test_rows_stay_waiting_while_the_prefect_server_is_away(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    def nobody(*_: object, **__: object) -> None:
        raise httpx.ConnectError("refused")

    job = make_job(db, "anna")
    with monkeypatch.context() as away:
        away.setattr("tasks.cohort.run_deployment", nobody)
        assert dispatch_now()["jobs"] == 0
    left = jobs.find_job(db, job.id)
    assert (left.status, left.flow_run_id, left.dispatched_at) == (JobStatus.PENDING, None, None)
    assert dispatch_now()["jobs"] == 1


def test_lingering_dispatcher_takes_rows_that_come_later(db: Database) -> None:
    later = threading.Timer(1.5, make_job, args=(db, "late"))
    later.start()
    assert dispatch_now(linger_s=4)["jobs"] == 1
    later.join()


# ---- lost runs ---------------------------------------------------------------------------------------


@pytest.fixture
def started(db: Database) -> Job:
    """A job that its run took up and brought to the training."""
    job = make_job(db, "anna")
    dispatch_now()
    job = jobs.find_job(db, job.id)
    dispatch.take_up(db, job.id, str(job.flow_run_id))
    return jobs.enter_stage(db, job.id, Stage.EVALUATE)


def test_live_run_is_left_alone(db: Database, started: Job) -> None:
    from prefect.states import Running

    put_run(started, Running())
    assert dispatch_now()["queuedAgain"] == 0
    assert jobs.find_job(db, started.id) == started


def test_job_whose_run_crashed_goes_on_in_a_new_run(db: Database, started: Job) -> None:
    from prefect.states import Crashed

    put_run(started, Crashed())
    assert dispatch_now() == {"queuedAgain": 1, "ended": 0, "jobs": 1, "runs": 1, "webhooks": 0}
    again = jobs.find_job(db, started.id)
    assert (again.status, again.stage) == (JobStatus.PENDING, Stage.EVALUATE)
    assert again.flow_run_id not in (None, started.flow_run_id)


def test_job_whose_run_the_server_does_not_know_goes_on_in_a_new_run(db: Database) -> None:
    """The Prefect server was reset."""
    job = make_job(db, "anna")
    dispatch.take_up(db, job.id, str(uuid4()))
    jobs.enter_stage(db, job.id, Stage.PREPARE)
    assert dispatch_now()["queuedAgain"] == 1
    assert run_of(jobs.find_job(db, job.id)).parameters["job_id"] == job.id


def test_job_that_loses_every_run_ends_failed(db: Database, started: Job) -> None:
    from prefect.states import Crashed

    for _ in range(dispatch.MAX_ATTEMPTS):
        job = jobs.find_job(db, started.id)
        dispatch.take_up(db, job.id, str(job.flow_run_id))
        put_run(job, Crashed())
        last = dispatch_now()
    assert last["ended"] == 1
    job = jobs.find_job(db, started.id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "FLOW_VANISHED")


def test_job_whose_run_ended_without_a_word_is_failed_with_the_way_on(db: Database, started: Job) -> None:
    from prefect.states import Failed

    put_run(started, Failed())
    assert dispatch_now()["ended"] == 1
    job = jobs.find_job(db, started.id)
    assert (job.status, job.error_code) == (JobStatus.FAILED, "FLOW_VANISHED")
    assert f"ownvoice retry {job.id}" in str(job.error_message)


def test_job_whose_run_was_cancelled_without_its_hook_is_cancelled(db: Database, started: Job) -> None:
    from prefect.states import Cancelled

    put_run(started, Cancelled())
    assert dispatch_now()["ended"] == 1
    assert jobs.find_job(db, started.id).status is JobStatus.CANCELLED


def test_cancelled_job_whose_run_never_got_a_worker_is_ended(db: Database) -> None:
    job = make_job(db, "anna")
    dispatch_now()
    assert jobs.request_cancel(db, job.id).status is JobStatus.PENDING
    assert dispatch_now()["ended"] == 1
    assert jobs.find_job(db, job.id).status is JobStatus.CANCELLED


def test_job_that_is_cancelled_while_it_waits_again_leaves_no_mail(
    db: Database, started: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.dispatch.QUIET_S", 3600.0)
    folder = tools.job_folder(started.id)
    folder.write_text("dataset.jsonl", "mail")
    dispatch.requeue_vanished(db, started.id, started.flow_run_id, "Its process died.")
    assert jobs.request_cancel(db, started.id).status is JobStatus.PENDING
    assert dispatch_now() == {"queuedAgain": 0, "ended": 1, "jobs": 0, "runs": 0, "webhooks": 0}
    assert jobs.find_job(db, started.id).status is JobStatus.CANCELLED
    assert not Path(folder.path).exists()


def test_cancel_on_prefects_page_that_no_worker_hears_reaches_the_job(db: Database, started: Job) -> None:
    from prefect.states import Cancelling, Running

    put_run(started, Running())
    put_run(started, Cancelling())
    assert dispatch_now()["ended"] == 0
    assert jobs.find_job(db, started.id).cancel_requested


def test_run_that_stays_pending_because_its_worker_died_is_given_up(
    db: Database, started: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.states import Pending

    put_run(started, Pending())
    assert dispatch_now()["queuedAgain"] == 0
    monkeypatch.setattr("tasks.dispatch.PENDING_LIMIT_S", 0.0)
    assert dispatch_now()["queuedAgain"] == 1
    assert run_of(started).state.is_crashed()


# ---- taking up ---------------------------------------------------------------------------------------


def test_run_that_comes_second_ends_with_nothing_to_do(db: Database, started: Job) -> None:
    from flows.train_user import train_user

    state = train_user(started.user_id, job_id=started.id, return_state=True)
    assert state.is_completed() and state.name == "NothingToDo"
    assert jobs.find_job(db, started.id) == started


def test_cohort_leaves_a_job_alone_that_another_run_has(db: Database, started: Job) -> None:
    from flows.train_cohort import train_cohort

    assert train_cohort([started.id], BASE) == []
    assert jobs.find_job(db, started.id) == started


def test_cohort_ends_each_job_that_has_too_little_mail_by_itself(db: Database) -> None:
    from flows.train_cohort import train_cohort

    made = [make_job(db, name) for name in ("anna", "ben")]
    users.withdraw_consent(db, made[1].user_id)
    assert train_cohort([job.id for job in made], BASE) == []
    ended = [jobs.find_job(db, job.id) for job in made]
    assert [job.error_code for job in ended] == ["NOT_ENOUGH_MAIL", "NO_CONSENT"]
