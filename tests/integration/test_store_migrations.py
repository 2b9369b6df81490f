"""The schema comes out the same from an empty database and from the app's own Prisma migrations."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from store import jobs
from store.database import Database, migrate, open_database, pending_migrations
from store.mail import MailRow, count_sent, fetch_sent_mail, insert_mail
from store.users import create_user, ensure_account, find_user, record_consent
from training.errors import ConfigError, StoreError
from training.schemas import JobStatus, Outcome, Stage

# What `prisma migrate` makes of the owner's models: text ids, timestamp(3), @updatedAt without a default in
# the database, an enum for the status, and mail as metadata only with the flag named "sent".
PRISMA = """
CREATE TYPE "FineTuningStatus" AS ENUM (
    'PENDING', 'EXTRACTING_DATA', 'PREPARING_DATA', 'TRAINING', 'DEPLOYING', 'COMPLETED', 'FAILED',
    'CANCELLED');
CREATE TABLE "User" (
    "id" TEXT NOT NULL, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL, "email" TEXT NOT NULL, "name" TEXT, "aiProvider" TEXT, "aiModel" TEXT,
    "loraAdapterId" TEXT, "loraAdapterPath" TEXT, "adapterLastTrained" TIMESTAMP(3),
    CONSTRAINT "User_pkey" PRIMARY KEY ("id"));
CREATE UNIQUE INDEX "User_email_key" ON "User" ("email");
CREATE TABLE "EmailAccount" (
    "id" TEXT NOT NULL, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL, "email" TEXT NOT NULL, "userId" TEXT NOT NULL,
    CONSTRAINT "EmailAccount_pkey" PRIMARY KEY ("id"));
ALTER TABLE "EmailAccount" ADD CONSTRAINT "EmailAccount_userId_fkey" FOREIGN KEY ("userId")
    REFERENCES "User" ("id") ON DELETE CASCADE ON UPDATE CASCADE;
CREATE TABLE "EmailMessage" (
    "id" TEXT NOT NULL, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL, "threadId" TEXT NOT NULL, "messageId" TEXT NOT NULL,
    "date" TIMESTAMP(3) NOT NULL, "from" TEXT NOT NULL, "fromDomain" TEXT NOT NULL, "to" TEXT NOT NULL,
    "read" BOOLEAN NOT NULL, "sent" BOOLEAN NOT NULL, "draft" BOOLEAN NOT NULL,
    "emailAccountId" TEXT NOT NULL, CONSTRAINT "EmailMessage_pkey" PRIMARY KEY ("id"));
CREATE UNIQUE INDEX "EmailMessage_key" ON "EmailMessage" ("emailAccountId", "threadId", "messageId");
ALTER TABLE "EmailMessage" ADD CONSTRAINT "EmailMessage_emailAccountId_fkey" FOREIGN KEY ("emailAccountId")
    REFERENCES "EmailAccount" ("id") ON DELETE CASCADE ON UPDATE CASCADE;
CREATE TABLE "FineTuningJob" (
    "id" TEXT NOT NULL, "createdAt" TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt" TIMESTAMP(3) NOT NULL, "userId" TEXT NOT NULL,
    "status" "FineTuningStatus" NOT NULL DEFAULT 'PENDING', "progress" INTEGER NOT NULL DEFAULT 0,
    "baseModel" TEXT NOT NULL, "modelName" TEXT, "emailCount" INTEGER NOT NULL, "errorMessage" TEXT,
    "estimatedCost" DECIMAL(65,30), "loraRank" INTEGER DEFAULT 16, "loraAlpha" INTEGER DEFAULT 16,
    "adapterPath" TEXT, "adapterSize" INTEGER, "startedAt" TIMESTAMP(3), "completedAt" TIMESTAMP(3),
    CONSTRAINT "FineTuningJob_pkey" PRIMARY KEY ("id"));
ALTER TABLE "FineTuningJob" ADD CONSTRAINT "FineTuningJob_userId_fkey" FOREIGN KEY ("userId")
    REFERENCES "User" ("id") ON DELETE CASCADE ON UPDATE CASCADE;
CREATE INDEX "FineTuningJob_status_idx" ON "FineTuningJob" ("status");

