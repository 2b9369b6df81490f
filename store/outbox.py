"""Webhooks to deliver: written in the transaction that causes them, delivered later and at least once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from store.database import Connection, Database
from training.schemas import Schema

LEASE_S = 120
"""A claimed message comes up again after this long, in case its deliverer died."""


class OutboxMessage(Schema):
    """One row of "Outbox": what to tell the app, and how often that was tried."""

    id: int
    user_id: str
    job_id: str | None
    event: str
    payload: dict[str, Any]
    """Ids, states and counts; never mail."""
    attempts: int
    created_at: datetime


def add_message(
    connection: Connection, user_id: str, job_id: str | None, event: str, payload: dict[str, Any]
) -> None:
    """Queue a message inside the caller's transaction: it exists exactly when its cause does."""
    connection.execute(
        'INSERT INTO "Outbox" ("userId", "jobId", "event", "payload") VALUES (%s, %s, %s, %s)',
        (user_id, job_id, event, Jsonb(payload)),
    )


def claim_messages(db: Database, limit: int = 50) -> list[OutboxMessage]:
    """Take up to `limit` due messages, oldest first; two deliverers never get the same one at once."""
    with db.connection() as connection:
        messages = (
            connection.cursor(row_factory=class_row(OutboxMessage))
            .execute(
                """
                UPDATE "Outbox" o
                SET "attempts" = o."attempts" + 1, "nextAttemptAt" = now() + make_interval(secs => %(lease)s)
                WHERE o."id" IN (
                    SELECT "id" FROM "Outbox" WHERE "deliveredAt" IS NULL AND "nextAttemptAt" <= now()
                    ORDER BY "id" LIMIT %(limit)s FOR UPDATE SKIP LOCKED
                )
                RETURNING o."id", o."userId" AS user_id, o."jobId" AS job_id, o."event", o."payload",
                          o."attempts", o."createdAt" AS created_at
                """,
                {"lease": LEASE_S, "limit": limit},
            )
            .fetchall()
        )
    return sorted(messages, key=lambda message: message.id)


def mark_delivered(db: Database, message_id: int) -> None:
    """Note that the receiver accepted the message."""
    with db.connection() as connection:
        connection.execute(
            'UPDATE "Outbox" SET "deliveredAt" = now(), "lastError" = NULL WHERE "id" = %s', (message_id,)
        )


def postpone_message(db: Database, message_id: int, error: str, delay_s: float) -> None:
    """Note why the delivery failed and try again after `delay_s` seconds."""
    with db.connection() as connection:
        connection.execute(
            """
            UPDATE "Outbox" SET "lastError" = %s, "nextAttemptAt" = now() + make_interval(secs => %s)
            WHERE "id" = %s AND "deliveredAt" IS NULL
            """,
            (error[:500], delay_s, message_id),
        )
