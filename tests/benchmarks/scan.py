"""How long the daily scan takes after 10,000 new mails, and the monthly round's queries, as the store grows.

Rows are made by SQL, 20 mails a person on average: nine of ten have 10, one of ten has 110. Of those, half
have been told at 100 and half have an adapter, trained 100, 60 or 30 mails ago; one adapter of 30 is due.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from store import embedded
from store.database import Connection, migrate, open_database
from store.retraining import NewJob, scan, skip_due, take_due
from tests.benchmarks.child import Report

TITLE = "Scan"
SIZES = (10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000)
MAILS_A_PERSON = 20
NEW_MAILS = 10_000
COHORT = 8
MIN_NEW_MAILS = 50
LIMIT_S = 2.0
"""What a scan may take at the largest size."""
BYTES_A_PERSON = 15_000
"""Of disk, indexes and write-ahead log included."""
NEW_JOB = NewJob(base_model="smollm2-135m", config={}, lora_rank=16, lora_alpha=32.0)

_PEOPLE: LiteralString = """
INSERT INTO "User" ("id", "email", "voiceConsentAt", "sentCountNotified", "loraAdapterId", "sentCountTrained",
                    "adapterNextTraining")
SELECT 'u' || n, n || '@example.org', now(), CASE WHEN n %% 20 = 10 THEN 100 ELSE 0 END,
       CASE WHEN trained THEN 'j' || n END,
       CASE WHEN NOT trained THEN 0 ELSE (ARRAY[80, 50, 10])[1 + n / 20 %% 7 %% 3] END,
       CASE WHEN trained THEN now() + make_interval(days => n / 20 %% 30, hours => -1) END
FROM generate_series(1, %(people)s) n, LATERAL (SELECT n %% 20 = 0 AS trained) t
"""
_ACCOUNTS: LiteralString = """
INSERT INTO "EmailAccount" ("id", "userId", "email")
SELECT 'a' || n, 'u' || n, n || '@example.org' FROM generate_series(1, %(people)s) n
"""
_COUNTS: LiteralString = """
INSERT INTO "MailCount" ("emailAccountId", "sent", "unscanned")
SELECT 'a' || n, CASE WHEN n %% 10 = 0 THEN 110 ELSE 10 END, false FROM generate_series(1, %(people)s) n
"""
_MAIL: LiteralString = """
INSERT INTO "EmailMessage" ("id", "emailAccountId", "threadId", "messageId", "from", "to", "subject",
                            "bodyText", "isSent", "sentAt")
SELECT 'm' || n || '-' || k, 'a' || n, 't' || k / 3, k || '.' || n || '@example.org', n || '@example.org',
       'someone@example.net', 'Subject ' || k, repeat('A few words of a short mail. ', 3), true,
       now() - make_interval(hours => k)
FROM generate_series(%(first)s::int, %(last)s::int) n,
     generate_series(1, CASE WHEN n %% 10 = 0 THEN 110 ELSE 10 END) k
"""
# 7,919 is prime: the new mails go to people all over the table, one each where there are enough of them.
_ARRIVED: LiteralString = """
INSERT INTO "EmailMessage" ("id", "emailAccountId", "threadId", "messageId", "isSent", "sentAt", "bodyText")
SELECT 'new' || k, 'a' || 1 + k::bigint * 7919 %% %(people)s, 't', 'new' || k, true, now(), 'A new mail.'
FROM generate_series(1, %(mails)s) k
"""
_INDEXES: LiteralString = """
SELECT format('ALTER TABLE "EmailMessage" DROP CONSTRAINT %I', conname),
       format('ALTER TABLE "EmailMessage" ADD CONSTRAINT %I %s', conname, pg_get_constraintdef(oid))
FROM pg_constraint WHERE conrelid = '"EmailMessage"'::regclass AND contype = 'p'
UNION ALL
SELECT format('DROP INDEX %s', indexrelid::regclass), pg_get_indexdef(indexrelid)
FROM pg_index WHERE indrelid = '"EmailMessage"'::regclass AND NOT indisprimary
"""
_OTHER_SESSIONS: LiteralString = """
SELECT count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND datname = current_database()
"""
_MAIL_BLOCKS: LiteralString = """
SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit + toast_blks_read + toast_blks_hit
FROM pg_statio_user_tables WHERE relname = 'EmailMessage'
"""


def measure(work: Path, quick: bool, report: Report) -> dict[str, Any]:
    """Fill a fresh server at each size and time the scan in it; a size for which the disk is too small is
    left out with the reason."""
    sizes = QUICK_SIZES if quick else SIZES
    found: list[dict[str, Any]] = []
    done = 0
    for people in sizes:

        def on_step(share: float, text: str, before: int = done, size: int = people) -> None:
            report(before + share * size, sum(sizes), f"{size:,} people: {text}")

        needed, free = people * BYTES_A_PERSON, shutil.disk_usage(work).free
        if needed > free:
            reason = f"needs {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free"
            found.append({"people": people, "not_measured": reason})
        else:
            found.append(_measure_size(work / f"people-{people}", people, on_step))
        done += people
    return {"new_mails": NEW_MAILS, "limit_seconds": LIMIT_S, "sizes": found}


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Return the rows of the Markdown table, header first."""
    header = [
        f"after {figures['new_mails']:,} new mails (limit {figures['limit_seconds']:.0f} s)",
        "scan",
        "notices, jobs",
        "mail blocks read",
        "round: skips, first cohort",
        "database",
    ]
    return [header, *map(_row, figures["sizes"])]


