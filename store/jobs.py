"""Training jobs: one verb a query, and a state machine that PostgreSQL enforces.

Every change of status is one UPDATE guarded by `status = ANY(allowed)`, with `allowed` derived from
`training.schemas.ALLOWED_TRANSITIONS`, so two processes that disagree cannot both win. Every such change
writes an event and queues a webhook in the same transaction. Messages carry ids and counts.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from store.database import Database
from store.job_rows import (
    ACTIVE,
    COLUMNS,
    ONE_ACTIVE_INDEX,
    add_job_event,
    add_status_event,
    announce,
    cancel,
    many,
    one,
    payload,
    point_user_at,
    refuse,
    refuse_second_active,
    sources,
    update,
    violated,
)
from store.outbox import add_message
from store.users import new_id
from training.errors import (
    ConfigError,
    InvalidTransition,
    NoConsent,
    StoreError,
    TrainingCancelled,
    UnknownJob,
    UnknownUser,
)
from training.schemas import (
    STAGE_PROGRESS,
    STAGE_STATUS,
    EventLevel,
    Job,
    JobEvent,
    JobMetrics,
    JobStatus,
    Outcome,
    Stage,
    Trigger,
)

MIN_PREFIX_CHARS = 6

_RECORDABLE = {
    "training_emails": "trainingEmails",
    "model_name": "modelName",
    "incremental_from": "incrementalFrom",
    "lora_rank": "loraRank",
    "lora_alpha": "loraAlpha",
    "adapter_path": "adapterPath",
    "adapter_size": "adapterSize",
    "adapter_digest": "adapterDigest",
    "estimated_seconds": "estimatedSeconds",
    "estimated_cost": "estimatedCost",
    "actual_cost": "actualCost",
    "sent_count": "sentCount",
    "last_position": "lastPosition",
    "eta_seconds": "etaSeconds",
}
_MERGEABLE = {"config", "metrics", "timings"}


# ---- making and finding ----------------------------------------------------------------------------


def create_job(
    db: Database,
    user_id: str,
    *,
    base_model: str,
    config: dict[str, Any],
    lora_rank: int | None,
    lora_alpha: float | None,
    trigger: Trigger = Trigger.MANUAL,
    idempotency_key: str | None = None,
    claimed: bool = False,
) -> Job:
    """Make the next job of a person; the same `idempotency_key` again returns the job it made first.

    `claimed`: the caller starts its flow run itself, so no dispatcher takes it (see store/dispatch.py).
    Raises UnknownUser, and JobAlreadyActive naming the job that has not ended.
    """
    try:
        with db.transaction() as connection:
            # The lock makes version numbers and the look-up of the active job safe against a second caller.
            user = connection.execute(
                'SELECT 1 FROM "User" WHERE "id" = %s FOR NO KEY UPDATE', (user_id,)
            ).fetchone()
            if user is None:
                raise UnknownUser(f'There is no user with the id "{user_id}".')
            if idempotency_key is not None:
                known = one(connection, 'WHERE j."idempotencyKey" = %s', (idempotency_key,))
                if known is not None and known.user_id != user_id:
                    raise ConfigError(
                        f"The idempotency key was used for another user's job ({known.id}). Use a new key."
                    )
                if known is not None:
                    return known
            refuse_second_active(connection, user_id)
            job = (
                connection.cursor(row_factory=class_row(Job))
                .execute(
                    sql.SQL(
                        """
                        INSERT INTO "FineTuningJob" AS j (
                            "id", "userId", "status", "progress", "trigger", "version", "baseModel",
                            "loraRank", "loraAlpha", "config", "idempotencyKey", "dispatchedAt", "createdAt",
                            "updatedAt"
                        )
                        SELECT %(id)s, %(user)s, 'PENDING', 0, %(trigger)s,
                               1 + coalesce(max("version"), 0), %(base)s, %(rank)s, %(alpha)s, %(config)s,
                               %(key)s, CASE WHEN %(claimed)s THEN now() END, now(), now()
                        FROM "FineTuningJob" WHERE "userId" = %(user)s
                        RETURNING {}
                        """
                    ).format(COLUMNS),
                    {
                        "id": new_id("j"),
                        "user": user_id,
                        "trigger": trigger,
                        "base": base_model,
                        "rank": lora_rank,
                        "alpha": lora_alpha,
                        "config": Jsonb(config),
                        "key": idempotency_key,
                        "claimed": claimed,
                    },
                )
                .fetchone()
            )
            assert job is not None
            add_status_event(connection, job, f"Created as version {job.version}", {"trigger": trigger})
            return job
    except StoreError as exc:
        # The app writes jobs of its own without our lock: the index is the last word.
        if violated(exc) == ONE_ACTIVE_INDEX:
            with db.transaction() as connection:
                refuse_second_active(connection, user_id)
        raise


def find_job(db: Database, job_id: str) -> Job:
    """Return the job with that id, or the only one whose id begins with it (6 characters or more).

    Raises UnknownJob.
    """
    wanted = job_id.strip()
    with db.connection() as connection:
        job = one(connection, 'WHERE j."id" = %s', (wanted,))
        if job is None and len(wanted) >= MIN_PREFIX_CHARS:
            matches = many(
                connection, 'WHERE starts_with(j."id", %s) ORDER BY j."createdAt" DESC LIMIT 2', (wanted,)
            )
            if len(matches) > 1:
                raise UnknownJob(f'More than one job id begins with "{wanted}". Give more characters.')
            job = matches[0] if matches else None
    if job is None:
        raise UnknownJob(
            f'There is no job "{wanted}". `ownvoice jobs` lists them; the first {MIN_PREFIX_CHARS} '
            "characters of an id are enough."
        )
    return job


def list_jobs(db: Database, user_id: str | None = None, limit: int = 50) -> list[Job]:
    """Return the newest `limit` jobs, of one person or of everybody."""
    with db.connection() as connection:
        return many(
            connection,
            """
            WHERE %(user)s::text IS NULL OR j."userId" = %(user)s
            ORDER BY j."createdAt" DESC, j."version" DESC LIMIT %(limit)s
            """,
            {"user": user_id, "limit": limit},
        )


def current_adapter(db: Database, user_id: str) -> Job | None:
    """Return the job whose adapter serves the person now, or None."""
    with db.connection() as connection:
        return one(
            connection,
            'JOIN "User" u ON u."loraAdapterId" = j."id" AND u."id" = j."userId" WHERE u."id" = %s',
            (user_id,),
        )


# ---- the life of a job -----------------------------------------------------------------------------


def enter_stage(db: Database, job_id: str, stage: Stage) -> Job:
    """Note that a stage begins: status, stage, progress and event. Raises InvalidTransition, UnknownJob.

    Entering the stage that the job is in already is allowed: a flow run that resumes does so. The app hears
    of a stage only when the status changed with it.
    """
    status = STAGE_STATUS[stage]
    with db.transaction() as connection:
        before = one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
        job = update(
            connection,
            """
            "status" = %(status)s, "stage" = %(stage)s, "progress" = greatest(j."progress", %(progress)s),
            "startedAt" = coalesce(j."startedAt", now()), "etaSeconds" = NULL
            """,
            job_id,
            [*sources(status), status],
            {"status": status, "stage": stage, "progress": STAGE_PROGRESS[stage]},
        )
        if before is None or job is None:
            refuse(connection, job_id, f"enter the stage {stage}")
        add_status_event(connection, job, f"Stage {stage}", {"stage": stage})
        if job.status is not before.status:
            announce(connection, job)
    return job


def report_progress(
    db: Database,
    job_id: str,
    progress: float,
    data: dict[str, Any] | None = None,
    *,
    eta_seconds: float | None = None,
    cost: float | None = None,
) -> Job | None:
    """Move the progress (percent) forward and keep `data` (numbers only) as a metrics event.

    Progress never moves backwards. `cost` is in US dollars so far. Returns the job, or None, changing
    nothing, when it has ended meanwhile. Raises UnknownJob.
    """
    with db.transaction() as connection:
        job = update(
            connection,
            """
            "progress" = greatest(j."progress", least(greatest(%(progress)s::float8, 0), 100)),
            "etaSeconds" = %(eta)s, "actualCost" = coalesce(%(cost)s, j."actualCost")
            """,
            job_id,
            ACTIVE,
            {"progress": progress, "eta": eta_seconds, "cost": cost},
        )
        if job is None:
            if one(connection, 'WHERE j."id" = %s', (job_id,)) is None:
                raise UnknownJob(f'There is no job "{job_id}".')
            return None
        if data:
            add_job_event(
                connection,
                job_id,
                EventLevel.INFO,
                "metrics",
                f"{job.progress:.0f} %",
                {**data, "progress": job.progress},
            )
    return job


def record(db: Database, job_id: str, **columns: Any) -> Job:
    """Write facts about a job, whatever its status: `metrics`, `timings` and `config` are merged.

    Takes the names of `Job` (snake_case): training_emails, model_name, adapter_path, adapter_size,
    adapter_digest, incremental_from, lora_rank, lora_alpha, estimated_seconds, estimated_cost, actual_cost,
    sent_count, last_position, eta_seconds, metrics (JobMetrics or a dict), timings, config. Raises TypeError
    for any other, UnknownJob.
    """
    changes: list[sql.Composable] = []
    values: dict[str, Any] = {}
    for name, value in columns.items():
        if name in _MERGEABLE:
            if name == "metrics":
                # Unset numbers stay as they are; an unknown name would make the row unreadable.
                metrics = value if isinstance(value, JobMetrics) else JobMetrics.model_validate(value)
                value = metrics.model_dump(mode="json", by_alias=True, exclude_unset=True)
            change = sql.SQL("{column} = j.{column} || {value}").format(
                column=sql.Identifier(name), value=sql.Placeholder(name)
            )
            values[name] = Jsonb(value)
        elif name in _RECORDABLE:
            change = sql.SQL("{} = {}").format(sql.Identifier(_RECORDABLE[name]), sql.Placeholder(name))
            values[name] = value
        else:
            raise TypeError(f"record() cannot write {name!r}")
        changes.append(change)
    if not changes:
        return find_job(db, job_id)
    with db.connection() as connection:
        job = update(connection, sql.SQL(", ").join(changes), job_id, None, values)
    if job is None:
        raise UnknownJob(f'There is no job "{job_id}".')
    return job


def request_cancel(db: Database, job_id: str) -> Job:
    """Ask for the job to stop. One that nobody has ever taken up ends CANCELLED at once.

    One that waits again has left mail in its job folder: dispatch-jobs deletes that and ends it.

    Asking twice is fine. Raises InvalidTransition when the job has ended, UnknownJob.
    """
    with db.transaction() as connection:
        before = one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
        if before is None or before.status.is_final:
            refuse(connection, job_id, "be cancelled")
        if before.status is JobStatus.PENDING and before.flow_run_id is None and before.stage is None:
            return cancel(connection, job_id)
        job = update(connection, '"cancelRequested" = true', job_id, ACTIVE, {})
        assert job is not None
        if not before.cancel_requested:
            add_job_event(connection, job_id, EventLevel.WARN, "message", "Cancel requested", {})
    return job


def is_cancel_requested(db: Database, job_id: str) -> bool:
    """Tell whether somebody asked for the job to stop. Raises UnknownJob."""
    with db.connection() as connection:
        row = connection.execute(
            'SELECT "cancelRequested" OR "status" = %s FROM "FineTuningJob" WHERE "id" = %s',
            (JobStatus.CANCELLED, job_id),
        ).fetchone()
    if row is None:
        raise UnknownJob(f'There is no job "{job_id}".')
    return bool(row[0])


def mark_cancelled(db: Database, job_id: str) -> Job:
    """End the job as CANCELLED; one that is cancelled already stays so.

    Raises InvalidTransition, UnknownJob.
    """
    with db.transaction() as connection:
        job = one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
        if job is not None and job.status is JobStatus.CANCELLED:
            return job
        return cancel(connection, job_id)


def fail_job(db: Database, job_id: str, code: str, message: str) -> bool:
    """End the job as FAILED with a code and a sentence; False, changing nothing, when it has ended already.

    `message` goes to the app and into logs: ids and counts, never mail. Raises UnknownJob.
    """
    with db.transaction() as connection:
        job = update(
            connection,
            """
            "status" = %(status)s, "errorCode" = %(code)s, "errorMessage" = %(message)s,
            "completedAt" = now()
            """,
            job_id,
            sources(JobStatus.FAILED),
            {"status": JobStatus.FAILED, "code": code, "message": message},
        )
        if job is None:
            if one(connection, 'WHERE j."id" = %s', (job_id,)) is None:
                raise UnknownJob(f'There is no job "{job_id}".')
            return False
        stage = f" in stage {job.stage}" if job.stage else ""
        add_status_event(connection, job, f"Failed{stage}: {code}", {"code": code}, EventLevel.ERROR)
        announce(connection, job)
    return True


def requeue_job(db: Database, job_id: str, *, claimed: bool = False) -> Job:
    """Take a FAILED job up again: PENDING, error cleared, stage and timings kept for the retry.

    `claimed` as in `create_job`. Raises JobAlreadyActive when the person has another job that has not ended,
    InvalidTransition, UnknownJob.
    """
    try:
        with db.transaction() as connection:
            before = one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
            if before is not None and before.status is JobStatus.FAILED:
                refuse_second_active(connection, before.user_id)
            job = update(
                connection,
                """
                "status" = %(status)s, "progress" = 0, "errorCode" = NULL, "errorMessage" = NULL,
                "flowRunId" = NULL, "cancelRequested" = false, "completedAt" = NULL, "attempts" = 0,
                "etaSeconds" = NULL, "dispatchedAt" = CASE WHEN %(claimed)s THEN now() END
                """,
                job_id,
                [JobStatus.FAILED],
                {"status": JobStatus.PENDING, "claimed": claimed},
            )
            if job is None:
                refuse(connection, job_id, "be retried")
            add_status_event(connection, job, "Queued again", {})
            announce(connection, job)
            return job
    except StoreError as exc:
        if violated(exc) == ONE_ACTIVE_INDEX:
            with db.transaction() as connection:
                refuse_second_active(connection, find_job(db, job_id).user_id)
        raise


def complete_job(
    db: Database,
    job_id: str,
    outcome: Outcome,
    *,
    ai_provider: str | None = None,
    ai_model: str | None = None,
    adapter_path: str | None = None,
    reason: str = "",
) -> Job:
    """End the job as COMPLETED and, when PROMOTED, point the person at its adapter: one transaction.

    PROMOTED needs `ai_provider` and `ai_model`; `adapter_path` defaults to the one recorded on the job.
    Every outcome moves `adapterNextTraining` on by the person's interval, or the daily scan would train the
    same mail again tomorrow. Repeating the call after a lost answer returns the completed job.

    Raises NoConsent when consent was withdrawn and TrainingCancelled when a cancel was requested meanwhile
    (both leave the row as it was: the caller ends the job and takes the adapter back), InvalidTransition,
    UnknownJob.
    """
    promoted = outcome is Outcome.PROMOTED
    if promoted and not (ai_provider and ai_model):
        raise ConfigError("A promoted job needs the provider and the name under which its adapter is served.")
    with db.transaction() as connection:
        before = one(connection, 'WHERE j."id" = %s', (job_id,))
        if before is None:
            refuse(connection, job_id, "be completed")
        # The user first, then the job: the order of create_job, so that the two cannot deadlock. Consent
        # withdrawn from here on waits until this transaction has ended.
        consent = connection.execute(
            'SELECT "voiceConsentAt" FROM "User" WHERE "id" = %s FOR UPDATE', (before.user_id,)
        ).fetchone()
        job = one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
        assert job is not None
        if job.status is JobStatus.COMPLETED and job.outcome is outcome:
            return job
        if job.status.value not in sources(JobStatus.COMPLETED):
            refuse(connection, job_id, "be completed")
        if promoted and (consent is None or consent[0] is None):
            raise NoConsent(
                f"User {job.user_id} has withdrawn consent; the adapter of job {job_id} is not activated."
            )
        if job.cancel_requested:
            raise TrainingCancelled(f"Job {job_id} was cancelled before its adapter became active.")
        done = update(
            connection,
            """
            "status" = %(status)s, "outcome" = %(outcome)s, "progress" = 100, "completedAt" = now(),
            "modelName" = coalesce(%(model)s, j."modelName"),
            "adapterPath" = coalesce(%(path)s, j."adapterPath")
            """,
            job_id,
            sources(JobStatus.COMPLETED),
            {
                "status": JobStatus.COMPLETED,
                "outcome": outcome,
                "model": ai_model if promoted else None,
                "path": adapter_path,
            },
        )
        assert done is not None
        if promoted:
            point_user_at(connection, done, ai_provider, ai_model)
        connection.execute(
            """
            UPDATE "User" SET
                "adapterNextTraining" = now() + make_interval(days => "adapterTrainingInterval"),
                "adapterLastTrained" = CASE WHEN %(promoted)s THEN now() ELSE "adapterLastTrained" END,
                "adapterTrainingCount" = "adapterTrainingCount" + CASE WHEN %(promoted)s THEN 1 ELSE 0 END,
                "sentCountTrained" = coalesce(%(sent)s, "sentCountTrained"),
                "updatedAt" = now()
            WHERE "id" = %(user)s
            """,
            {"user": done.user_id, "promoted": promoted, "sent": done.sent_count},
        )
        add_status_event(connection, done, f"Completed: {outcome}", {"outcome": outcome, "reason": reason})
        announce(connection, done)
    return done


def activate_version(db: Database, job_id: str, *, ai_provider: str, ai_model: str) -> Job:
    """Make an older, promoted adapter serve again (rollback): one transaction with its event and webhook.

    The caller has warmed it up first. Raises NoConsent, InvalidTransition for a job whose adapter was never
    promoted, UnknownJob.
    """
    with db.transaction() as connection:
        job = one(connection, 'WHERE j."id" = %s', (job_id,))
        if job is None:
            refuse(connection, job_id, "be activated")
        consent = connection.execute(
            'SELECT "voiceConsentAt" FROM "User" WHERE "id" = %s FOR UPDATE', (job.user_id,)
        ).fetchone()
        if consent is None or consent[0] is None:
            raise NoConsent(f"User {job.user_id} has withdrawn consent; no adapter is activated.")
        if job.outcome is not Outcome.PROMOTED:
            raise InvalidTransition(
                f"Job {job_id} (version {job.version}) ended {job.outcome or job.status}, so it has no "
                "proven adapter to go back to. Choose a version that was promoted."
            )
        point_user_at(connection, job, ai_provider, ai_model)
        add_job_event(
            connection, job_id, EventLevel.INFO, "message", f"Version {job.version} made active again", {}
        )
        add_message(
            connection, job.user_id, job_id, "adapter.activated", {**payload(job), "modelName": ai_model}
        )
    return job


# ---- events ----------------------------------------------------------------------------------------


def add_event(
    db: Database,
    job_id: str,
    message: str,
    *,
    level: EventLevel = EventLevel.INFO,
    type: str = "message",
    data: dict[str, Any] | None = None,
) -> None:
    """Append to the job's event stream. `message` and `data` hold ids and counts, never mail."""
    with db.connection() as connection:
        if one(connection, 'WHERE j."id" = %s', (job_id,)) is None:
            raise UnknownJob(f'There is no job "{job_id}".')
        add_job_event(connection, job_id, level, type, message, data or {})


def events(db: Database, job_id: str, *, after: datetime | None = None, limit: int = 1000) -> list[JobEvent]:
    """Return the first `limit` events of a job, oldest first; with `after` only later ones (to follow it)."""
    with db.connection() as connection:
        return (
            connection.cursor(row_factory=class_row(JobEvent))
            .execute(
                """
                SELECT "jobId" AS job_id, "at", "level", "type", "message", "data"
                FROM "FineTuningEvent"
                WHERE "jobId" = %(job)s AND (%(after)s::timestamptz IS NULL OR "at" > %(after)s)
                ORDER BY "id" LIMIT %(limit)s
                """,
                {"job": job_id, "after": after, "limit": limit},
            )
            .fetchall()
        )
