"""Which flow run carries out which job: claimed by one dispatcher, taken up by one run, found when lost.

A waiting row is claimed for a minute (`dispatchedAt`, a lease), then bound to a flow run (`flowRunId`), and
taken up by that run when it starts. Only the last step decides who works on it: a dispatcher that died in
between costs a minute, two that met cost a flow run that finds nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg import sql
from psycopg.rows import class_row

from store.database import Connection, Database
from store.job_rows import ACTIVE, COLUMNS, add_status_event, announce, many, one, select, update
from training.errors import InvalidTransition, UnknownJob
from training.schemas import EventLevel, Job, JobStatus

LEASE_S = 60
"""Seconds after which a claimed row that no run was bound to comes up again."""
MAX_ATTEMPTS = 3
"""Flow runs that may lose one job before it ends FAILED: one that takes machines down is no bad luck."""


def claim_pending(db: Database, limit: int = 256) -> list[Job]:
    """Claim up to `limit` waiting jobs, oldest first. No job is claimed twice within the lease."""
    with db.transaction() as connection:
        found = (
            connection.cursor(row_factory=class_row(Job))
            .execute(
                sql.SQL(
                    """
                    UPDATE "FineTuningJob" j SET "dispatchedAt" = now(), "updatedAt" = now()
                    WHERE j."id" IN (
                        SELECT "id" FROM "FineTuningJob"
                        WHERE "status" = 'PENDING' AND "flowRunId" IS NULL AND NOT "cancelRequested"
                          AND ("dispatchedAt" IS NULL
                               OR "dispatchedAt" < now() - make_interval(secs => %(lease)s))
                        ORDER BY "createdAt", "id" LIMIT %(limit)s
                        FOR UPDATE SKIP LOCKED
                    )
                    RETURNING {}
                    """
                ).format(COLUMNS),
                {"lease": LEASE_S, "limit": limit},
            )
            .fetchall()
        )
    return sorted(found, key=lambda job: (str(job.created_at), job.id))


def bind_run(db: Database, job_ids: Sequence[str], flow_run_id: str) -> None:
    """Note which flow run was started for claimed jobs, unless a run has taken them up meanwhile."""
    with db.connection() as connection:
        connection.execute(
            """
            UPDATE "FineTuningJob" SET "flowRunId" = %(run)s, "updatedAt" = now()
            WHERE "id" = ANY (%(jobs)s) AND "flowRunId" IS NULL AND "status" = 'PENDING'
            """,
            {"run": flow_run_id, "jobs": list(job_ids)},
        )


def release_claim(db: Database, job_ids: Sequence[str]) -> None:
    """Let other dispatchers have the jobs at once: no run could be started for them."""
    with db.connection() as connection:
        connection.execute(
            """
            UPDATE "FineTuningJob" SET "dispatchedAt" = NULL, "updatedAt" = now()
            WHERE "id" = ANY (%s) AND "flowRunId" IS NULL AND "status" = 'PENDING'
            """,
            (list(job_ids),),
        )


def take_up(db: Database, job_id: str, flow_run_id: str) -> Job:
    """Make `flow_run_id` the one run that works on the job; again for the same run is fine.

    Raises InvalidTransition when the job has ended or another run has it, UnknownJob.
    """
    with db.transaction() as connection:
        job = update(
            connection,
            """
            "attempts" = j."attempts" + CASE WHEN j."status" = 'PENDING' THEN 1 ELSE 0 END,
            "flowRunId" = %(run)s
            """,
            job_id,
            ACTIVE,
            {"run": flow_run_id},
            only="""j."flowRunId" = %(run)s OR j."flowRunId" IS NULL AND j."status" = 'PENDING' """,
        )
        if job is not None:
            return job
        found = one(connection, 'WHERE j."id" = %s', (job_id,))
    if found is None:
        raise UnknownJob(f'There is no job "{job_id}".')
    if found.status.is_final:
        raise InvalidTransition(f"Job {job_id} has already ended ({found.status}); nothing was started.")
    raise InvalidTransition(f"Job {job_id} is already at {found.status} in flow run {found.flow_run_id}.")


def jobs_of_run(db: Database, flow_run_id: str) -> list[Job]:
    """Return the jobs that a flow run was started for or has taken up, ended ones too."""
    with db.connection() as connection:
        return many(connection, 'WHERE j."flowRunId" = %s ORDER BY j."createdAt", j."id"', (flow_run_id,))


def list_unfinished(db: Database, quiet_s: float = 0) -> list[Job]:
    """Return the jobs that a flow run should be at work on, or that somebody asked to stop.

    `quiet_s`: only those whose row has not changed for so many seconds.
    """
    with db.connection() as connection:
        return many(
            connection,
            """
            WHERE j."status" = ANY (%(active)s) AND (j."flowRunId" IS NOT NULL OR j."cancelRequested")
              AND j."updatedAt"::timestamptz <= now() - make_interval(secs => %(quiet)s)
            ORDER BY j."createdAt", j."id"
            """,
            {"active": ACTIVE, "quiet": quiet_s},
        )


def requeue_vanished(db: Database, job_id: str, flow_run_id: str | None, reason: str) -> Job | None:
    """Put a job whose flow run vanished back among the waiting ones; its finished stages are kept.

    A job that has lost `MAX_ATTEMPTS` runs ends FAILED instead. Returns the job as it is then, or None when
    it has ended or another run has it meanwhile. `reason` is a sentence without mail.
    """
    with db.transaction() as connection:
        job = (
            connection.cursor(row_factory=class_row(Job))
            .execute(
                select(
                    """
                    WHERE j."id" = %s AND j."status" = ANY (%s) AND j."flowRunId" IS NOT DISTINCT FROM %s
                    FOR UPDATE
                    """
                ),
                (job_id, ACTIVE, flow_run_id),
            )
            .fetchone()
        )
        if job is None:
            return None
        if job.attempts >= MAX_ATTEMPTS:
            return _give_up(connection, job, reason)
        waiting = update(
            connection,
            """
            "status" = %(status)s, "progress" = 0, "flowRunId" = NULL, "dispatchedAt" = NULL,
            "etaSeconds" = NULL
            """,
            job_id,
            ACTIVE,
            {"status": JobStatus.PENDING},
        )
        assert waiting is not None
        add_status_event(connection, waiting, f"Queued again: {reason}", {}, EventLevel.WARN)
        if job.status is not JobStatus.PENDING:
            announce(connection, waiting)
    return waiting


def _give_up(connection: Connection, job: Job, reason: str) -> Job:
    failed = update(
        connection,
        """
        "status" = %(status)s, "errorCode" = 'FLOW_VANISHED', "errorMessage" = %(message)s,
        "completedAt" = now()
        """,
        job.id,
        ACTIVE,
        {
            "status": JobStatus.FAILED,
            "message": f"{reason} That was attempt {job.attempts} of {MAX_ATTEMPTS}. Look at the workers' "
            f"logs, then run `ownvoice retry {job.id}`.",
        },
    )
    assert failed is not None
    add_status_event(connection, failed, "Failed: FLOW_VANISHED", {"code": "FLOW_VANISHED"}, EventLevel.ERROR)
    announce(connection, failed)
    return failed