def _row(size: dict[str, Any]) -> list[str]:
    if "not_measured" in size:
        return [f"{size['people']:,} people", size["not_measured"], "", "", "", ""]
    return [
        f"{size['people']:,} people, {size['mails']:,} mails",
        f"{size['scan_seconds']:.2f} s",
        f"{size['notices']}, {size['jobs']}",
        str(size["mail_blocks_read"]),
        f"{size['skip_seconds']:.2f} s, {size['cohort_seconds']:.3f} s",
        f"{size['database_bytes'] / 1e9:.2f} GB",
    ]


def _measure_size(home: Path, people: int, on_step: Callable[[float, str], None]) -> dict[str, Any]:
    """Fill a server of its own and measure in it; its folder goes with it."""
    try:
        url = embedded.start(home)
        with open_database(url) as db:
            migrate(db)
        started = time.monotonic()
        with psycopg.connect(url, autocommit=True) as connection:
            _fill(connection, people, on_step)
        filled = time.monotonic() - started
        on_step(0.97, "scanning")
        return {**_measure_scan(url, people), "fill_seconds": round(filled, 1)}
    finally:
        embedded.stop(home)
        shutil.rmtree(home, ignore_errors=True)


def _fill(connection: Connection, people: int, on_step: Callable[[float, str], None]) -> None:
    """Make people, counts and mail without triggers and indexes, then new mails as they come in life."""
    # Until the measurement nothing must survive a crash; autovacuum would read mail during it.
    _set(connection, fsync="off", synchronous_commit="off", max_wal_size="4GB", autovacuum="off")
    connection.execute("SET maintenance_work_mem = '512MB'")
    connection.execute("SET session_replication_role = replica")  # no triggers, no foreign keys
    for rows in (_PEOPLE, _ACCOUNTS, _COUNTS):
        connection.execute(rows, {"people": people})
    indexes = connection.execute(_INDEXES).fetchall()
    for drop, _ in indexes:
        connection.execute(drop.encode())
    batch = max(1_000, people // 40)
    for first in range(1, people + 1, batch):
        on_step(0.5 * first / people, "making mail")
        connection.execute(_MAIL, {"first": first, "last": min(people, first + batch - 1)})
    for number, (_, create) in enumerate(indexes):
        on_step(0.5 + 0.3 * number / len(indexes), "making indexes")
        connection.execute(create.encode())
    on_step(0.8, "vacuum and analyze")
    connection.execute("VACUUM (FREEZE, ANALYZE)")
    connection.execute("SET session_replication_role = origin")
    on_step(0.95, f"{NEW_MAILS:,} new mails")
    connection.execute(_ARRIVED, {"people": people, "mails": NEW_MAILS})
    _set(connection, fsync="on", synchronous_commit="on")
    connection.execute("CHECKPOINT")


def _measure_scan(url: str, people: int) -> dict[str, Any]:
    before = _number(url, _MAIL_BLOCKS)
    with open_database(url) as db:
        report = scan(db, NEW_JOB)
        started = time.monotonic()
        skips = skip_due(db, min_new_mails=MIN_NEW_MAILS, keep=10)
        skipped = time.monotonic()
        cohort = take_due(db, NEW_JOB, limit=COHORT, min_new_mails=MIN_NEW_MAILS)
        taken = time.monotonic()
    return {
        "people": people,
        "mails": people * MAILS_A_PERSON,
        "accounts": report.accounts,
        "notices": report.notices,
        "jobs": report.jobs,
        "scan_seconds": report.seconds,
        "within_limit": report.seconds < LIMIT_S,
        "skipped": skips.people,
        "skip_seconds": round(skipped - started, 3),
        "cohort": len(cohort),
        "cohort_seconds": round(taken - skipped, 3),
        "mail_blocks_read": _number(url, _MAIL_BLOCKS) - before,
        "database_bytes": _number(url, "SELECT pg_database_size(current_database())"),
    }


def _number(url: str, query: LiteralString) -> int:
    """Ask for one number when no other session is left: a session reports its counts when it ends."""
    with psycopg.connect(url, autocommit=True) as connection:
        while _one(connection, _OTHER_SESSIONS):
            time.sleep(0.05)
        return _one(connection, query)


def _one(connection: Connection, query: LiteralString) -> int:
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _set(connection: Connection, **settings: str) -> None:
    for name, value in settings.items():
        connection.execute(
            sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
        )
    connection.execute("SELECT pg_reload_conf()")
