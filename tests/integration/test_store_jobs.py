"""The state machine of a job as PostgreSQL enforces it."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from store import jobs
from store.database import Database
from store.dispatch import take_up
from store.outbox import claim_messages, mark_delivered, postpone_message
from store.users import create_user, find_user, withdraw_consent
from training.errors import (
    ConfigError,
    InvalidTransition,
    JobAlreadyActive,
    NoConsent,
    TrainingCancelled,
    UnknownJob,
    UnknownUser,
)
from training.schemas import (
    ALLOWED_TRANSITIONS,
    STAGE_STATUS,
    EventLevel,
    Job,
    JobMetrics,
    JobStatus,
    Outcome,
    Stage,
    Trigger,
)

DIGEST = "sha256:" + "ab" * 32


@pytest.fixture
def anna(db: Database) -> str:
    return create_user(db, "anna@example.org", user_id="u-anna", consent=True).id


def make_job(db: Database, user_id: str = "u-anna", **options: Any) -> Job:
    return jobs.create_job(
        db, user_id, **{"base_model": "tiny", "config": {}, "lora_rank": 8, "lora_alpha": 16.0, **options}
    )


def put_status(db: Database, job_id: str, status: JobStatus) -> None:
    with db.connection() as connection:
        connection.execute('UPDATE "FineTuningJob" SET "status" = %s WHERE "id" = %s', (status, job_id))


def promote(db: Database, job: Job) -> Job:
    jobs.enter_stage(db, job.id, Stage.PUBLISH)
    return jobs.complete_job(
        db, job.id, Outcome.PROMOTED, ai_provider="ollama", ai_model=f"emailai-anna:v{job.version}"
    )


def queued(db: Database) -> list[tuple[str, str, str | None]]:
    """Event, job and outcome of every webhook, oldest first."""
    with db.connection() as connection:
        return connection.execute(
            """SELECT "event", "jobId", "payload" ->> 'outcome' FROM "Outbox" ORDER BY "id" """
        ).fetchall()


# ---- making ----------------------------------------------------------------------------------------


def test_new_job_is_pending_with_the_next_version(db: Database, anna: str) -> None:
    job = make_job(db, config={"epochs": 3}, trigger=Trigger.APP)
    assert (job.status, job.version, job.progress) == (JobStatus.PENDING, 1, 0)
    assert (job.config, job.trigger, job.lora_rank, job.lora_alpha) == ({"epochs": 3}, "app", 8, 16.0)
    assert job.id == job.id.lower() and job.created_at is not None and job.created_at.tzinfo is not None
    jobs.fail_job(db, job.id, "X", "x")
    assert make_job(db).version == 2


def test_second_active_job_is_refused_naming_the_first(db: Database, anna: str) -> None:
    first = make_job(db)
    with pytest.raises(JobAlreadyActive, match=f"{first.id}.*PENDING") as refused:
        make_job(db)
    assert refused.value.job_id == first.id


def test_two_callers_at_once_make_exactly_one_job(db: Database, anna: str) -> None:
    barrier, results = threading.Barrier(8), list[str]()

    def call() -> None:
        barrier.wait()
        try:
            results.append(make_job(db).id)
        except JobAlreadyActive as refusal:
            results.append(f"refused for {refusal.job_id}")

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [result for result in results if not result.startswith("refused")]
    assert results.count(f"refused for {winner}") == 7


def test_index_refuses_a_second_active_job_that_skips_our_lock(db: Database, anna: str) -> None:
    make_job(db)
    with db.connection() as connection, pytest.raises(psycopg.errors.UniqueViolation, match="one_active"):
        connection.execute(
            """
            INSERT INTO "FineTuningJob" ("id", "userId", "baseModel", "version")
            VALUES ('j-x', 'u-anna', 'b', 9)
            """
        )


def test_same_idempotency_key_returns_the_same_job_even_when_it_has_ended(db: Database, anna: str) -> None:
    first = make_job(db, idempotency_key="monday")
    assert make_job(db, idempotency_key="monday").id == first.id
    jobs.fail_job(db, first.id, "X", "x")
    assert make_job(db, idempotency_key="monday").id == first.id
    bert = create_user(db, "bert@example.org")
    with pytest.raises(ConfigError, match="another user"):
        make_job(db, bert.id, idempotency_key="monday")


def test_job_of_unknown_user_is_refused(db: Database) -> None:
    with pytest.raises(UnknownUser):
        make_job(db, "u-nobody")


def test_job_is_found_by_unique_prefix_of_six_characters(db: Database, anna: str) -> None:
    job = make_job(db)
    assert jobs.find_job(db, job.id[:8]).id == job.id
    with pytest.raises(UnknownJob):
        jobs.find_job(db, job.id[:5])
    with pytest.raises(UnknownJob, match="ownvoice jobs"):
        jobs.find_job(db, "j%%%%%%%")


def test_ambiguous_prefix_is_refused(db: Database, anna: str) -> None:
    with db.connection() as connection:
        connection.execute(
            """INSERT INTO "FineTuningJob" ("id", "userId", "baseModel", "version", "status") VALUES
               ('jaaaaaaa1', 'u-anna', 'b', 1, 'FAILED'), ('jaaaaaaa2', 'u-anna', 'b', 2, 'FAILED')"""
        )
    with pytest.raises(UnknownJob, match="more characters"):
        jobs.find_job(db, "jaaaaaaa")
    assert jobs.find_job(db, "jaaaaaaa1").version == 1
    assert [job.version for job in jobs.list_jobs(db, anna)] == [2, 1]
    assert jobs.list_jobs(db, "u-nobody") == [] and len(jobs.list_jobs(db, limit=1)) == 1


# ---- the state machine -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", list(JobStatus))
@pytest.mark.parametrize("stage", list(Stage))
def test_stage_is_entered_only_where_the_table_allows_it(
    db: Database, anna: str, status: JobStatus, stage: Stage
) -> None:
    job = make_job(db)
    put_status(db, job.id, status)
    target = STAGE_STATUS[stage]
    if target in ALLOWED_TRANSITIONS[status] or target is status:
        assert jobs.enter_stage(db, job.id, stage).status is target
    else:
        with pytest.raises(InvalidTransition, match=f"is {status}"):
            jobs.enter_stage(db, job.id, stage)
        assert jobs.find_job(db, job.id).status is status


def test_full_run_writes_an_event_for_every_stage_and_moves_forward(db: Database, anna: str) -> None:
    job = make_job(db)
    progress = [jobs.enter_stage(db, job.id, stage).progress for stage in Stage]
    assert progress == sorted(progress) == [10, 20, 30, 85, 90, 95]
    jobs.complete_job(db, job.id, Outcome.NOT_PROVEN, reason="12 of 20 held-out mails")
    done = jobs.find_job(db, job.id)
    assert (done.status, done.outcome, done.progress) == (JobStatus.COMPLETED, Outcome.NOT_PROVEN, 100)
    assert done.started_at and done.completed_at and done.started_at <= done.completed_at
    statuses = [event.data["status"] for event in jobs.events(db, job.id) if event.type == "status"]
    assert statuses == [
        "PENDING",
        "EXTRACTING_DATA",
        "PREPARING_DATA",
        "TRAINING",
        "EVALUATING",
        "DEPLOYING",
        "DEPLOYING",
        "COMPLETED",
    ]


def test_progress_never_moves_backwards_and_stops_with_the_job(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.enter_stage(db, job.id, Stage.TRAIN)
    assert jobs.report_progress(db, job.id, 55, {"step": 10, "loss": 2.5})
    assert jobs.report_progress(db, job.id, 40)
    assert jobs.enter_stage(db, job.id, Stage.TRAIN).progress == 55
    assert jobs.events(db, job.id)[-2].data == {"step": 10, "loss": 2.5, "progress": 55}
    jobs.mark_cancelled(db, job.id)
    assert jobs.report_progress(db, job.id, 60) is None
    assert jobs.find_job(db, job.id).progress == 55
    with pytest.raises(UnknownJob):
        jobs.report_progress(db, "j-none", 1)


def test_events_after_a_moment_are_only_the_later_ones(db: Database, anna: str) -> None:
    job = make_job(db)
    (created,) = jobs.events(db, job.id)
    jobs.add_event(db, job.id, "kept 120 of 200", level=EventLevel.WARN, data={"kept": 120})
    (later,) = jobs.events(db, job.id, after=created.at)
    assert (later.message, later.level, later.data) == ("kept 120 of 200", EventLevel.WARN, {"kept": 120})
    with pytest.raises(UnknownJob):
        jobs.add_event(db, "j-none", "x")


def test_failure_is_kept_once_and_never_replaces_an_end(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.enter_stage(db, job.id, Stage.TRAIN)
    assert jobs.fail_job(db, job.id, "DIVERGED", "The loss became NaN at step 7.")
    assert not jobs.fail_job(db, job.id, "LATER", "later")
    failed = jobs.find_job(db, job.id)
    assert (failed.status, failed.error_code) == (JobStatus.FAILED, "DIVERGED")
    assert jobs.events(db, job.id)[-1].level is EventLevel.ERROR
    with pytest.raises(UnknownJob):
        jobs.fail_job(db, "j-none", "X", "x")


def test_retry_keeps_stage_and_timings_and_clears_the_error(db: Database, anna: str) -> None:
    job = make_job(db)
    take_up(db, job.id, "run-1")
    jobs.enter_stage(db, job.id, Stage.EVALUATE)
    jobs.record(db, job.id, timings={"train": 61.5})
    jobs.fail_job(db, job.id, "SERVING", "no answer")
    again = jobs.requeue_job(db, job.id)
    assert (again.status, again.stage, again.timings) == (JobStatus.PENDING, Stage.EVALUATE, {"train": 61.5})
    assert (again.error_code, again.error_message, again.completed_at, again.flow_run_id) == (None,) * 4
    assert jobs.enter_stage(db, job.id, Stage.EVALUATE).status is JobStatus.EVALUATING


def test_retry_is_refused_for_a_running_job_and_beside_another_active_one(db: Database, anna: str) -> None:
    old = make_job(db)
    with pytest.raises(InvalidTransition):
        jobs.requeue_job(db, old.id)
    jobs.fail_job(db, old.id, "X", "x")
    new = make_job(db)
    with pytest.raises(JobAlreadyActive, match=new.id):
        jobs.requeue_job(db, old.id)
    with pytest.raises(UnknownJob):
        jobs.requeue_job(db, "j-none")


def test_cancel_ends_a_waiting_job_at_once(db: Database, anna: str) -> None:
    job = make_job(db)
    assert jobs.request_cancel(db, job.id).status is JobStatus.CANCELLED
    assert jobs.is_cancel_requested(db, job.id)
    with pytest.raises(InvalidTransition, match="CANCELLED"):
        jobs.request_cancel(db, job.id)


def test_cancel_of_a_running_job_is_a_request_that_the_run_honours(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.enter_stage(db, job.id, Stage.TRAIN)
    assert not jobs.is_cancel_requested(db, job.id)
    assert jobs.request_cancel(db, job.id).status is JobStatus.TRAINING
    assert jobs.request_cancel(db, job.id).cancel_requested and jobs.is_cancel_requested(db, job.id)
    assert [event.message for event in jobs.events(db, job.id)].count("Cancel requested") == 1
    assert jobs.mark_cancelled(db, job.id).status is JobStatus.CANCELLED
    assert jobs.mark_cancelled(db, job.id).status is JobStatus.CANCELLED


# ---- facts and the end -----------------------------------------------------------------------------


def test_recorded_metrics_and_timings_are_merged(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.record(db, job.id, metrics=JobMetrics(held_out_emails=20), timings={"extract": 1.0})
    jobs.record(db, job.id, metrics={"steps": 60}, timings={"train": 2.0}, training_emails=180)
    got = jobs.record(db, job.id, adapter_size=9_000_000_000, adapter_digest=DIGEST, estimated_cost=0.25)
    assert (got.metrics.held_out_emails, got.metrics.steps, got.training_emails) == (20, 60, 180)
    assert got.timings == {"extract": 1.0, "train": 2.0}
    assert (got.adapter_size, got.adapter_digest, got.estimated_cost) == (9_000_000_000, DIGEST, 0.25)


def test_record_writes_no_column_that_the_state_machine_owns(db: Database, anna: str) -> None:
    job = make_job(db)
    with pytest.raises(TypeError, match="status"):
        jobs.record(db, job.id, status="COMPLETED")
    with pytest.raises(UnknownJob):
        jobs.record(db, "j-none", training_emails=1)


def test_promotion_moves_user_job_event_and_webhook_together(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.record(db, job.id, adapter_path="jobs/x/adapter.gguf", adapter_digest=DIGEST)
    done = promote(db, job)
    user = find_user(db, anna)
    assert (done.status, done.outcome, done.model_name) == (
        JobStatus.COMPLETED,
        Outcome.PROMOTED,
        "emailai-anna:v1",
    )
    assert (user.ai_provider, user.ai_model) == ("ollama", "emailai-anna:v1")
    assert (user.lora_adapter_id, user.lora_adapter_path) == (job.id, "jobs/x/adapter.gguf")
    assert user.adapter_training_count == 1
    assert user.adapter_last_trained and user.adapter_next_training
    assert (user.adapter_next_training - user.adapter_last_trained).days == 30
    current = jobs.current_adapter(db, anna)
    assert current is not None and current.id == job.id
    assert queued(db)[-1] == ("job.completed", job.id, "PROMOTED")


def test_lost_answer_of_a_promotion_is_repeated_without_counting_twice(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.enter_stage(db, job.id, Stage.PUBLISH)
    for _ in range(2):
        jobs.complete_job(db, job.id, Outcome.PROMOTED, ai_provider="ollama", ai_model="m:v1")
    assert find_user(db, anna).adapter_training_count == 1
    assert [event for event, _, _ in queued(db)] == ["job.deploying", "job.completed"]


def test_kept_adapter_stays_and_only_the_next_date_moves(db: Database, anna: str) -> None:
    first = promote(db, make_job(db))
    second = make_job(db)
    jobs.enter_stage(db, second.id, Stage.EVALUATE)
    jobs.complete_job(db, second.id, Outcome.KEPT_CURRENT)
    user = find_user(db, anna)
    assert (user.lora_adapter_id, user.ai_model, user.adapter_training_count) == (
        first.id,
        "emailai-anna:v1",
        1,
    )
    assert user.adapter_next_training and user.adapter_last_trained
    assert user.adapter_last_trained == first.completed_at


@pytest.mark.parametrize("status", sorted(set(JobStatus) - {JobStatus.EVALUATING, JobStatus.DEPLOYING}))
def test_job_completes_only_after_evaluation(db: Database, anna: str, status: JobStatus) -> None:
    job = make_job(db)
    put_status(db, job.id, status)
    with pytest.raises(InvalidTransition):
        jobs.complete_job(db, job.id, Outcome.KEPT_CURRENT)


def test_promotion_without_consent_changes_nothing(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.enter_stage(db, job.id, Stage.PUBLISH)
    withdraw_consent(db, anna)
    with pytest.raises(NoConsent, match=job.id):
        promote(db, job)
    assert jobs.find_job(db, job.id).status is JobStatus.DEPLOYING
    assert find_user(db, anna).ai_model is None
    assert [event for event, _, _ in queued(db)] == ["job.deploying"]


def test_cancel_wins_over_promotion(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.enter_stage(db, job.id, Stage.PUBLISH)
    jobs.request_cancel(db, job.id)
    with pytest.raises(TrainingCancelled):
        promote(db, job)
    assert find_user(db, anna).lora_adapter_id is None


def test_promotion_needs_the_served_name(db: Database, anna: str) -> None:
    job = make_job(db)
    jobs.enter_stage(db, job.id, Stage.PUBLISH)
    with pytest.raises(ConfigError):
        jobs.complete_job(db, job.id, Outcome.PROMOTED)
    with pytest.raises(UnknownJob):
        jobs.complete_job(db, "j-none", Outcome.NOT_PROVEN)


def test_rollback_makes_an_older_promoted_version_current(db: Database, anna: str) -> None:
    first, second = promote(db, make_job(db)), promote(db, make_job(db))
    third = make_job(db)
    jobs.fail_job(db, third.id, "X", "x")
    current = jobs.current_adapter(db, anna)
    assert current is not None and current.id == second.id
    jobs.activate_version(db, first.id, ai_provider="ollama", ai_model="emailai-anna:v1")
    assert find_user(db, anna).lora_adapter_id == first.id
    with pytest.raises(InvalidTransition, match="promoted"):
        jobs.activate_version(db, third.id, ai_provider="ollama", ai_model="x")


def test_outbox_message_comes_again_until_it_is_delivered(db: Database, anna: str) -> None:
    jobs.fail_job(db, make_job(db).id, "X", "x")
    (message,) = claim_messages(db)
    assert claim_messages(db) == []
    postpone_message(db, message, "HTTP 503", delay_s=0)
    (again,) = claim_messages(db)
    assert (again.id, again.attempts, again.event) == (message.id, 2, "job.failed")
    mark_delivered(db, again)
    postpone_message(db, again, "late", delay_s=-1)
    assert claim_messages(db) == []


def test_app_is_told_of_every_change_of_status_once(db: Database, anna: str) -> None:
    job = make_job(db)
    for stage in Stage:
        jobs.enter_stage(db, job.id, stage)
        jobs.enter_stage(db, job.id, stage)  # a run that resumes
        jobs.report_progress(db, job.id, 50, {"step": 1})
    jobs.request_cancel(db, job.id)
    jobs.fail_job(db, job.id, "SERVING", "no answer")
    jobs.requeue_job(db, job.id)
    jobs.enter_stage(db, job.id, Stage.PUBLISH)
    jobs.mark_cancelled(db, job.id)
    told = ["extracting_data", "preparing_data", "training", "evaluating", "deploying"]
    told += ["failed", "pending", "deploying", "cancelled"]
    assert [event for event, _, _ in queued(db)] == [f"job.{status}" for status in told]
    with db.connection() as connection:
        first = connection.execute('SELECT "payload" FROM "Outbox" ORDER BY "id" LIMIT 1').fetchone()
    assert first is not None
    assert (first[0]["stage"], first[0]["status"], first[0]["progress"]) == ("extract", "EXTRACTING_DATA", 10)


def test_erasing_a_user_takes_jobs_events_and_webhooks_along(db: Database, anna: str) -> None:
    promote(db, make_job(db))
    with db.connection() as connection:
        connection.execute('DELETE FROM "User" WHERE "id" = %s', (anna,))
        for table in ("FineTuningJob", "FineTuningEvent", "Outbox", "EmailAccount", "MailCount"):
            assert connection.execute(f'SELECT count(*) FROM "{table}"').fetchone() == (0,)