INSERT INTO "User" ("id", "email", "updatedAt") VALUES ('cmgl819t70000jp2x', 'Anna@Example.org', now());
INSERT INTO "EmailAccount" ("id", "email", "userId", "updatedAt")
    VALUES ('acc', 'Anna@Example.org', 'cmgl819t70000jp2x', now());
INSERT INTO "EmailMessage" ("id", "updatedAt", "threadId", "messageId", "date", "from", "fromDomain", "to",
                            "read", "sent", "draft", "emailAccountId") VALUES
    ('m1', now(), 't1', 'g1', '2020-02-03 10:00', 'anna@example.org', 'x', 'b@x', true, true, false, 'acc'),
    ('m2', now(), 't1', 'g2', '2020-02-04 10:00', 'b@x', 'x', 'anna@example.org', true, false, false, 'acc');
INSERT INTO "FineTuningJob" ("id", "userId", "status", "baseModel", "emailCount", "createdAt", "updatedAt",
                             "estimatedCost") VALUES
    ('job_1', 'cmgl819t70000jp2x', 'COMPLETED', 'llama', 104, '2025-10-01', now(), 1.5),
    ('job_2', 'cmgl819t70000jp2x', 'PENDING', 'llama', 104, '2025-10-02', now(), NULL),
    ('job_3', 'cmgl819t70000jp2x', 'PENDING', 'llama', 104, '2025-10-03', now(), NULL);
"""

COLUMNS = """
    SELECT table_name, column_name FROM information_schema.columns
    WHERE table_schema = 'public' ORDER BY 1, 2
