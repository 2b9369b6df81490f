"""Rows of "FineTuningJob" inside a transaction: read, changed under a guard, and told to the app.

What `jobs`, `dispatch` and `retraining` share; nothing else calls these.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, LiteralString, Never

import psycopg
from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from store.database import Connection
from store.outbox import add_message
from training.errors import InvalidTransition, JobAlreadyActive, StoreError, UnknownJob
from training.schemas import ACTIVE_STATUSES, ALLOWED_TRANSITIONS, EventLevel, Job, JobStatus

ACTIVE = sorted(status.value for status in ACTIVE_STATUSES)
ONE_ACTIVE_INDEX = "FineTuningJob_one_active_key"

# The casts make the app's Prisma types (`timestamp`, Decimal) what the schema says.
COLUMNS = sql.SQL(
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


def sources(target: JobStatus) -> list[str]:
    """Return the statuses from which a job may become `target`."""
    return sorted(status.value for status, targets in ALLOWED_TRANSITIONS.items() if target in targets)


def one(connection: Connection, where: LiteralString, values: Any) -> Job | None:
    return connection.cursor(row_factory=class_row(Job)).execute(select(where), values).fetchone()


def many(connection: Connection, where: LiteralString, values: Any) -> list[Job]:
    return connection.cursor(row_factory=class_row(Job)).execute(select(where), values).fetchall()


def select(where: LiteralString) -> sql.Composed:
    return sql.SQL('SELECT {} FROM "FineTuningJob" j {}').format(COLUMNS, sql.SQL(where))


def update(
    connection: Connection,
    changes: LiteralString | sql.Composable,
    job_id: str,
    allowed: Iterable[str] | None,
    values: dict[str, Any],
    *,
    only: LiteralString = "true",
) -> Job | None:
    """Change one job if its status is among `allowed` (None: any) and `only` holds.

    Returns the changed job, or None when the guard kept it as it was.
    """
    changed = changes if isinstance(changes, sql.Composable) else sql.SQL(changes)
    query = sql.SQL(
        """
        UPDATE "FineTuningJob" j SET {}, "updatedAt" = now()
        WHERE j."id" = %(job_id)s AND (%(allowed)s::text[] IS NULL OR j."status" = ANY (%(allowed)s))
          AND ({})
        RETURNING {}
        """
    ).format(changed, sql.SQL(only), COLUMNS)
    # Plain strings: psycopg looks up an adapter by the exact type of a list's members.
    names = None if allowed is None else [str(status) for status in allowed]
    cursor = connection.cursor(row_factory=class_row(Job))
    return cursor.execute(query, {**values, "job_id": job_id, "allowed": names}).fetchone()


def cancel(connection: Connection, job_id: str) -> Job:
    job = update(
        connection,
        '"status" = %(status)s, "cancelRequested" = true, "completedAt" = now()',
        job_id,
        sources(JobStatus.CANCELLED),
        {"status": JobStatus.CANCELLED},
    )
    if job is None:
        refuse(connection, job_id, "be cancelled")
    add_status_event(connection, job, "Cancelled", {}, EventLevel.WARN)
    announce(connection, job)
    return job


def point_user_at(connection: Connection, job: Job, ai_provider: str | None, ai_model: str | None) -> None:
    """Point the person's row at the adapter of `job`."""
    connection.execute(
        """
        UPDATE "User" SET "aiProvider" = %s, "aiModel" = %s, "loraAdapterId" = %s, "loraAdapterPath" = %s,
                          "updatedAt" = now()
        WHERE "id" = %s
        """,
        (ai_provider, ai_model, job.id, job.adapter_path, job.user_id),
    )


def refuse(connection: Connection, job_id: str, wish: str) -> Never:
    """Say why an UPDATE found no row: no such job, or a status that does not allow it."""
    job = one(connection, 'WHERE j."id" = %s', (job_id,))
    if job is None:
        raise UnknownJob(f'There is no job "{job_id}".')
    if job.status is JobStatus.FAILED:
        hint = f" `ownvoice retry {job.id}` takes it up again."
    elif job.status.is_final:
        hint = " It has ended; start a new one."
    else:
        hint = ""
    raise InvalidTransition(f"Job {job_id} is {job.status} and cannot {wish}.{hint}")


def refuse_second_active(connection: Connection, user_id: str) -> None:
    job = one(connection, 'WHERE j."userId" = %s AND j."status" = ANY (%s)', (user_id, ACTIVE))
    if job is not None:
        raise JobAlreadyActive(
            f"User {user_id} already has job {job.id} ({job.status}, {job.progress:.0f} %). Wait for it, or "
            f"stop it with `ownvoice cancel {job.id}`.",
            job_id=job.id,
        )


def violated(exc: StoreError) -> str | None:
    """Return the name of the unique index that a statement ran into, or None."""
    cause = exc.__cause__
    return cause.diag.constraint_name if isinstance(cause, psycopg.errors.UniqueViolation) else None


def add_status_event(
    connection: Connection,
    job: Job,
    message: str,
    data: dict[str, Any],
    level: EventLevel = EventLevel.INFO,
) -> None:
    add_job_event(
        connection, job.id, level, "status", message, {"status": job.status, "progress": job.progress, **data}
    )


def add_job_event(
    connection: Connection, job_id: str, level: EventLevel, type: str, message: str, data: dict[str, Any]
) -> None:
    connection.execute(
        """
        INSERT INTO "FineTuningEvent" ("jobId", "level", "type", "message", "data")
        VALUES (%s, %s, %s, %s, %s)
        """,
        (job_id, level, type, message, Jsonb(data)),
    )


def announce(connection: Connection, job: Job) -> None:
    """Queue the webhook of a status that has just changed; the caller holds the job's row lock."""
    add_message(connection, job.user_id, job.id, f"job.{job.status.lower()}", payload(job))


def payload(job: Job) -> dict[str, Any]:
    """Return what the app is told: ids, states and counts."""
    return {
        "jobId": job.id,
        "userId": job.user_id,
        "status": job.status,
        "stage": job.stage,
        "progress": job.progress,
        "outcome": job.outcome,
        "version": job.version,
        "modelName": job.model_name,
        "adapterPath": job.adapter_path,
        "adapterSize": job.adapter_size,
        "errorCode": job.error_code,
        "errorMessage": job.error_message,
    }
