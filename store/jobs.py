"""Training jobs: one verb a query, and a state machine that PostgreSQL enforces.

Every change of status is one UPDATE guarded by `status = ANY(allowed)`, with `allowed` derived from
`training.schemas.ALLOWED_TRANSITIONS`, so two processes that disagree cannot both win. Every such change
writes an event in the same transaction; a final one also queues a webhook. Messages carry ids and counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, LiteralString, Never

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from store.database import Connection, Database
from store.outbox import add_message
from store.users import new_id
from training.errors import (
    ConfigError,
    InvalidTransition,
    JobAlreadyActive,
    NoConsent,
    StoreError,
    TrainingCancelled,
    UnknownJob,
    UnknownUser,
)
from training.schemas import (
    ACTIVE_STATUSES,
    ALLOWED_TRANSITIONS,
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
ONE_ACTIVE_INDEX = "FineTuningJob_one_active_key"
_ACTIVE = sorted(status.value for status in ACTIVE_STATUSES)

# The casts make the app's Prisma types (`timestamp`, Decimal) what the schema says.
_COLUMNS = sql.SQL(
    """
    j."id", j."userId" AS user_id, j."status", j."stage", j."progress"::float8 AS progress, j."outcome",
    j."trigger", j."version", j."incrementalFrom" AS incremental_from,
    j."trainingEmails" AS training_emails, j."baseModel" AS base_model, j."modelName" AS model_name,
    j."loraRank" AS lora_rank, j."loraAlpha"::float8 AS lora_alpha, j."config", j."metrics", j."timings",
    j."adapterPath" AS adapter_path, j."adapterSize"::bigint AS adapter_size,
    j."adapterDigest" AS adapter_digest, j."estimatedSeconds"::float8 AS estimated_seconds,
    j."estimatedCost"::float8 AS estimated_cost, j."actualCost"::float8 AS actual_cost,
    j."errorCode" AS error_code, j."errorMessage" AS error_message, j."flowRunId" AS flow_run_id,
    j."idempotencyKey" AS idempotency_key, j."cancelRequested" AS cancel_requested,
    j."attempts", j."dispatchedAt" AS dispatched_at, j."sentCount" AS sent_count,
    j."lastPosition" AS last_position, j."etaSeconds" AS eta_seconds,
    j."createdAt"::timestamptz AS created_at, j."startedAt"::timestamptz AS started_at,
    j."completedAt"::timestamptz AS completed_at, j."updatedAt"::timestamptz AS updated_at
    """
)

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


def sources(target: JobStatus) -> list[str]:
    """Return the statuses from which a job may become `target`."""
    return sorted(status.value for status, targets in ALLOWED_TRANSITIONS.items() if target in targets)


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
) -> Job:
    """Make the next job of a person; the same `idempotency_key` again returns the job it made first.

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
                known = _one(connection, 'WHERE j."idempotencyKey" = %s', (idempotency_key,))
                if known is not None and known.user_id != user_id:
                    raise ConfigError(
                        f"The idempotency key was used for another user's job ({known.id}). Use a new key."
                    )
                if known is not None:
                    return known
            _refuse_second_active(connection, user_id)
            job = (
                connection.cursor(row_factory=class_row(Job))
                .execute(
                    sql.SQL(
                        """
                        INSERT INTO "FineTuningJob" AS j (
                            "id", "userId", "status", "progress", "trigger", "version", "baseModel",
                            "loraRank", "loraAlpha", "config", "idempotencyKey", "createdAt", "updatedAt"
                        )
                        SELECT %(id)s, %(user)s, 'PENDING', 0, %(trigger)s,
                               1 + coalesce(max("version"), 0), %(base)s, %(rank)s, %(alpha)s, %(config)s,
                               %(key)s, now(), now()
                        FROM "FineTuningJob" WHERE "userId" = %(user)s
                        RETURNING {}
                        """
                    ).format(_COLUMNS),
                    {
                        "id": new_id("j"),
                        "user": user_id,
                        "trigger": trigger,
                        "base": base_model,
                        "rank": lora_rank,
                        "alpha": lora_alpha,
                        "config": Jsonb(config),
                        "key": idempotency_key,
                    },
                )
                .fetchone()
            )
            assert job is not None
            _status_event(connection, job, f"Created as version {job.version}", {"trigger": trigger})
            return job
    except StoreError as exc:
        # The app writes jobs of its own without our lock: the index is the last word.
        if _violated(exc) == ONE_ACTIVE_INDEX:
            with db.transaction() as connection:
                _refuse_second_active(connection, user_id)
        raise