"""


def execute(db: Database, statements: str) -> None:
    with db.connection() as connection:
        connection.execute(statements.encode())


ALL = [
    "001_users_and_mail",
    "002_mail_count",
    "003_jobs",
    "004_orchestration",
    "005_outbox_order",
    "006_measured_runs",
]


def test_migrations_run_once_from_an_empty_database(empty_database_url: str) -> None:
    with open_database(empty_database_url) as db:
        assert pending_migrations(db) == ALL
        assert migrate(db) == ALL
        assert migrate(db) == [] == pending_migrations(db)


def test_two_migrators_at_once_take_turns(empty_database_url: str) -> None:
    applied: list[list[str]] = []

    def run() -> None:
        with open_database(empty_database_url) as db:
            applied.append(migrate(db))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, applied)) == [0, 0, len(ALL)]


def test_statements_can_all_run_again(empty_database_url: str) -> None:
    with open_database(empty_database_url) as db:
        migrate(db)
        execute(db, 'DELETE FROM "OwnvoiceMigration"')
        assert migrate(db) == ALL


def test_prisma_schema_gains_every_column_of_an_empty_start(
    empty_database_url: str, database_url: str
) -> None:
    with open_database(empty_database_url, sent_column="sent") as app, open_database(database_url) as fresh:
        execute(app, PRISMA)
        migrate(app)
        with app.connection() as a, fresh.connection() as b:
            missing = set(b.execute(COLUMNS).fetchall()) - set(a.execute(COLUMNS).fetchall())
        assert missing == {("EmailMessage", "isSent")}


def test_app_data_is_counted_numbered_and_dated_after_migration(empty_database_url: str) -> None:
    with open_database(empty_database_url, sent_column="sent") as db:
        execute(db, PRISMA)
        migrate(db)
        anna = find_user(db, "anna@example.org")
        assert count_sent(db, anna.id) == 1
        (mail,) = fetch_sent_mail(db, anna.id, 10)
        assert (mail.id, mail.sent_at, mail.body_text) == ("m1", datetime(2020, 2, 3, 10, tzinfo=UTC), "")
        newest, superseded, done = jobs.list_jobs(db, anna.id)
        assert [job.version for job in (newest, superseded, done)] == [3, 2, 1]
        assert (newest.status, superseded.status, superseded.error_code) == (
            "PENDING",
            "FAILED",
            "SUPERSEDED",
        )
        assert (done.estimated_cost, done.lora_alpha) == (1.5, 16)
        assert done.created_at == datetime(2025, 10, 1, tzinfo=UTC)


def test_mail_from_before_counts_as_known_to_an_adapter_from_before(empty_database_url: str) -> None:
    with open_database(empty_database_url, sent_column="sent") as db:
        execute(db, PRISMA)
        execute(db, """UPDATE "User" SET "loraAdapterId" = 'job_1'""")
        migrate(db)
        assert find_user(db, "anna@example.org").sent_count_trained == 1


def test_whole_job_runs_on_the_app_schema(empty_database_url: str) -> None:
    with open_database(empty_database_url, sent_column="sent") as db:
        execute(db, PRISMA)
        migrate(db)
        anna = record_consent(db, "cmgl819t70000jp2x")
        jobs.request_cancel(db, "job_3")
        job = jobs.create_job(db, anna.id, base_model="b", config={}, lora_rank=8, lora_alpha=16)
        assert job.version == 4
        jobs.enter_stage(db, job.id, Stage.EVALUATE)
        jobs.enter_stage(db, job.id, Stage.PUBLISH)
        done = jobs.complete_job(db, job.id, Outcome.PROMOTED, ai_provider="ollama", ai_model="m:v4")
        user = find_user(db, anna.id)
        assert done.status is JobStatus.COMPLETED and user.lora_adapter_id == job.id
        assert user.adapter_last_trained is not None and user.adapter_last_trained.tzinfo is not None
        assert abs((datetime.now(UTC) - user.adapter_last_trained).total_seconds()) < 60


def test_new_users_and_mail_fit_the_required_columns_of_the_app(empty_database_url: str) -> None:
    with open_database(empty_database_url, sent_column="sent") as db:
        execute(db, PRISMA)
        migrate(db)
        bert = create_user(db, "bert@example.org")
        sent_at = datetime(2021, 5, 6, tzinfo=UTC)
        rows = [
            MailRow(f"<{n}>", "t", None, True, "bert@example.org", "", "", "Hi", "text", None, {}, when)
            for n, when in enumerate([sent_at, None])
        ]
        assert insert_mail(db, ensure_account(db, bert), rows) == 2
        undated, dated = fetch_sent_mail(db, bert.id, 10)
        assert (undated.sent_at, dated.sent_at) == (None, sent_at)
        # The app's own later insert gets a sentAt from its "date".
        execute(
            db,
            """
            INSERT INTO "EmailMessage" ("id", "updatedAt", "threadId", "messageId", "date", "from",
                                        "fromDomain", "to", "read", "sent", "draft", "emailAccountId")
            SELECT 'app', now(), 't9', 'g9', '2022-01-01', 'bert@example.org', 'x', '', true, true, false,
                   "id"
            FROM "EmailAccount" WHERE "email" = 'bert@example.org'
            """,
        )
        assert fetch_sent_mail(db, bert.id, 1)[0].sent_at == datetime(2022, 1, 1, tzinfo=UTC)
        assert count_sent(db, bert.id) == 3


def test_wrong_name_of_the_sent_flag_is_refused_with_the_right_one(empty_database_url: str) -> None:
    with open_database(empty_database_url) as db:
        execute(db, PRISMA)
        with pytest.raises(ConfigError, match="OWNVOICE_SENT_COLUMN=sent"):
            migrate(db)
    with open_database(empty_database_url, sent_column="sent") as db:
        migrate(db)
    with (
        open_database(empty_database_url, sent_column="other") as db,
        pytest.raises(ConfigError, match="=sent"),
    ):
        migrate(db)


def test_hostile_name_of_the_sent_flag_is_only_a_name(empty_database_url: str) -> None:
    with open_database(empty_database_url, sent_column='x" boolean; DROP TABLE "User"; --') as db:
        migrate(db)
        anna = create_user(db, "anna@example.org")
        row = MailRow("1", "t", None, True, "", "", "", "", "x", None, {}, None)
        insert_mail(db, ensure_account(db, anna), [row])
        assert count_sent(db, anna.id) == len(fetch_sent_mail(db, anna.id, 5)) == 1


def test_missing_tables_name_the_command_that_makes_them(empty_database_url: str) -> None:
    with open_database(empty_database_url) as db, pytest.raises(StoreError, match="ownvoice db upgrade"):
        find_user(db, "anna@example.org")
