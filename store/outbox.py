"""Webhooks to deliver: written in the transaction that causes them, delivered later and at least once.

A message is open until it is delivered or given up. Of one job's open messages only the first may be claimed,
so a receiver hears of them in the order in which they happened; messages without a job wait for each other
per person. A claim is a lease: a deliverer that dies loses nothing but two minutes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from store.database import Connection, Database
from training.schemas import Schema

LEASE_S = 120
"""A claimed message comes up again after this long, in case its deliverer died."""
KEEP_DAYS = 30
"""How long delivered and given-up messages can be looked up."""
FORGET_AT_ONCE = 10_000
"""Rows deleted in one statement: a backlog must not hold up the deliveries behind it."""


class OutboxMessage(Schema):
    """One row of "Outbox": what to tell the app, and how often that was tried."""

    id: int
    event_id: str
    """The same at every attempt: by it a receiver knows what it has already."""
    user_id: str
    job_id: str | None
    event: str
    payload: dict[str, Any]
    """Ids, states and counts; never mail."""
    attempts: int
    """This one included."""
    created_at: datetime
    age_s: float
    """Seconds between its cause and this claim, by the database's clock."""


class DeliveryState(Schema):
    """How far the app has been told about one job."""

    delivered: int
    waiting: int
    given_up: int
    last_error: str | None = None
    """Why the newest message in trouble was not accepted: a status code or an error's name."""


def add_message(
    connection: Connection, user_id: str, job_id: str | None, event: str, payload: dict[str, Any]
) -> None:
    """Queue a message inside the caller's transaction: it exists exactly when its cause does.

    The order of one job's messages is that of their ids, so the caller holds the job's row lock (or, without
    a job, the user's) when it calls this.
    """
    connection.execute(
        'INSERT INTO "Outbox" ("userId", "jobId", "event", "payload") VALUES (%s, %s, %s, %s)',
        (user_id, job_id, event, Jsonb(payload)),
    )


def claim_messages(db: Database, limit: int = 50) -> list[OutboxMessage]:
    """Take up to `limit` due messages, one a job; two deliverers never hold the same one.

    Claiming counts as an attempt: what kills its deliverer must not be tried for ever.
    """
    with db.connection() as connection:
        messages = (
            connection.cursor(row_factory=class_row(OutboxMessage))
            .execute(
                # MATERIALIZED: a sub-select may be run again by the join, and would lock beyond the limit.
                # LIMIT 1 keeps each look for the job's first message one step in an index; as NOT EXISTS,
                # PostgreSQL made it a join of all open messages with each other (minutes at 90,000).
                """
                WITH due AS MATERIALIZED (
                    SELECT "id" FROM "Outbox" m
                    WHERE "deliveredAt" IS NULL AND "givenUpAt" IS NULL AND "nextAttemptAt" <= now()
                      AND m."id" = CASE WHEN m."jobId" IS NULL THEN (
                          SELECT e."id" FROM "Outbox" e
                          WHERE e."userId" = m."userId" AND e."jobId" IS NULL
                            AND e."deliveredAt" IS NULL AND e."givenUpAt" IS NULL
                          ORDER BY e."id" LIMIT 1
                      ) ELSE (
                          SELECT e."id" FROM "Outbox" e
                          WHERE e."jobId" = m."jobId" AND e."deliveredAt" IS NULL AND e."givenUpAt" IS NULL
                          ORDER BY e."id" LIMIT 1
                      ) END
                    ORDER BY "nextAttemptAt", "id" LIMIT %(limit)s FOR UPDATE SKIP LOCKED
                )
                UPDATE "Outbox" o
                SET "attempts" = o."attempts" + 1, "nextAttemptAt" = now() + make_interval(secs => %(lease)s)
                FROM due WHERE o."id" = due."id"
                RETURNING o."id", o."eventId" AS event_id, o."userId" AS user_id, o."jobId" AS job_id,
                          o."event", o."payload", o."attempts", o."createdAt" AS created_at,
                          extract(epoch FROM now() - o."createdAt")::float8 AS age_s
                """,
                {"lease": LEASE_S, "limit": limit},
            )
            .fetchall()
        )
    return sorted(messages, key=lambda message: message.id)


def mark_delivered(db: Database, message: OutboxMessage) -> None:
    """Note that the receiver accepted the message."""
    with db.connection() as connection:
        connection.execute(
            'UPDATE "Outbox" SET "deliveredAt" = now(), "lastError" = NULL WHERE "id" = %s', (message.id,)
        )


def postpone_message(db: Database, message: OutboxMessage, error: str, delay_s: float) -> None:
    """Note why the delivery failed (never what the receiver said) and try again after `delay_s` seconds."""
    # A deliverer that slept through its lease must not cut short the lease of the one that took over.
    with db.connection() as connection:
        connection.execute(
            """
            UPDATE "Outbox" SET "lastError" = %s, "nextAttemptAt" = now() + make_interval(secs => %s)
            WHERE "id" = %s AND "attempts" = %s AND "deliveredAt" IS NULL AND "givenUpAt" IS NULL
            """,
            (error[:500], delay_s, message.id, message.attempts),
        )


def give_up(db: Database, message: OutboxMessage, error: str) -> None:
    """Stop trying, so that the later messages of the job may go."""
    with db.connection() as connection:
        connection.execute(
            """
            UPDATE "Outbox" SET "lastError" = %s, "givenUpAt" = now()
            WHERE "id" = %s AND "attempts" = %s AND "deliveredAt" IS NULL AND "givenUpAt" IS NULL
            """,
            (error[:500], message.id, message.attempts),
        )


def give_up_older_than(db: Database, age_s: float, error: str) -> int:
    """Give up every open message whose cause is older than `age_s` seconds; return how many."""
    with db.connection() as connection:
        return connection.execute(
            """
            UPDATE "Outbox" SET "lastError" = %s, "givenUpAt" = now()
            WHERE "deliveredAt" IS NULL AND "givenUpAt" IS NULL
              AND "createdAt" < now() - make_interval(secs => %s)
            """,
            (error[:500], age_s),
        ).rowcount


def forget_ended(db: Database, keep_days: int = KEEP_DAYS) -> int:
    """Delete delivered and given-up messages older than `keep_days` days; return how many."""
    with db.connection() as connection:
        return connection.execute(
            """
            DELETE FROM "Outbox" WHERE "id" IN (
                SELECT "id" FROM "Outbox"
                WHERE ("deliveredAt" IS NOT NULL OR "givenUpAt" IS NOT NULL)
                  AND "createdAt" < now() - make_interval(days => %s)
                ORDER BY "createdAt" LIMIT %s
            )
            """,
            (keep_days, FORGET_AT_ONCE),
        ).rowcount


def delivery_state(db: Database, job_id: str) -> DeliveryState:
    """Count one job's messages of the last `KEEP_DAYS` days by what became of them."""
    with db.connection() as connection:
        state = (
            connection.cursor(row_factory=class_row(DeliveryState))
            .execute(
                """
                SELECT count(*) FILTER (WHERE "deliveredAt" IS NOT NULL) AS delivered,
                       count(*) FILTER (WHERE "deliveredAt" IS NULL AND "givenUpAt" IS NULL) AS waiting,
                       count(*) FILTER (WHERE "givenUpAt" IS NOT NULL AND "deliveredAt" IS NULL) AS given_up,
                       (array_agg("lastError" ORDER BY "id" DESC) FILTER (WHERE "lastError" IS NOT NULL))[1]
                           AS last_error
                FROM "Outbox" WHERE "jobId" = %s
                """,
                (job_id,),
            )
            .fetchone()
        )
    assert state is not None
    return state
