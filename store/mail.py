"""Mail in and mail out: bulk insert, the newest sent mail with what it answers, and counts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from psycopg import sql
from psycopg.rows import dict_row

from store.database import Database
from training.schemas import Mail

MAX_ANSWERED_CHARS = 8_000
"""Context beyond this never fits the training window (2,048 tokens of about 4 characters)."""
MAX_HTML_CHARS = 400_000
MAX_TEXT_CHARS = 200_000
"""Cut while reading: a longer mail is dropped as TOO_LONG anyway, and 500 of them must fit in memory."""
REPLY_PREFIX = re.compile(
    r"\s*(?:re|aw|sv|antw|rif|res|odp|vs|ref|回复|答复)(?:\[\d+\])?\s*[::]", re.IGNORECASE
)
_COMMA_OUTSIDE_QUOTES = re.compile(r',(?=(?:[^"]*"[^"]*")*[^"]*$)')


class MailRow(NamedTuple):
    """One message as an importer hands it over. Text holds no NUL and no lone surrogate."""

    message_id: str
    thread_id: str
    in_reply_to: str | None
    is_sent: bool
    sender: str
    to: str
    cc: str
    subject: str
    body_text: str | None
    body_html: str | None
    headers: dict[str, str]
    sent_at: datetime | None


class SentCount(NamedTuple):
    """How much sent mail a person has, and at which count they were last told."""

    user_id: str
    sent: int
    notified: int


def insert_mail(db: Database, account_id: str, batch: Sequence[MailRow]) -> int:
    """Store `batch` in one transaction and return how many messages were new.

    A message that the account holds already is left alone, except that a missing body is filled in (the app
    may keep metadata only) and that it becomes sent when an alias, known only now, shows that it is.
    """
    with db.transaction() as connection:
        connection.execute(
            """
            CREATE TEMP TABLE mail_batch (
                place integer, message_id text, thread_id text, in_reply_to text, is_sent boolean,
                sender text, recipients text, cc text, subject text, body_text text, body_html text,
                headers jsonb, sent_at timestamptz
            ) ON COMMIT DROP
            """
        )
        with connection.cursor().copy("COPY mail_batch FROM STDIN") as copy:
            for place, row in enumerate(batch):
                copy.write_row(
                    (
                        place,
                        row.message_id,
                        row.thread_id,
                        row.in_reply_to,
                        row.is_sent,
                        row.sender,
                        row.to,
                        row.cc,
                        row.subject,
                        row.body_text,
                        row.body_html,
                        json.dumps(row.headers) if row.headers else "{}",
                        row.sent_at,
                    )
                )
        added = connection.execute(
            sql.SQL(
                """
                INSERT INTO "EmailMessage" (
                    "id", "emailAccountId", "threadId", "messageId", "inReplyTo", {sent}, "from", "to", "cc",
                    "subject", "bodyText", "bodyHtml", "headers", "sentAt", "createdAt", "updatedAt"
                )
                SELECT 'm' || replace(gen_random_uuid()::text, '-', ''), %s, thread_id, message_id,
                       in_reply_to, is_sent, sender, recipients, cc, subject, body_text, body_html,
                       headers, sent_at, now(), now()
                FROM mail_batch ORDER BY place
                ON CONFLICT ("emailAccountId", "messageId") DO NOTHING
                """
            ).format(sent=db.sent),
            (account_id,),
        ).rowcount
        if added < len(batch):
            connection.execute(
                sql.SQL(
                    """
                    UPDATE "EmailMessage" m
                    SET "bodyText" = coalesce(m."bodyText", b.body_text),
                        "bodyHtml" = coalesce(m."bodyHtml", b.body_html),
                        "headers" = b.headers || m."headers",
                        "subject" = coalesce(m."subject", b.subject),
                        {sent} = m.{sent} OR b.is_sent, "updatedAt" = now()
                    FROM (SELECT DISTINCT ON (message_id) * FROM mail_batch ORDER BY message_id, place) b
                    WHERE m."emailAccountId" = %s AND m."messageId" = b.message_id
                      AND (b.is_sent AND NOT m.{sent}
                           OR m."bodyText" IS NULL AND m."bodyHtml" IS NULL
                              AND (b.body_text IS NOT NULL OR b.body_html IS NOT NULL))
                    """
                ).format(sent=db.sent),
                (account_id,),
            )
    return added


def fetch_sent_mail(db: Database, user_id: str, limit: int) -> list[Mail]:
    """Return the person's newest `limit` sent mails, oldest first; undated mail keeps its order of arrival.

    `answered_text` is the body of the message that a mail answers, when the store holds it. Undated mail
    counts as older than any dated mail: in a mailbox that has both, the date was lost, not yet to come.
    """
    with db.connection() as connection:
        rows = (
            connection.cursor(row_factory=dict_row)
            .execute(
                sql.SQL(
                    """
                    WITH newest AS (
                        SELECT m.*
                        FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
                        WHERE a."userId" = %(user)s AND m.{sent}
                        ORDER BY m."sentAt" DESC NULLS LAST, m."position" DESC
                        LIMIT %(limit)s
                    )
                    SELECT m."id", m."threadId" AS thread_id, m."position",
                           m."sentAt"::timestamptz AS sent_at, m."from" AS sender, m."to", m."cc",
                           m."subject", left(m."bodyText", %(max_text)s) AS body_text,
                           left(m."bodyHtml", %(max_html)s) AS body_html, m."headers",
                           m."inReplyTo" AS in_reply_to, m."aiGenerated" AS ai_generated,
                           answered."body" AS answered_text
                    FROM newest m
                    LEFT JOIN LATERAL (
                        SELECT left(r."bodyText", %(max_answered)s) AS "body"
                        FROM "EmailMessage" r JOIN "EmailAccount" ra ON ra."id" = r."emailAccountId"
                        WHERE ra."userId" = %(user)s AND r."messageId" = m."inReplyTo"
                        LIMIT 1
                    ) answered ON m."inReplyTo" IS NOT NULL
                    ORDER BY m."sentAt" NULLS FIRST, m."position"
                    """
                ).format(sent=db.sent),
                {
                    "user": user_id,
                    "limit": limit,
                    "max_answered": MAX_ANSWERED_CHARS,
                    "max_text": MAX_TEXT_CHARS,
                    "max_html": MAX_HTML_CHARS,
                },
            )
            .fetchall()
        )
    return [_mail(row) for row in rows]


def count_sent(db: Database, user_id: str) -> int:
    """Return how many sent mails the person has, without counting them (see "MailCount")."""
    with db.connection() as connection:
        row = connection.execute(
            """
            SELECT coalesce(sum(c."sent"), 0)::bigint
            FROM "MailCount" c JOIN "EmailAccount" a ON a."id" = c."emailAccountId"
            WHERE a."userId" = %s
            """,
            (user_id,),
        ).fetchone()
    return int(row[0]) if row else 0


def list_sent_counts(db: Database, at_least: int = 0) -> list[SentCount]:
    """Return everybody with at least `at_least` sent mails; what the daily scan reads."""
    with db.connection() as connection:
        rows = connection.execute(
            """
            SELECT u."id", coalesce(sum(c."sent"), 0)::bigint, u."sentCountNotified"
            FROM "User" u
            LEFT JOIN "EmailAccount" a ON a."userId" = u."id"
            LEFT JOIN "MailCount" c ON c."emailAccountId" = a."id"
            GROUP BY u."id" HAVING coalesce(sum(c."sent"), 0) >= %s
            ORDER BY u."id"
            """,
            (at_least,),
        ).fetchall()
    return [SentCount(*row) for row in rows]


def count_sent_since(db: Database, user_id: str, moment: datetime) -> int:
    """Return how many sent mails reached the store after `moment` (arrival, not the date in the mail)."""
    with db.connection() as connection:
        row = connection.execute(
            sql.SQL(
                """
                SELECT count(*) FROM "EmailMessage" m JOIN "EmailAccount" a ON a."id" = m."emailAccountId"
                WHERE a."userId" = %s AND m.{sent} AND m."createdAt"::timestamptz > %s
                """
            ).format(sent=db.sent),
            (user_id, moment),
        ).fetchone()
    return int(row[0]) if row else 0


def join_addresses(entries: Iterable[str]) -> str:
    """Write a list of recipients as one column value; `split_addresses` reads it back."""
    quoted = (f'"{entry}"' if "," in entry and '"' not in entry else entry for entry in entries)
    return ", ".join(entry for entry in quoted if entry.strip())


def split_addresses(text: str | None) -> tuple[str, ...]:
    """Return the recipients of a "to" or "cc" column; commas inside double quotes do not separate."""
    if not text:
        return ()
    parts = _COMMA_OUTSIDE_QUOTES.split(text) if '"' in text else text.split(",")
    entries = (part.strip() for part in parts)
    return tuple(
        entry[1:-1] if entry.startswith('"') and entry.endswith('"') else entry for entry in entries if entry
    )


def _mail(row: dict[str, Any]) -> Mail:
    headers: dict[str, str] = row["headers"] or {}
    in_reply_to = row.pop("in_reply_to")
    subject = row["subject"] or ""
    return Mail(
        **{
            **row,
            "to": split_addresses(row["to"]),
            "cc": split_addresses(row["cc"]),
            "sender": row["sender"] or "",
            "subject": subject,
            "body_text": row["body_text"] or "",
            "body_html": row["body_html"] or "",
            "headers": headers,
            "answered_text": row["answered_text"] or "",
            "is_reply": bool(in_reply_to or "references-present" in headers or REPLY_PREFIX.match(subject)),
        }
    )
