"""Who is due for training: the daily scan and the monthly round, over counts and never over mail.

Every query is set-based, and every batch is one transaction: notices and jobs exist exactly when the mark
that caused them is cleared, so a process that dies in the middle loses nothing and repeats nothing. Rows that
somebody else holds are passed over and found again next time; nobody waits for anybody, so two scans, an
import and an erasure cannot deadlock.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from store.database import Connection, Database
from store.job_rows import ACTIVE
from store.users import new_id
from training.schemas import JobStatus, Outcome, RetrainEnd, RetrainLine, ScanReport, Trigger

FIRST_NOTICE = 100
NOTICE_STEP = 10
"""A person without an adapter is told at 100, 110, 120 … sent mails (seeds)."""
RETRAIN_AFTER = 100
"""New sent mails since the last finished training that start the next one (seeds)."""
BATCH_ACCOUNTS = 5_000
"""Accounts of one transaction: imports into them wait meanwhile, about 0.2 s."""
BATCH_PEOPLE = 5_000


class NewJob(NamedTuple):
    """What all jobs of one scan or round have in common."""

    base_model: str
    config: dict[str, Any]
    lora_rank: int
    lora_alpha: float


class Skips(NamedTuple):
    """The people that a monthly round passed over."""

    people: int
    lines: list[RetrainLine]
    """The first of them, with the reason."""


class _Wanted(NamedTuple):
    """A job to make for a person whose row is locked."""

    user_id: str
    key: str


class _Concerned(NamedTuple):
    """A person whom a scan tells or trains."""

    user_id: str
    sent: int
    has_adapter: bool
    trained: int


# ---- the daily scan ----------------------------------------------------------------------------------


def scan(db: Database, new_job: NewJob, *, batch_accounts: int = BATCH_ACCOUNTS) -> ScanReport:
    """Look at every account whose sent count grew since the last scan, tell and train whom it concerns.

    A person without an adapter is told at each new step (`voice.eligible`); the first training is their own
    click. A person with an adapter, consent and automatic retraining gets a waiting job after 100 new mails;
    while another job of theirs is under way they stay marked for the next scan.
    """
    started = time.monotonic()
    accounts = people = notices = made = 0
    after = ""
    while True:
        with db.transaction() as connection:
            _use_indexes(connection)
            taken = _take_accounts(connection, after, batch_accounts)
            users = sorted({user_id for _, user_id in taken})
            concerned = {person.user_id for person in _concerned(connection, users)}
            held = _concerned(connection, sorted(concerned), lock=True)
            wanted = [_Wanted(person.user_id, _key(person)) for person in held if person.has_adapter]
            created = _create_jobs(connection, wanted, new_job, Trigger.MAIL_COUNT, claimed=False)
            refused = {want.user_id for want in wanted} - created.keys()
            later = concerned - {person.user_id for person in held} | _with_active_job(connection, refused)
            notices += _queue_notices(connection, [person for person in held if not person.has_adapter])
            _clear_marks(connection, [account for account, user_id in taken if user_id not in later])
        accounts, people, made = accounts + len(taken), people + len(users), made + len(created)
        if len(taken) < batch_accounts:
            break
        after = taken[-1][0]
    return ScanReport(
        accounts=accounts,
        users=people,
        notices=notices,
        jobs=made,
        seconds=round(time.monotonic() - started, 3),
    )


def _use_indexes(connection: Connection) -> None:
    """Make the rest of the transaction look rows up one by one.

    A batch is thousands of ids, for which the planner would rather read a table of a million rows whole
    (measured: 5.4 s for a scan at a million people).
    """
    for kind in ("seqscan", "hashjoin", "mergejoin"):
        connection.execute(sql.SQL("SET LOCAL {} = off").format(sql.Identifier(f"enable_{kind}")))


def _take_accounts(connection: Connection, after: str, limit: int) -> list[tuple[str, str]]:
    """Lock the next marked accounts in the order of their ids; (account, user) pairs."""
    return connection.execute(
        """
        SELECT c."emailAccountId", a."userId"
        FROM "MailCount" c JOIN "EmailAccount" a ON a."id" = c."emailAccountId"
        WHERE c."unscanned" AND c."emailAccountId" > %s
        ORDER BY c."emailAccountId" LIMIT %s
        FOR NO KEY UPDATE OF c SKIP LOCKED
        """,
        (after, limit),
    ).fetchall()


def _concerned(connection: Connection, users: Sequence[str], *, lock: bool = False) -> list[_Concerned]:
    """Return who of `users` reached a new step without an adapter, or 100 new mails with one.

    `lock`: only those whose row nobody else holds, and hold it. Few are concerned, so a batch writes to few
    rows of "User".
    """
    query = sql.SQL(
        """
        SELECT u."id" AS user_id, n.sent, u."loraAdapterId" IS NOT NULL AS has_adapter,
               u."sentCountTrained" AS trained
        FROM unnest(%(users)s::text[]) AS wanted (id)
        JOIN "User" u ON u."id" = wanted.id
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(c."sent"), 0)::bigint AS sent
            FROM "EmailAccount" a JOIN "MailCount" c ON c."emailAccountId" = a."id"
            WHERE a."userId" = wanted.id
        ) n
        WHERE CASE WHEN u."loraAdapterId" IS NULL
              THEN n.sent >= %(first)s AND u."sentCountNotified" < n.sent - n.sent %% %(step)s
              ELSE u."voiceConsentAt" IS NOT NULL AND u."adapterAutoRetrain"
                   AND n.sent - u."sentCountTrained" >= %(after)s END
        {}
        """
    ).format(sql.SQL("FOR NO KEY UPDATE OF u SKIP LOCKED" if lock else ""))
    limits = {"first": FIRST_NOTICE, "step": NOTICE_STEP, "after": RETRAIN_AFTER}
    cursor = connection.cursor(row_factory=class_row(_Concerned))
    return cursor.execute(query, {"users": list(users), **limits}).fetchall()


def _key(person: _Concerned) -> str:
    """Return the idempotency key of a retrain: it counts the hundreds.

    A training that failed is tried again after the next hundred mails, not daily.
    """
    hundreds = (person.sent - person.trained) // RETRAIN_AFTER * RETRAIN_AFTER
    return f"mail-count:{person.user_id}:{person.trained}+{hundreds}"


def _queue_notices(connection: Connection, people: Sequence[_Concerned]) -> int:
    """Queue one `voice.eligible` for each person, whose row is held; returns how many."""
    return connection.execute(
        """
        WITH told AS (
            UPDATE "User" u SET "sentCountNotified" = n.sent - n.sent %% %(step)s, "updatedAt" = now()
            FROM unnest(%(users)s::text[], %(sent)s::bigint[]) AS n (id, sent) WHERE u."id" = n.id
            RETURNING u."id", n.sent, u."sentCountNotified" AS notice
        )
        INSERT INTO "Outbox" ("userId", "event", "payload")
        SELECT "id", 'voice.eligible',
               jsonb_build_object('userId', "id", 'sentCount', sent, 'notice', notice)
        FROM told ORDER BY "id"
        """,
        {
            "users": [person.user_id for person in people],
            "sent": [person.sent for person in people],
            "step": NOTICE_STEP,
        },
    ).rowcount


def _with_active_job(connection: Connection, users: Collection[str]) -> set[str]:
    """Return which of `users` have a job that has not ended."""
    if not users:
        return set()
    rows = connection.execute(
        'SELECT "userId" FROM "FineTuningJob" WHERE "userId" = ANY (%s) AND "status" = ANY (%s)',
        (list(users), ACTIVE),
    ).fetchall()
    return {user_id for (user_id,) in rows}


def _clear_marks(connection: Connection, accounts: Sequence[str]) -> None:
    connection.execute(
        'UPDATE "MailCount" SET "unscanned" = false WHERE "emailAccountId" = ANY (%s)', (list(accounts),)
    )


# ---- the monthly round -------------------------------------------------------------------------------

# One row for each person who is due and has no job under way. `fresh`: sent mails since the last finished
# training. `last`: how their newest job ended.
_DUE = sql.SQL(
    """
    SELECT u."id", u."adapterNextTraining"::timestamptz AS due_at,
           coalesce(n.sent, 0) - u."sentCountTrained" AS fresh,
           last."status" AS last_status, last."trigger" AS last_trigger
    FROM "User" u
    LEFT JOIN LATERAL (
        SELECT sum(c."sent")::bigint AS sent
        FROM "EmailAccount" a JOIN "MailCount" c ON c."emailAccountId" = a."id" WHERE a."userId" = u."id"
    ) n ON true
    LEFT JOIN LATERAL (
        SELECT j."status", j."trigger" FROM "FineTuningJob" j WHERE j."userId" = u."id"
        ORDER BY j."version" DESC LIMIT 1
    ) last ON true
    WHERE u."adapterNextTraining" <= now() AND u."adapterAutoRetrain" AND u."voiceConsentAt" IS NOT NULL
      AND u."loraAdapterId" IS NOT NULL
      AND NOT EXISTS (SELECT 1 FROM "FineTuningJob" j WHERE j."userId" = u."id"
                      AND j."status" NOT IN ('COMPLETED', 'FAILED', 'CANCELLED'))
    """
)
_UNWANTED = sql.SQL("(last.\"status\" IS NOT DISTINCT FROM 'CANCELLED' AND last.\"trigger\" = 'schedule')")


def skip_due(db: Database, *, min_new_mails: int, keep: int, batch: int = BATCH_PEOPLE) -> Skips:
    """Move the next date of everybody who is due without reason to train on by their interval.

    That is: fewer than `min_new_mails` new sent mails, or the last scheduled training was cancelled. The
    first `keep` of them are returned by name.
    """
    count, lines = 0, list[RetrainLine]()
    while True:
        with db.transaction() as connection:
            skipped = _skip_batch(connection, min_new_mails, batch)
        count += len(skipped)
        for user_id, fresh, next_at in skipped[: keep - len(lines)]:
            why = (
                f"{fresh} new mails, {min_new_mails} needed"
                if fresh < min_new_mails
                else "the last scheduled training was cancelled"
            )
            lines.append(
                RetrainLine(user_id=user_id, end=RetrainEnd.SKIPPED, reason=f"{why}; next {next_at:%d %b %Y}")
            )
        if len(skipped) < batch:
            return Skips(count, lines)


def _skip_batch(connection: Connection, min_new_mails: int, limit: int) -> list[tuple[str, int, datetime]]:
    return connection.execute(
        sql.SQL(
            """
            WITH due AS MATERIALIZED (
                {due} AND (coalesce(n.sent, 0) - u."sentCountTrained" < %(enough)s OR {unwanted})
                ORDER BY u."adapterNextTraining" LIMIT %(limit)s
                FOR NO KEY UPDATE OF u SKIP LOCKED
            )
            UPDATE "User" u SET
                "adapterNextTraining"
                    = now() + make_interval(days => greatest(1, u."adapterTrainingInterval")),
                "updatedAt" = now()
            FROM due WHERE u."id" = due."id"
            RETURNING u."id", due.fresh, u."adapterNextTraining"
            """
        ).format(due=_DUE, unwanted=_UNWANTED),
        {"enough": min_new_mails, "limit": limit},
    ).fetchall()


def take_due(db: Database, new_job: NewJob, *, limit: int, min_new_mails: int) -> list[str]:
    """Make jobs for up to `limit` people who are due, longest due first, and return the jobs' ids.

    The jobs are claimed already (store/dispatch.py): the caller starts them, or, when it dies, a dispatcher
    does a minute later. The person's next date moves on at once, so that a second round cannot take them:
    by a day, after which a job that failed is tried once more, or by the interval when the one before failed
    too. A finished training sets it anew. An empty list: nobody is due.
    """
    while True:
        with db.transaction() as connection:
            due = _lock_due(connection, min_new_mails, limit)
            wanted = [_Wanted(user_id, f"schedule:{user_id}:{due_at.isoformat()}") for user_id, due_at in due]
            created = _create_jobs(connection, wanted, new_job, Trigger.SCHEDULE, claimed=True)
            _postpone(connection, [want.user_id for want in wanted], created.values())
        if created or not due:
            return [created[want.user_id] for want in wanted if want.user_id in created]


def _lock_due(connection: Connection, min_new_mails: int, limit: int) -> list[tuple[str, datetime]]:
    return connection.execute(
        sql.SQL(
            """
            WITH due AS MATERIALIZED (
                {due} AND coalesce(n.sent, 0) - u."sentCountTrained" >= %(enough)s AND NOT {unwanted}
                ORDER BY u."adapterNextTraining" LIMIT %(limit)s
                FOR NO KEY UPDATE OF u SKIP LOCKED
            )
            SELECT "id", due_at FROM due ORDER BY due_at, "id"
            """
        ).format(due=_DUE, unwanted=_UNWANTED),
        {"enough": min_new_mails, "limit": limit},
    ).fetchall()


def _postpone(connection: Connection, users: Collection[str], new_jobs: Collection[str]) -> None:
    """Move the next date of people with a new job on: a day, or the interval when their last job failed."""
    connection.execute(
        """
        UPDATE "User" u SET
            "adapterNextTraining" = now() + make_interval(days => CASE
                WHEN (SELECT j."status" FROM "FineTuningJob" j
                      WHERE j."userId" = u."id" AND j."id" <> ALL (%(new)s)
                      ORDER BY j."version" DESC LIMIT 1) = 'FAILED'
                THEN greatest(1, u."adapterTrainingInterval") ELSE 1 END),
            "updatedAt" = now()
        WHERE u."id" = ANY (%(users)s)
        """,
        {"users": list(users), "new": list(new_jobs)},
    )


def count_due_with_job(db: Database) -> int:
    """Return how many people are due but have a job under way already; they are left alone."""
    with db.connection() as connection:
        row = connection.execute(
            """
            SELECT count(*) FROM "User" u
            WHERE u."adapterNextTraining" <= now() AND u."adapterAutoRetrain"
              AND u."voiceConsentAt" IS NOT NULL AND u."loraAdapterId" IS NOT NULL
              AND EXISTS (SELECT 1 FROM "FineTuningJob" j WHERE j."userId" = u."id"
                          AND j."status" NOT IN ('COMPLETED', 'FAILED', 'CANCELLED'))
            """
        ).fetchone()
    return 0 if row is None else int(row[0])


def list_ends(db: Database, job_ids: Sequence[str]) -> list[RetrainLine]:
    """Return how each job ended, in the order given; one that has not is `still running`.

    A job whose person was erased meanwhile is left out.
    """
    with db.connection() as connection:
        rows = (
            connection.cursor(row_factory=class_row(_JobEnd))
            .execute(
                """
                SELECT j."id", j."userId" AS user_id, coalesce(j."outcome", j."status") AS ended,
                       coalesce(j."metrics" ->> 'gate', '') AS gate,
                       coalesce(j."errorMessage", '') AS error_message,
                       coalesce(extract(epoch FROM coalesce(j."completedAt"::timestamptz, now())
                                                   - j."startedAt"::timestamptz), 0)::float8 AS seconds,
                       coalesce(j."actualCost", 0)::float8 AS cost
                FROM unnest(%s::text[]) WITH ORDINALITY AS wanted (id, place)
                JOIN "FineTuningJob" j ON j."id" = wanted.id ORDER BY wanted.place
                """,
                (list(job_ids),),
            )
            .fetchall()
        )
    return [row.line() for row in rows]


_ENDS = {
    Outcome.PROMOTED.value: RetrainEnd.TRAINED,
    Outcome.KEPT_CURRENT.value: RetrainEnd.KEPT,
    Outcome.NOT_PROVEN.value: RetrainEnd.NOT_PROVEN,
    JobStatus.FAILED.value: RetrainEnd.FAILED,
    JobStatus.CANCELLED.value: RetrainEnd.CANCELLED,
}


class _JobEnd(NamedTuple):
    id: str
    user_id: str
    ended: str
    """Outcome of a completed job, status of any other."""
    gate: str
    error_message: str
    seconds: float
    cost: float

    def line(self) -> RetrainLine:
        end = _ENDS.get(self.ended, RetrainEnd.RUNNING)
        return RetrainLine(
            user_id=self.user_id,
            job_id=self.id,
            end=end,
            reason=self.error_message if end is RetrainEnd.FAILED else self.gate,
            minutes=round(self.seconds / 60, 2),
            cost=self.cost,
        )


# ---- inside a transaction ----------------------------------------------------------------------------


def _create_jobs(
    connection: Connection, wanted: Sequence[_Wanted], new_job: NewJob, trigger: Trigger, *, claimed: bool
) -> dict[str, str]:
    """Make the next job of each person; returns user id → job id.

    The caller holds the people's rows, which is what keeps version numbers right (see jobs.create_job). A
    person with a job under way, or a key that was used before, gets none. `claimed`: see store/dispatch.py.
    """
    if not wanted:
        return {}
    rows = connection.execute(
        """
        WITH wanted AS (
            SELECT w.*, 1 + coalesce((SELECT max(j."version") FROM "FineTuningJob" j
                                      WHERE j."userId" = w.user_id), 0) AS version
            FROM unnest(%(ids)s::text[], %(users)s::text[], %(keys)s::text[]) AS w (id, user_id, key)
        ), made AS (
            INSERT INTO "FineTuningJob" AS j (
                "id", "userId", "status", "progress", "trigger", "version", "baseModel", "loraRank",
                "loraAlpha", "config", "idempotencyKey", "dispatchedAt", "createdAt", "updatedAt"
            )
            SELECT id, user_id, 'PENDING', 0, %(trigger)s, version, %(base)s, %(rank)s, %(alpha)s,
                   %(config)s, key, CASE WHEN %(claimed)s THEN now() END, now(), now()
            FROM wanted
            ON CONFLICT DO NOTHING
            RETURNING j."id", j."userId", j."version"
        ), noted AS (
            INSERT INTO "FineTuningEvent" ("jobId", "level", "type", "message", "data")
            SELECT "id", 'info', 'status', 'Created as version ' || "version",
                   jsonb_build_object('status', 'PENDING', 'progress', 0, 'trigger', %(trigger)s::text)
            FROM made
        )
        SELECT "userId", "id" FROM made
        """,
        {
            "ids": [new_id("j") for _ in wanted],
            "users": [want.user_id for want in wanted],
            "keys": [want.key for want in wanted],
            "trigger": trigger.value,
            "base": new_job.base_model,
            "rank": new_job.lora_rank,
            "alpha": new_job.lora_alpha,
            "config": Jsonb(new_job.config),
            "claimed": claimed,
        },
    ).fetchall()
    return dict(rows)
