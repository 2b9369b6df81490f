"""Who works on which job: claimed once, taken up once, found again when its run is lost."""

from __future__ import annotations

import threading

import pytest

from store import dispatch, jobs
from store.database import Database, open_database
from store.outbox import claim_messages
from store.users import create_user
from training.errors import InvalidTransition, UnknownJob
from training.schemas import Job, JobStatus, Stage


def make_job(db: Database, name: str, *, base_model: str = "tiny", claimed: bool = False) -> Job:
    user = create_user(db, f"{name}@example.org", consent=True)
    return jobs.create_job(
        db, user.id, base_model=base_model, config={}, lora_rank=8, lora_alpha=16.0, claimed=claimed
    )


def let_lease_pass(db: Database, job_id: str) -> None:
    with db.connection() as connection:
        connection.execute(
            'UPDATE "FineTuningJob" SET "dispatchedAt" = "dispatchedAt" - interval \'61 s\' WHERE "id" = %s',
            (job_id,),
        )


@pytest.fixture
def job(db: Database) -> Job:
    return make_job(db, "anna")


# ---- claiming ----------------------------------------------------------------------------------------


def test_waiting_jobs_are_claimed_oldest_first_and_once(db: Database, job: Job) -> None:
    second = make_job(db, "bert")
    assert [claimed.id for claimed in dispatch.claim_pending(db)] == [job.id, second.id]
    assert dispatch.claim_pending(db) == []


def test_six_dispatchers_at_once_claim_every_job_exactly_once(db: Database, database_url: str) -> None:
    expected = {make_job(db, f"user{n}").id for n in range(40)}
    claimed: list[str] = []
    start = threading.Barrier(6)

    def claim() -> None:
        with open_database(database_url, max_connections=1) as own:
            start.wait()
            while found := dispatch.claim_pending(own, limit=3):
                claimed.extend(job.id for job in found)

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == sorted(expected)


def test_claim_of_a_dispatcher_that_died_passes_to_the_next(db: Database, job: Job) -> None:
    dispatch.claim_pending(db)
    let_lease_pass(db, job.id)
    assert [again.id for again in dispatch.claim_pending(db)] == [job.id]


def test_released_claim_is_free_at_once(db: Database, job: Job) -> None:
    dispatch.claim_pending(db)
    dispatch.release_claim(db, [job.id])
    assert [again.id for again in dispatch.claim_pending(db)] == [job.id]


def test_job_whose_maker_starts_it_and_one_to_be_cancelled_are_not_claimed(db: Database) -> None:
    make_job(db, "anna", claimed=True)
    stopped = make_job(db, "bert")
    with db.connection() as connection:
        connection.execute(
            'UPDATE "FineTuningJob" SET "cancelRequested" = true WHERE "id" = %s', (stopped.id,)
        )
    assert dispatch.claim_pending(db) == []


def test_bound_job_is_claimed_by_nobody_however_late_its_run_starts(db: Database, job: Job) -> None:
    dispatch.claim_pending(db)
    dispatch.bind_run(db, [job.id], "run-1")
    let_lease_pass(db, job.id)
    assert dispatch.claim_pending(db) == []
    assert [found.id for found in dispatch.jobs_of_run(db, "run-1")] == [job.id]


# ---- taking up ---------------------------------------------------------------------------------------


def test_one_run_takes_a_job_up_and_the_other_is_told_which(db: Database, job: Job) -> None:
    assert dispatch.take_up(db, job.id, "run-1").attempts == 1
    assert dispatch.take_up(db, job.id, "run-1").flow_run_id == "run-1"
    with pytest.raises(InvalidTransition, match="run-1"):
        dispatch.take_up(db, job.id, "run-2")
    dispatch.bind_run(db, [job.id], "run-2")
    assert jobs.find_job(db, job.id).flow_run_id == "run-1"


def test_ended_and_unknown_jobs_are_taken_up_by_nobody(db: Database, job: Job) -> None:
    jobs.fail_job(db, job.id, "X", "x")
    with pytest.raises(InvalidTransition, match="already ended"):
        dispatch.take_up(db, job.id, "run-1")
    with pytest.raises(UnknownJob):
        dispatch.take_up(db, "j-none", "run-1")


def test_twelve_runs_at_once_make_one_the_worker(db: Database, database_url: str, job: Job) -> None:
    won: list[str] = []
    start = threading.Barrier(12)

    def take(name: str) -> None:
        with open_database(database_url, max_connections=1) as own:
            start.wait()
            try:
                dispatch.take_up(own, job.id, name)
            except InvalidTransition:
                return
            won.append(name)

    threads = [threading.Thread(target=take, args=(f"run-{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [jobs.find_job(db, job.id).flow_run_id] == won


# ---- lost runs ---------------------------------------------------------------------------------------


def test_unfinished_jobs_are_those_with_a_run_or_a_wish_to_stop(db: Database, job: Job) -> None:
    assert dispatch.list_unfinished(db) == []
    dispatch.take_up(db, job.id, "run-1")
    assert [found.id for found in dispatch.list_unfinished(db)] == [job.id]
    assert dispatch.list_unfinished(db, quiet_s=60) == []
    jobs.fail_job(db, job.id, "X", "x")
    assert dispatch.list_unfinished(db) == []


@pytest.mark.parametrize("stage", Stage)
def test_job_of_a_vanished_run_waits_again_with_its_finished_stages(
    db: Database, job: Job, stage: Stage
) -> None:
    dispatch.take_up(db, job.id, "run-1")
    jobs.enter_stage(db, job.id, stage)
    waiting = dispatch.requeue_vanished(db, job.id, "run-1", "Its flow run is gone.")
    assert waiting is not None
    assert (waiting.status, waiting.stage, waiting.flow_run_id) == (JobStatus.PENDING, stage, None)
    assert [claimed.id for claimed in dispatch.claim_pending(db)] == [job.id]
    assert dispatch.take_up(db, job.id, "run-2").attempts == 2
    assert jobs.enter_stage(db, job.id, stage).stage is stage


def test_job_that_another_run_has_meanwhile_or_that_ended_is_left_alone(db: Database, job: Job) -> None:
    dispatch.take_up(db, job.id, "run-1")
    assert dispatch.requeue_vanished(db, job.id, "run-0", "gone") is None
    jobs.mark_cancelled(db, job.id)
    assert dispatch.requeue_vanished(db, job.id, "run-1", "gone") is None
    assert jobs.find_job(db, job.id).status is JobStatus.CANCELLED


def test_job_that_loses_every_run_ends_failed_with_the_way_on(db: Database, job: Job) -> None:
    for attempt in range(1, dispatch.MAX_ATTEMPTS + 1):
        dispatch.take_up(db, job.id, f"run-{attempt}")
        last = dispatch.requeue_vanished(db, job.id, f"run-{attempt}", "Its flow run is gone.")
    assert last is not None
    assert (last.status, last.error_code) == (JobStatus.FAILED, "FLOW_VANISHED")
    assert f"attempt {dispatch.MAX_ATTEMPTS} of" in str(last.error_message)
    assert f"ownvoice retry {job.id}" in str(last.error_message)
    assert [message.event for message in claim_messages(db)][-1:] == ["job.failed"]
    assert jobs.requeue_job(db, job.id).attempts == 0