def find_job(db: Database, job_id: str) -> Job:
    """Return the job with that id, or the only one whose id begins with it (6 characters or more).

    Raises UnknownJob.
    """
    wanted = job_id.strip()
    with db.connection() as connection:
        job = _one(connection, 'WHERE j."id" = %s', (wanted,))
        if job is None and len(wanted) >= MIN_PREFIX_CHARS:
            matches = _many(
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
        return _many(
            connection,
            """
            WHERE %(user)s::text IS NULL OR j."userId" = %(user)s
            ORDER BY j."createdAt" DESC, j."version" DESC LIMIT %(limit)s
            """,
            {"user": user_id, "limit": limit},
        )


def list_pending(db: Database, limit: int = 100) -> list[Job]:
    """Return jobs that wait and that no flow run has taken up, oldest first."""
    with db.connection() as connection:
        return _many(
            connection,
            """
            WHERE j."status" = 'PENDING' AND j."flowRunId" IS NULL AND NOT j."cancelRequested"
            ORDER BY j."createdAt", j."id" LIMIT %s
            """,
            (limit,),
        )


def measured_rate(db: Database, base_model: str) -> float | None:
    """Return the training rate of the newest finished job on a base model, in tokens a second, or None."""
    with db.connection() as connection:
        row = connection.execute(
            """
            SELECT ("metrics" ->> 'trainTokensPerSecond')::float FROM "FineTuningJob"
            WHERE "baseModel" = %s AND ("metrics" ->> 'trainTokensPerSecond')::float > 0
            ORDER BY "createdAt" DESC LIMIT 1
            """,
            (base_model,),
        ).fetchone()
    return None if row is None else float(row[0])


def current_adapter(db: Database, user_id: str) -> Job | None:
    """Return the job whose adapter serves the person now, or None."""
    with db.connection() as connection:
        return _one(
            connection,
            'JOIN "User" u ON u."loraAdapterId" = j."id" AND u."id" = j."userId" WHERE u."id" = %s',
            (user_id,),
        )


# ---- the life of a job -----------------------------------------------------------------------------


def enter_stage(db: Database, job_id: str, stage: Stage) -> Job:
    """Note that a stage begins: status, stage, progress and event. Raises InvalidTransition, UnknownJob.

    Entering the stage that the job is in already is allowed: a flow run that resumes does so.
    """
    status = STAGE_STATUS[stage]
    with db.transaction() as connection:
        job = _update(
            connection,
            """
            "status" = %(status)s, "stage" = %(stage)s, "progress" = greatest(j."progress", %(progress)s),
            "startedAt" = coalesce(j."startedAt", now())
            """,
            job_id,
            [*sources(status), status],
            {"status": status, "stage": stage, "progress": STAGE_PROGRESS[stage]},
        )
        if job is None:
            _refuse(connection, job_id, f"enter the stage {stage}")
        _status_event(connection, job, f"Stage {stage}", {"stage": stage})
    return job


def report_progress(db: Database, job_id: str, progress: float, data: dict[str, Any] | None = None) -> bool:
    """Move the progress (percent) forward and keep `data` (numbers only) as a metrics event.

    Progress never moves backwards. Returns False, changing nothing, when the job has ended meanwhile.
    """
    with db.transaction() as connection:
        job = _update(
            connection,
            '"progress" = greatest(j."progress", least(greatest(%(progress)s::float8, 0), 100))',
            job_id,
            _ACTIVE,
            {"progress": progress},
        )
        if job is None:
            if _one(connection, 'WHERE j."id" = %s', (job_id,)) is None:
                raise UnknownJob(f'There is no job "{job_id}".')
            return False
        if data:
            _add_event(connection, job_id, EventLevel.INFO, "metrics", f"{job.progress:.0f} %", data)
    return True


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
        job = _update(connection, sql.SQL(", ").join(changes), job_id, None, values)
    if job is None:
        raise UnknownJob(f'There is no job "{job_id}".')
    return job


def set_flow_run(db: Database, job_id: str, flow_run_id: str | None) -> Job:
    """Note which flow run carries the job out (None frees it). Raises UnknownJob."""
    with db.connection() as connection:
        job = _update(connection, '"flowRunId" = %(run)s', job_id, None, {"run": flow_run_id})
    if job is None:
        raise UnknownJob(f'There is no job "{job_id}".')
    return job


def request_cancel(db: Database, job_id: str) -> Job:
    """Ask for the job to stop. One that nobody has taken up ends CANCELLED at once.

    Asking twice is fine. Raises InvalidTransition when the job has ended, UnknownJob.
    """
    with db.transaction() as connection:
        before = _one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
        if before is None or before.status.is_final:
            _refuse(connection, job_id, "be cancelled")
        if before.status is JobStatus.PENDING and before.flow_run_id is None:
            return _cancel(connection, job_id)
        job = _update(connection, '"cancelRequested" = true', job_id, _ACTIVE, {})
        assert job is not None
        if not before.cancel_requested:
            _add_event(connection, job_id, EventLevel.WARN, "message", "Cancel requested", {})
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
        job = _one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
        if job is not None and job.status is JobStatus.CANCELLED:
            return job
        return _cancel(connection, job_id)


def fail_job(db: Database, job_id: str, code: str, message: str) -> bool:
    """End the job as FAILED with a code and a sentence; False, changing nothing, when it has ended already.

    `message` goes to the app and into logs: ids and counts, never mail. Raises UnknownJob.
    """
    with db.transaction() as connection:
        job = _update(
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
            if _one(connection, 'WHERE j."id" = %s', (job_id,)) is None:
                raise UnknownJob(f'There is no job "{job_id}".')
            return False
        stage = f" in stage {job.stage}" if job.stage else ""
        _status_event(connection, job, f"Failed{stage}: {code}", {"code": code}, EventLevel.ERROR)
        _announce(connection, job)
    return True


def requeue_job(db: Database, job_id: str) -> Job:
    """Take a FAILED job up again: PENDING, error cleared, stage and timings kept for the retry.

    Raises JobAlreadyActive when the person has another job that has not ended, InvalidTransition, UnknownJob.
    """
    try:
        with db.transaction() as connection:
            before = _one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
            if before is not None and before.status is JobStatus.FAILED:
                _refuse_second_active(connection, before.user_id)
            job = _update(
                connection,
                """
                "status" = %(status)s, "progress" = 0, "errorCode" = NULL, "errorMessage" = NULL,
                "flowRunId" = NULL, "cancelRequested" = false, "completedAt" = NULL
                """,
                job_id,
                sources(JobStatus.PENDING),
                {"status": JobStatus.PENDING},
            )
            if job is None:
                _refuse(connection, job_id, "be retried")
            _status_event(connection, job, "Queued again", {})
            return job
    except StoreError as exc:
        if _violated(exc) == ONE_ACTIVE_INDEX:
            with db.transaction() as connection:
                _refuse_second_active(connection, find_job(db, job_id).user_id)
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
        before = _one(connection, 'WHERE j."id" = %s', (job_id,))
        if before is None:
            _refuse(connection, job_id, "be completed")
        # The user first, then the job: the order of create_job, so that the two cannot deadlock. Consent
        # withdrawn from here on waits until this transaction has ended.
        consent = connection.execute(
            'SELECT "voiceConsentAt" FROM "User" WHERE "id" = %s FOR UPDATE', (before.user_id,)
        ).fetchone()
        job = _one(connection, 'WHERE j."id" = %s FOR UPDATE', (job_id,))
        assert job is not None
        if job.status is JobStatus.COMPLETED and job.outcome is outcome:
            return job
        if job.status.value not in sources(JobStatus.COMPLETED):
            _refuse(connection, job_id, "be completed")
        if promoted and (consent is None or consent[0] is None):
            raise NoConsent(
                f"User {job.user_id} has withdrawn consent; the adapter of job {job_id} is not activated."
            )
        if job.cancel_requested:
            raise TrainingCancelled(f"Job {job_id} was cancelled before its adapter became active.")
        done = _update(
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
            _activate(connection, done, ai_provider, ai_model)
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
        _status_event(connection, done, f"Completed: {outcome}", {"outcome": outcome, "reason": reason})
        _announce(connection, done)
    return done


def activate_version(db: Database, job_id: str, *, ai_provider: str, ai_model: str) -> Job:
    """Make an older, promoted adapter serve again (rollback): one transaction with its event and webhook.

    The caller has warmed it up first. Raises NoConsent, InvalidTransition for a job whose adapter was never
    promoted, UnknownJob.
    """
    with db.transaction() as connection:
        job = _one(connection, 'WHERE j."id" = %s', (job_id,))
        if job is None:
            _refuse(connection, job_id, "be activated")
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
        _activate(connection, job, ai_provider, ai_model)
        _add_event(
            connection, job_id, EventLevel.INFO, "message", f"Version {job.version} made active again", {}
        )
        add_message(
            connection, job.user_id, job_id, "adapter.activated", {**_payload(job), "modelName": ai_model}
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
        if _one(connection, 'WHERE j."id" = %s', (job_id,)) is None:
            raise UnknownJob(f'There is no job "{job_id}".')
        _add_event(connection, job_id, level, type, message, data or {})


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


# ---- inside a transaction --------------------------------------------------------------------------


def _one(connection: Connection, where: LiteralString, values: Any) -> Job | None:
    return connection.cursor(row_factory=class_row(Job)).execute(_select(where), values).fetchone()


def _many(connection: Connection, where: LiteralString, values: Any) -> list[Job]:
    return connection.cursor(row_factory=class_row(Job)).execute(_select(where), values).fetchall()


def _select(where: LiteralString) -> sql.Composed:
    return sql.SQL('SELECT {} FROM "FineTuningJob" j {}').format(_COLUMNS, sql.SQL(where))


def _update(
    connection: Connection,
    changes: LiteralString | sql.Composable,
    job_id: str,
    allowed: Iterable[str] | None,
    values: dict[str, Any],
) -> Job | None:
    """Change one job if its status is among `allowed` (None: any); return it, or None when it was not."""
    changed = changes if isinstance(changes, sql.Composable) else sql.SQL(changes)
    query = sql.SQL(
        """
        UPDATE "FineTuningJob" j SET {}, "updatedAt" = now()
        WHERE j."id" = %(job_id)s AND (%(allowed)s::text[] IS NULL OR j."status" = ANY (%(allowed)s))
        RETURNING {}
        """
    ).format(changed, _COLUMNS)
    # Plain strings: psycopg looks up an adapter by the exact type of a list's members.
    names = None if allowed is None else [str(status) for status in allowed]
    cursor = connection.cursor(row_factory=class_row(Job))
    return cursor.execute(query, {**values, "job_id": job_id, "allowed": names}).fetchone()


def _cancel(connection: Connection, job_id: str) -> Job:
    job = _update(
        connection,
        '"status" = %(status)s, "cancelRequested" = true, "completedAt" = now()',
        job_id,
        sources(JobStatus.CANCELLED),
        {"status": JobStatus.CANCELLED},
    )
    if job is None:
        _refuse(connection, job_id, "be cancelled")
    _status_event(connection, job, "Cancelled", {}, EventLevel.WARN)
    _announce(connection, job)
    return job


def _activate(connection: Connection, job: Job, ai_provider: str | None, ai_model: str | None) -> None:
    """Point the person's row at the adapter of `job`."""
    connection.execute(
        """
        UPDATE "User" SET "aiProvider" = %s, "aiModel" = %s, "loraAdapterId" = %s, "loraAdapterPath" = %s,
                          "updatedAt" = now()
        WHERE "id" = %s
        """,
        (ai_provider, ai_model, job.id, job.adapter_path, job.user_id),
    )


def _refuse(connection: Connection, job_id: str, wish: str) -> Never:
    """Say why an UPDATE found no row: no such job, or a status that does not allow it."""
    job = _one(connection, 'WHERE j."id" = %s', (job_id,))
    if job is None:
        raise UnknownJob(f'There is no job "{job_id}".')
    if job.status is JobStatus.FAILED:
        hint = f" `ownvoice retry {job.id}` takes it up again."
    elif job.status.is_final:
        hint = " It has ended; start a new one."
    else:
        hint = ""
    raise InvalidTransition(f"Job {job_id} is {job.status} and cannot {wish}.{hint}")


def _refuse_second_active(connection: Connection, user_id: str) -> None:
    job = _one(connection, 'WHERE j."userId" = %s AND j."status" = ANY (%s)', (user_id, _ACTIVE))
    if job is not None:
        raise JobAlreadyActive(
            f"User {user_id} already has job {job.id} ({job.status}, {job.progress:.0f} %). Wait for it, or "
            f"stop it with `ownvoice cancel {job.id}`.",
            job_id=job.id,
        )


def _violated(exc: StoreError) -> str | None:
    """Return the name of the unique index that a statement ran into, or None."""
    cause = exc.__cause__
    return cause.diag.constraint_name if isinstance(cause, psycopg.errors.UniqueViolation) else None


def _status_event(
    connection: Connection,
    job: Job,
    message: str,
    data: dict[str, Any],
    level: EventLevel = EventLevel.INFO,
) -> None:
    _add_event(
        connection, job.id, level, "status", message, {"status": job.status, "progress": job.progress, **data}
    )


def _add_event(
    connection: Connection, job_id: str, level: EventLevel, type: str, message: str, data: dict[str, Any]
) -> None:
    connection.execute(
        """
        INSERT INTO "FineTuningEvent" ("jobId", "level", "type", "message", "data")
        VALUES (%s, %s, %s, %s, %s)
        """,
        (job_id, level, type, message, Jsonb(data)),
    )


def _announce(connection: Connection, job: Job) -> None:
    """Queue the webhook of a final status."""
    add_message(connection, job.user_id, job.id, f"job.{job.status.lower()}", _payload(job))


def _payload(job: Job) -> dict[str, Any]:
    """Return what the app is told: ids, states and counts."""
    return {
        "jobId": job.id,
        "userId": job.user_id,
        "status": job.status,
        "progress": job.progress,
        "outcome": job.outcome,
        "version": job.version,
        "modelName": job.model_name,
        "adapterPath": job.adapter_path,
        "adapterSize": job.adapter_size,
        "errorCode": job.error_code,
        "errorMessage": job.error_message,
    }
