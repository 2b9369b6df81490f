"""Mail in and mail out: bulk insert, the newest sent mail with what it answers, and counts."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

from psycopg import sql
from psycopg.rows import dict_row

from store.database import Connection, Database
from training.schemas import Mail, RetrainMode

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
    ai_generated: bool = False


class SentCount(NamedTuple):
    """How much sent mail a person has, and at which count they were last told."""

    user_id: str
    sent: int
    notified: int


class SentState(NamedTuple):
    """How far a person's sent mail reaches: what arrives later is new to what is trained now."""

    sent: int
    last_position: int | None
    """`Mail.position` of the newest arrival; None without sent mail."""


class Selection(NamedTuple):
    """The mail of one training, and what it was chosen from."""

    mails: list[Mail]
    """Oldest first."""
    new: int
    """Mails chosen that arrived after the adapter in use was trained; all of them without one."""
    new_found: int
    """Mails that arrived since and could have been chosen."""
    old_found: int
    """Older mails that could have been chosen."""
    drafted: int
    """Mails left out because the AI drafted them, of the new ones (`incremental`) or of all."""
    unseen: frozenset[str]
    """Ids of the chosen mails whose thread held no mail yet when the adapter in use was trained."""


def insert_mail(db: Database, account_id: str, batch: Sequence[MailRow]) -> int:
    """Store `batch` in one transaction and return how many messages were new.

    A message that the account holds already is left alone, except that a missing body is filled in (the app
    may keep metadata only), that it becomes sent when an alias, known only now, shows that it is, and drafted
    by the AI when this source says so.
    """
    with db.transaction() as connection:
        connection.execute(
            """
            CREATE TEMP TABLE mail_batch (
                place integer, message_id text, thread_id text, in_reply_to text, is_sent boolean,
                sender text, recipients text, cc text, subject text, body_text text, body_html text,
                headers jsonb, sent_at timestamptz, ai_generated boolean
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
                        row.ai_generated,
                    )
                )
        added = connection.execute(
            sql.SQL(
                """
                INSERT INTO "EmailMessage" (
                    "id", "emailAccountId", "threadId", "messageId", "inReplyTo", {sent}, "from", "to", "cc",
                    "subject", "bodyText", "bodyHtml", "headers", "sentAt", "aiGenerated", "createdAt",
                    "updatedAt"
                )
                SELECT 'm' || replace(gen_random_uuid()::text, '-', ''), %s, thread_id, message_id,
                       in_reply_to, is_sent, sender, recipients, cc, subject, body_text, body_html,
                       headers, sent_at, ai_generated, now(), now()
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
                        "aiGenerated" = m."aiGenerated" IS TRUE OR b.ai_generated,
                        {sent} = m.{sent} OR b.is_sent, "updatedAt" = now()
                    FROM (SELECT DISTINCT ON (message_id) * FROM mail_batch ORDER BY message_id, place) b
                    WHERE m."emailAccountId" = %s AND m."messageId" = b.message_id
                      AND (b.is_sent AND NOT m.{sent}
                           OR b.ai_generated AND m."aiGenerated" IS NOT TRUE
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
        rows = _read(
            connection,
            db,
            """
            SELECT m."id"
            FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
            WHERE a."userId" = %(user)s AND m.{sent}
            ORDER BY m."sentAt" DESC NULLS LAST, m."position" DESC
            LIMIT %(limit)s
            """,
            {"user": user_id, "limit": limit},
        )
    return [_mail(row) for row in rows]


def fetch_sent_state(db: Database, user_id: str) -> SentState:
    """Return how many sent mails the person has and the last one's order of arrival."""
    with db.connection() as connection:
        row = connection.execute(
            sql.SQL(
                """
                SELECT max(m."position")
                FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
                WHERE a."userId" = %s AND m.{sent}
                """
            ).format(sent=db.sent),
            (user_id,),
        ).fetchone()
    return SentState(count_sent(db, user_id), None if row is None else row[0])


def select_mail(
    db: Database,
    user_id: str,
    limit: int,
    *,
    up_to: int,
    seen: int | None = None,
    mode: RetrainMode = RetrainMode.ROLLING,
    seed: str = "",
    apart: Collection[str] = (),
) -> Selection:
    """Return at most `limit` sent mails to train on; mail that the AI drafted takes no place among them.

    New is what arrived after position `seen` (None: everything) and not after `up_to`. `rolling` takes the
    newest by date, `incremental` the newest of the new, `replay` new and old in the shares of
    `share_places`, the old drawn at random: the same `seed` draws the same mail. `apart` holds the hashes
    (SHA-256, hex) of threads that stay out. Bodies are read for the chosen mails only.
    """
    known = -1 if seen is None else seen
    values: dict[str, Any] = {"user": user_id, "seen": known, "up_to": up_to, "apart": list(apart)}
    with db.transaction() as connection:
        found = connection.execute(
            sql.SQL(
                """
                WITH found AS (
                    SELECT m."position" > %(seen)s AS is_new, m."aiGenerated" IS TRUE AS drafted,
                           encode(sha256(convert_to(m."threadId", 'UTF8')), 'hex') = ANY (%(apart)s) AS apart
                    FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
                    WHERE a."userId" = %(user)s AND m.{sent} AND m."position" <= %(up_to)s
                )
                SELECT count(*) FILTER (WHERE is_new AND NOT drafted AND NOT apart),
                       count(*) FILTER (WHERE NOT is_new AND NOT drafted AND NOT apart),
                       count(*) FILTER (WHERE is_new AND drafted),
                       count(*) FILTER (WHERE drafted)
                FROM found
                """
            ).format(sent=db.sent),
            values,
        ).fetchone()
        assert found is not None
        new, old, new_drafted, drafted = found
        if mode is RetrainMode.REPLAY and seen is not None:
            newest, sampled = share_places(new, old, limit)
            oldest = known
        else:
            newest, sampled = limit, 0
            oldest = known if mode is RetrainMode.INCREMENTAL else -1
        rows = _read(
            connection,
            db,
            """
            SELECT "id" FROM (
                SELECT m."id" FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
                WHERE a."userId" = %(user)s AND m.{sent} AND m."aiGenerated" IS NOT TRUE
                  AND m."position" > %(oldest)s AND m."position" <= %(up_to)s
                  AND encode(sha256(convert_to(m."threadId", 'UTF8')), 'hex') <> ALL (%(apart)s)
                ORDER BY m."sentAt" DESC NULLS LAST, m."position" DESC
                LIMIT %(newest)s
            ) newest
            UNION ALL
            SELECT "id" FROM (
                SELECT m."id" FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
                WHERE a."userId" = %(user)s AND m.{sent} AND m."aiGenerated" IS NOT TRUE
                  AND m."position" <= %(oldest)s
                  AND encode(sha256(convert_to(m."threadId", 'UTF8')), 'hex') <> ALL (%(apart)s)
                ORDER BY md5(%(seed)s || m."id")
                LIMIT %(sampled)s
            ) sampled
            """,
            {**values, "oldest": oldest, "newest": newest, "sampled": sampled, "seed": seed},
        )
        mails = [_mail(row) for row in rows]
        seen_threads = {
            row[0]
            for row in connection.execute(
                sql.SQL(
                    """
                    SELECT DISTINCT m."threadId"
                    FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
                    WHERE a."userId" = %(user)s AND m.{sent} AND m."position" <= %(seen)s
                      AND m."threadId" = ANY (%(threads)s)
                    """
                ).format(sent=db.sent),
                {**values, "threads": list({mail.thread_id for mail in mails})},
            )
        }
    return Selection(
        mails,
        new=sum(mail.position > known for mail in mails),
        new_found=new,
        old_found=old,
        drafted=new_drafted if mode is RetrainMode.INCREMENTAL else drafted,
        unseen=frozenset(mail.id for mail in mails if mail.thread_id not in seen_threads),
    )


def share_places(new: int, old: int, limit: int) -> tuple[int, int]:
    """Return how many new and how many old mails get one of `limit` places in a replay.

    New mail comes first, but half of the places stay for the old when there is more than fits: an adapter
    trained on one busy month would forget the years before it.
    """
    places_for_new = min(new, max(limit // 2, limit - old))
    return places_for_new, min(old, limit - places_for_new)


def fetch_mail_by_hash(db: Database, user_id: str, hashes: Collection[str], limit: int) -> list[Mail]:
    """Return the person's sent mails whose ids have one of these hashes (SHA-256, hex), oldest first.

    Mail that was deleted meanwhile is not missed.
    """
    if not hashes:
        return []
    with db.connection() as connection:
        rows = _read(
            connection,
            db,
            """
            SELECT m."id" FROM "EmailAccount" a JOIN "EmailMessage" m ON m."emailAccountId" = a."id"
            WHERE a."userId" = %(user)s AND m.{sent}
              AND encode(sha256(convert_to(m."id", 'UTF8')), 'hex') = ANY (%(hashes)s)
            ORDER BY m."sentAt" DESC NULLS LAST, m."position" DESC
            LIMIT %(limit)s
            """,
            {"user": user_id, "hashes": list(hashes), "limit": limit},
        )
    return [_mail(row) for row in rows]


def _read(
    connection: Connection, db: Database, chosen: LiteralString, values: dict[str, Any]
) -> list[dict[str, Any]]:
    """Read the mails whose ids the query `chosen` returns, each with the message it answers, oldest first."""
    query = sql.SQL(
        """
        SELECT m."id", m."threadId" AS thread_id, m."position",
               m."sentAt"::timestamptz AS sent_at, m."from" AS sender, m."to", m."cc",
               m."subject", left(m."bodyText", %(max_text)s) AS body_text,
               left(m."bodyHtml", %(max_html)s) AS body_html, m."headers",
               m."inReplyTo" AS in_reply_to, m."aiGenerated" IS TRUE AS ai_generated,
               answered."body" AS answered_text
        FROM ({chosen}) chosen JOIN "EmailMessage" m ON m."id" = chosen."id"
        LEFT JOIN LATERAL (
            SELECT left(r."bodyText", %(max_answered)s) AS "body"
            FROM "EmailMessage" r JOIN "EmailAccount" ra ON ra."id" = r."emailAccountId"
            WHERE ra."userId" = %(user)s AND r."messageId" = m."inReplyTo"
            LIMIT 1
        ) answered ON m."inReplyTo" IS NOT NULL
        ORDER BY m."sentAt" NULLS FIRST, m."position"
        """
    ).format(chosen=sql.SQL(chosen).format(sent=db.sent))
    limits = {"max_answered": MAX_ANSWERED_CHARS, "max_text": MAX_TEXT_CHARS, "max_html": MAX_HTML_CHARS}
    return connection.cursor(row_factory=dict_row).execute(query, {**values, **limits}).fetchall()


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
