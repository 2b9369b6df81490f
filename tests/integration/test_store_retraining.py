"""Who is told, who is trained again and who is passed over: the scan and the monthly round in PostgreSQL."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from store import dispatch, jobs, retraining
from store.database import Connection, Database
from store.outbox import OutboxMessage, claim_messages
from store.retraining import NewJob, count_due_with_job, list_ends, scan, skip_due, take_due
from store.users import create_user, find_user, new_id
from training.errors import StoreError
from training.schemas import Job, JobStatus, Outcome, RetrainEnd, Stage, Trigger

NEW_JOB = NewJob(base_model="tiny", config={"name": "p", "epochs": 2}, lora_rank=8, lora_alpha=16.0)
TODAY = datetime.now(UTC)


def person(db: Database, name: str = "anna", *, sent: int = 0, **columns: Any) -> str:
    """Add a person with `sent` mails; `columns` of "User" by their own names."""
    user = create_user(db, f"{name}@example.org", user_id=f"u-{name}", consent=True)
    send(db, user.id, sent)
    if columns:
        put(db, user.id, **columns)
    return user.id


def trained(db: Database, name: str = "anna", *, sent: int, at: int, **columns: Any) -> str:
    """Add a person whose adapter was trained when they had sent `at` mails."""
    return person(db, name, sent=sent, **{"loraAdapterId": "j-old", "sentCountTrained": at, **columns})


def due(db: Database, name: str = "anna", *, sent: int = 150, at: int = 100, **columns: Any) -> str:
    """Add a person with an adapter whose next training was due an hour ago."""
    return trained(
        db, name, sent=sent, at=at, **{"adapterNextTraining": TODAY - timedelta(hours=1), **columns}
    )


def put(db: Database, user_id: str, **columns: Any) -> None:
    with db.connection() as connection:
        for column, value in columns.items():
            query = psycopg.sql.SQL('UPDATE "User" SET {} = %s WHERE "id" = %s')
            connection.execute(query.format(psycopg.sql.Identifier(column)), (value, user_id))


def add_account(db: Database, user_id: str, account: str) -> None:
    with db.connection() as connection:
        connection.execute(
            'INSERT INTO "EmailAccount" ("id", "userId", "email") VALUES (%s, %s, %s)',
            (account, user_id, f"{account}@example.org"),
        )


def send(db: Database, user_id: str, mails: int, account: str | None = None) -> None:
    """Let the person send mails, through the triggers that count them."""
    with db.connection() as connection:
        connection.execute(
            """
            INSERT INTO "EmailMessage" ("id", "emailAccountId", "threadId", "messageId", "isSent")
            SELECT %(id)s || n, a."id", 't', %(id)s || n, true
            FROM generate_series(1, %(mails)s) n,
                 (SELECT "id" FROM "EmailAccount" WHERE "userId" = %(user)s
                    AND (%(account)s::text IS NULL OR "id" = %(account)s) ORDER BY "id" LIMIT 1) a
            """,
            {"id": new_id("m"), "mails": mails, "user": user_id, "account": account},
        )


def notices(db: Database) -> list[OutboxMessage]:
    return [message for message in claim_messages(db, 1000) if message.event == "voice.eligible"]


def jobs_of(db: Database, user_id: str) -> list[Job]:
    return jobs.list_jobs(db, user_id)


def marked(db: Database) -> int:
    with db.connection() as connection:
        row = connection.execute('SELECT count(*) FROM "MailCount" WHERE "unscanned"').fetchone()
    assert row is not None
    return int(row[0])


def next_training_in_days(db: Database, user_id: str) -> float:
    at = find_user(db, user_id).adapter_next_training
    assert at is not None
    return (at - datetime.now(UTC)) / timedelta(days=1)


def end_session(db: Database, connection: Connection) -> None:
    """End a session before its COMMIT, as the death of its process does."""
    with db.connection() as other:
        other.execute("SELECT pg_terminate_backend(%s, 10000)", (connection.info.backend_pid,))


# ---- notices -----------------------------------------------------------------------------------------


def test_person_is_told_once_at_a_hundred_sent_mails(db: Database) -> None:
    anna = person(db, sent=99)
    assert scan(db, NEW_JOB).notices == 0
    send(db, anna, 1)
    report = scan(db, NEW_JOB)
    assert (report.accounts, report.users, report.notices, report.jobs) == (1, 1, 1, 0)
    (message,) = notices(db)
    assert message.payload == {"userId": anna, "sentCount": 100, "notice": 100}
    assert (message.user_id, message.job_id) == (anna, None)
    send(db, anna, 9)
    assert scan(db, NEW_JOB).notices == 0
    assert find_user(db, anna).sent_count_notified == 100


def test_jump_over_several_steps_is_one_notice_of_the_last(db: Database) -> None:
    anna = person(db, sent=100)
    scan(db, NEW_JOB)
    send(db, anna, 37)
    assert scan(db, NEW_JOB).notices == 1
    assert find_user(db, anna).sent_count_notified == 130


def test_mails_of_all_accounts_of_a_person_count(db: Database) -> None:
    anna = person(db, sent=60)
    add_account(db, anna, "zz-second")
    send(db, anna, 45, account="zz-second")
    report = scan(db, NEW_JOB)
    assert (report.accounts, report.users, report.notices) == (2, 1, 1)
    assert notices(db)[0].payload["sentCount"] == 105


def test_person_who_was_never_asked_for_consent_is_told_too(db: Database) -> None:
    person(db, sent=100, voiceConsentAt=None)
    assert scan(db, NEW_JOB).notices == 1


def test_first_training_is_the_persons_own_click(db: Database) -> None:
    anna = person(db, sent=500)
    assert scan(db, NEW_JOB).jobs == 0
    assert jobs_of(db, anna) == []


def test_person_with_an_adapter_is_not_told(db: Database) -> None:
    trained(db, sent=150, at=100)
    assert scan(db, NEW_JOB).notices == 0


# ---- a hundred new mails -----------------------------------------------------------------------------


def test_hundred_new_mails_make_a_waiting_job(db: Database) -> None:
    anna = trained(db, sent=199, at=100)
    assert scan(db, NEW_JOB).jobs == 0
    send(db, anna, 1)
    assert scan(db, NEW_JOB).jobs == 1
    (job,) = jobs_of(db, anna)
    assert (job.status, job.trigger, job.version) == (JobStatus.PENDING, Trigger.MAIL_COUNT, 1)
    assert (job.base_model, job.config, job.lora_rank, job.lora_alpha) == NEW_JOB
    (event,) = jobs.events(db, job.id)
    assert (event.type, event.message) == ("status", "Created as version 1")
    assert event.data == {"status": "PENDING", "progress": 0, "trigger": "mail_count"}
    # A dispatcher takes it like any other.
    assert [claimed.id for claimed in dispatch.claim_pending(db)] == [job.id]


@pytest.mark.parametrize(
    "columns",
    [{"voiceConsentAt": None}, {"adapterAutoRetrain": False}, {"loraAdapterId": None}],
    ids=["no consent", "not automatically", "no adapter"],
)
def test_nobody_is_trained_who_did_not_ask_for_it(db: Database, columns: dict[str, Any]) -> None:
    anna = trained(db, sent=300, at=100, **columns)
    assert scan(db, NEW_JOB).jobs == 0
    assert jobs_of(db, anna) == [] and marked(db) == 0


def test_version_follows_the_persons_newest_job(db: Database) -> None:
    anna = trained(db, sent=200, at=100)
    first = jobs.create_job(db, anna, base_model="tiny", config={}, lora_rank=8, lora_alpha=16)
    jobs.fail_job(db, first.id, "X", "x")
    scan(db, NEW_JOB)
    assert [job.version for job in jobs_of(db, anna)] == [2, 1]


def test_person_with_a_job_under_way_is_looked_at_again(db: Database) -> None:
    anna = trained(db, sent=200, at=100)
    running = jobs.create_job(db, anna, base_model="tiny", config={}, lora_rank=8, lora_alpha=16)
    assert scan(db, NEW_JOB).jobs == 0
    assert marked(db) == 1
    jobs.fail_job(db, running.id, "X", "x")
    assert scan(db, NEW_JOB).jobs == 1  # and no new mail was needed
    assert len(jobs_of(db, anna)) == 2


def test_failed_retrain_is_tried_again_after_the_next_hundred_mails_and_not_daily(db: Database) -> None:
    anna = trained(db, sent=200, at=100)
    scan(db, NEW_JOB)
    jobs.fail_job(db, jobs_of(db, anna)[0].id, "TRAINING_DIVERGED", "x")
    for new_mails, made in ((99, 0), (1, 1)):
        send(db, anna, new_mails)
        assert scan(db, NEW_JOB).jobs == made
    assert marked(db) == 0


def test_scan_without_new_mail_looks_at_nothing(db: Database) -> None:
    person(db, sent=150)
    scan(db, NEW_JOB)
    report = scan(db, NEW_JOB)
    assert (report.accounts, report.users, report.notices, report.jobs) == (0, 0, 0, 0)


# ---- what can go wrong -------------------------------------------------------------------------------


def test_scan_that_dies_in_a_batch_loses_nothing_and_repeats_nothing(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = [trained(db, f"p{n}", sent=200, at=100) for n in range(4)]
    told = [person(db, f"t{n}", sent=100) for n in range(4)]
    clear, batches = retraining._clear_marks, []

    def die_in_the_second(connection: Connection, accounts: Any) -> None:
        clear(connection, accounts)
        batches.append(accounts)
        if len(batches) == 2:
            end_session(db, connection)

    monkeypatch.setattr(retraining, "_clear_marks", die_in_the_second)
    with pytest.raises(StoreError):
        scan(db, NEW_JOB, batch_accounts=3)
    assert marked(db) == 5
    monkeypatch.undo()
    scan(db, NEW_JOB, batch_accounts=3)
    assert [len(jobs_of(db, user)) for user in people] == [1, 1, 1, 1]
    assert sorted(message.user_id for message in notices(db)) == told
    assert marked(db) == 0


def test_two_scans_at_once_tell_and_train_each_person_once(db: Database) -> None:
    for n in range(40):
        trained(db, f"p{n}", sent=200, at=100)
        person(db, f"t{n}", sent=100)
    ready, reports = threading.Barrier(2), []

    def one() -> None:
        ready.wait()
        reports.append(scan(db, NEW_JOB, batch_accounts=7))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # What one of them passed over because the other held it, the other has done.
    assert sum(report.jobs for report in reports) == len(jobs.list_jobs(db, limit=200)) == 40
    assert sum(report.notices for report in reports) == len(notices(db)) == 40
    assert marked(db) == 0


def test_account_that_is_being_imported_into_is_passed_over_and_not_waited_for(db: Database) -> None:
    anna, berta = person(db, "anna", sent=100), person(db, "berta", sent=100)
    with db.transaction() as importing:
        importing.execute(
            """
            UPDATE "MailCount" SET "sent" = "sent" + 1 WHERE "emailAccountId" =
                (SELECT "id" FROM "EmailAccount" WHERE "userId" = %s)
            """,
            (anna,),
        )
        assert scan(db, NEW_JOB).accounts == 1
    assert [message.user_id for message in notices(db)] == [berta]
    assert scan(db, NEW_JOB).notices == 1


def test_person_whose_row_is_held_is_looked_at_again_and_not_waited_for(db: Database) -> None:
    anna, berta = person(db, "anna", sent=100), person(db, "berta", sent=100)
    with db.transaction() as app:
        app.execute('SELECT 1 FROM "User" WHERE "id" = %s FOR UPDATE', (anna,))
        assert scan(db, NEW_JOB).notices == 1
    assert marked(db) == 1
    assert scan(db, NEW_JOB).notices == 1
    assert sorted(message.user_id for message in notices(db)) == [anna, berta]


def test_two_thousand_people_in_one_scan(db: Database) -> None:
    with db.transaction() as connection:
        connection.execute(
            """
            INSERT INTO "User" ("id", "email", "voiceConsentAt", "loraAdapterId", "sentCountTrained")
            SELECT 'u' || n, n || '@example.org', now(), CASE WHEN n % 2 = 0 THEN 'j-old' END, 0
            FROM generate_series(1, 2000) n
            """
        )
        connection.execute(
            """
            INSERT INTO "EmailAccount" ("id", "userId", "email")
            SELECT 'a' || n, 'u' || n, '' FROM generate_series(1, 2000) n
            """
        )
        connection.execute(
            """INSERT INTO "MailCount" ("emailAccountId", "sent")
               SELECT 'a' || n, 100 + n % 2 FROM generate_series(1, 2000) n"""
        )
    report = scan(db, NEW_JOB, batch_accounts=300)
    assert (report.accounts, report.users, report.notices, report.jobs) == (2000, 2000, 1000, 1000)
    assert marked(db) == 0
    made = jobs.list_jobs(db, limit=1000)
    assert len({job.id for job in made}) == 1000 and {job.version for job in made} == {1}
    assert {len(jobs.events(db, job.id)) for job in made[:5]} == {1}


def test_scan_and_round_read_no_mail(database_url: str, db: Database) -> None:
    def blocks() -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")
            row = connection.execute(
                """
                SELECT heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
                       + toast_blks_read + toast_blks_hit
                FROM pg_statio_user_tables WHERE relname = 'EmailMessage'
                """
            ).fetchone()
        assert row is not None
        return int(row[0])

    def flush() -> None:
        with db.connection() as connection:
            connection.execute("SELECT pg_stat_force_next_flush()")

    def seconds_of_work() -> None:
        scan(db, NEW_JOB)
        skip_due(db, min_new_mails=50, keep=10)
        take_due(db, NEW_JOB, limit=8, min_new_mails=50)

    with db.connection() as connection:
        connection.execute('ALTER TABLE "EmailMessage" SET (autovacuum_enabled = off)')  # it reads as well
    due(db, "anna", sent=150, at=100)
    trained(db, "berta", sent=200, at=100)
    person(db, "carla", sent=100)
    flush()
    before = blocks()
    assert before > 0  # the statistics work: writing the mail touched the table
    seconds_of_work()
    flush()
    assert blocks() == before
    assert len(jobs.list_jobs(db)) == 2


# ---- the monthly round -------------------------------------------------------------------------------


def test_person_who_is_due_gets_a_job_that_no_dispatcher_takes_as_well(db: Database) -> None:
    anna = due(db)
    (job_id,) = take_due(db, NEW_JOB, limit=8, min_new_mails=50)
    job = jobs.find_job(db, job_id)
    assert (job.user_id, job.trigger, job.version, job.status) == (anna, Trigger.SCHEDULE, 1, "PENDING")
    assert job.dispatched_at is not None and dispatch.claim_pending(db) == []
    assert [event.message for event in jobs.events(db, job_id)] == ["Created as version 1"]


@pytest.mark.parametrize(
    "columns",
    [
        {"voiceConsentAt": None},
        {"adapterAutoRetrain": False},
        {"loraAdapterId": None},
        {"adapterNextTraining": TODAY + timedelta(hours=1)},
        {"adapterNextTraining": None},
    ],
    ids=["no consent", "not automatically", "no adapter", "not yet", "no date"],
)
def test_nobody_else_is_due(db: Database, columns: dict[str, Any]) -> None:
    anna = due(db, **columns)
    before = find_user(db, anna)
    assert skip_due(db, min_new_mails=50, keep=10).people == 0
    assert take_due(db, NEW_JOB, limit=8, min_new_mails=50) == []
    assert find_user(db, anna) == before


def test_person_with_too_few_new_mails_is_skipped_until_the_next_interval(db: Database) -> None:
    anna = due(db, sent=149, at=100, adapterTrainingInterval=14)
    skips = skip_due(db, min_new_mails=50, keep=10)
    (line,) = skips.lines
    assert (skips.people, line.user_id, line.end) == (1, anna, RetrainEnd.SKIPPED)
    next_day = f"{datetime.now(UTC) + timedelta(days=14):%d %b %Y}"
    assert line.reason == f"49 new mails, 50 needed; next {next_day}"
    assert 13.9 < next_training_in_days(db, anna) <= 14
    assert take_due(db, NEW_JOB, limit=8, min_new_mails=50) == [] and jobs_of(db, anna) == []


def test_person_without_any_counted_mail_is_skipped_too(db: Database) -> None:
    due(db, sent=0, at=100)
    assert "-100 new mails" in skip_due(db, min_new_mails=50, keep=10).lines[0].reason


def test_all_are_skipped_but_only_the_first_are_named(db: Database) -> None:
    for n in range(7):
        due(db, f"p{n}", sent=100)
    skips = skip_due(db, min_new_mails=50, keep=4, batch=3)
    assert (skips.people, len(skips.lines)) == (7, 4)


def test_cohorts_are_taken_longest_due_first_until_nobody_is_left(db: Database) -> None:
    for n in range(5):
        due(db, f"p{n}", adapterNextTraining=TODAY - timedelta(days=n + 1))
    cohorts = [take_due(db, NEW_JOB, limit=2, min_new_mails=50) for _ in range(4)]
    people = [[jobs.find_job(db, job_id).user_id for job_id in cohort] for cohort in cohorts]
    assert people == [["u-p4", "u-p3"], ["u-p2", "u-p1"], ["u-p0"], []]


def test_two_rounds_at_once_start_nobody_twice(db: Database) -> None:
    for n in range(30):
        due(db, f"p{n}")
    ready, taken = threading.Barrier(2), list[str]()

    def one() -> None:
        ready.wait()
        while cohort := take_due(db, NEW_JOB, limit=4, min_new_mails=50):
            taken.extend(cohort)

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) == len(set(taken)) == len(jobs.list_jobs(db, limit=100)) == 30


def test_person_with_a_job_under_way_is_left_alone_and_counted(db: Database) -> None:
    anna = due(db)
    jobs.create_job(db, anna, base_model="tiny", config={}, lora_rank=8, lora_alpha=16)
    before = find_user(db, anna)
    assert count_due_with_job(db) == 1
    assert skip_due(db, min_new_mails=500, keep=10).people == 0
    assert take_due(db, NEW_JOB, limit=8, min_new_mails=50) == []
    assert find_user(db, anna) == before


def test_failed_retrain_comes_again_tomorrow_once_and_then_with_the_interval(db: Database) -> None:
    anna = due(db)
    for days in (1, 30):
        (job_id,) = take_due(db, NEW_JOB, limit=8, min_new_mails=50)
        jobs.fail_job(db, job_id, "TRAINING_CRASHED", "x")
        assert days - 0.1 < next_training_in_days(db, anna) <= days
        put(db, anna, adapterNextTraining=datetime.now(UTC) - timedelta(minutes=days))


def test_finished_retrain_sets_the_next_date_and_the_count(db: Database) -> None:
    anna = due(db, sent=180)
    (job_id,) = take_due(db, NEW_JOB, limit=8, min_new_mails=50)
    jobs.record(db, job_id, sent_count=180)
    jobs.enter_stage(db, job_id, Stage.EVALUATE)
    jobs.complete_job(db, job_id, Outcome.KEPT_CURRENT)
    assert 29.9 < next_training_in_days(db, anna) <= 30
    assert find_user(db, anna).sent_count_trained == 180


def test_scheduled_training_that_the_person_cancelled_is_not_offered_again_at_once(db: Database) -> None:
    anna = due(db)
    (job_id,) = take_due(db, NEW_JOB, limit=8, min_new_mails=50)
    jobs.mark_cancelled(db, job_id)
    put(db, anna, adapterNextTraining=TODAY)
    assert take_due(db, NEW_JOB, limit=8, min_new_mails=50) == []
    (line,) = skip_due(db, min_new_mails=50, keep=10).lines
    assert "the last scheduled training was cancelled" in line.reason


def test_round_that_dies_while_it_makes_jobs_leaves_everybody_due(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    anna = due(db)

    def die(connection: Connection, *_: Any) -> None:
        end_session(db, connection)

    monkeypatch.setattr(retraining, "_postpone", die)
    with pytest.raises(StoreError):
        take_due(db, NEW_JOB, limit=8, min_new_mails=50)
    assert jobs_of(db, anna) == []
    monkeypatch.undo()
    assert len(take_due(db, NEW_JOB, limit=8, min_new_mails=50)) == 1


def test_ends_of_a_cohort_are_told_in_order_with_reason_minutes_and_cost(db: Database) -> None:
    for n in range(5):
        due(db, f"p{n}", adapterNextTraining=TODAY - timedelta(days=n + 1))
    promoted, kept, failed, waiting, erased = take_due(db, NEW_JOB, limit=8, min_new_mails=50)
    for job_id, outcome in ((promoted, Outcome.PROMOTED), (kept, Outcome.KEPT_CURRENT)):
        jobs.record(db, job_id, metrics={"gate": f"because {outcome}"}, actual_cost=0.25)
        jobs.enter_stage(db, job_id, Stage.PUBLISH)
        jobs.complete_job(db, job_id, outcome, ai_provider="ollama", ai_model="m")
    jobs.fail_job(db, failed, "NOT_ENOUGH_MAIL", "12 usable mails of 100.")
    with db.connection() as connection:
        connection.execute(
            'UPDATE "FineTuningJob" SET "startedAt" = "completedAt" - interval \'90 s\' WHERE "id" = %s',
            (promoted,),
        )
        connection.execute('DELETE FROM "User" WHERE "id" = %s', (jobs.find_job(db, erased).user_id,))
    lines = list_ends(db, [promoted, kept, failed, waiting, erased])
    assert [line.end for line in lines] == [
        RetrainEnd.TRAINED,
        RetrainEnd.KEPT,
        RetrainEnd.FAILED,
        RetrainEnd.RUNNING,
    ]
    assert (lines[0].minutes, lines[0].cost, lines[0].reason) == (1.5, 0.25, "because PROMOTED")
    assert lines[2].reason == "12 usable mails of 100."
