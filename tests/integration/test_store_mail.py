"""Mail goes in once, comes out newest first in the order of writing, and is counted without counting."""

from __future__ import annotations

import threading
import traceback
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from store.database import Database
from store.mail import (
    MAX_ANSWERED_CHARS,
    MailRow,
    count_sent,
    count_sent_since,
    fetch_sent_mail,
    insert_mail,
    list_sent_counts,
)
from store.users import create_user, ensure_account
from training.errors import StoreError
from training.schemas import User

DAY = datetime(2020, 2, 3, tzinfo=UTC)


@pytest.fixture
def anna(db: Database) -> User:
    return create_user(db, "anna@example.org")


@pytest.fixture
def account(db: Database, anna: User) -> str:
    return ensure_account(db, anna)


def row(message_id: str, **fields: object) -> MailRow:
    base = MailRow(message_id, "t", None, True, "anna@example.org", "", "", "Hi", "text", None, {}, None)
    return base._replace(**fields)


def test_same_message_is_stored_once(db: Database, account: str) -> None:
    assert insert_mail(db, account, [row("1"), row("2"), row("1")]) == 2
    assert insert_mail(db, account, [row("2"), row("3")]) == 1


def test_newest_mail_comes_last_and_undated_mail_keeps_its_order_before_it(
    db: Database, anna: User, account: str
) -> None:
    rows = [row("late", sent_at=DAY + timedelta(days=2)), row("u1"), row("early", sent_at=DAY), row("u2")]
    insert_mail(db, account, [r._replace(subject=r.message_id) for r in rows])
    assert [mail.subject for mail in fetch_sent_mail(db, anna.id, 10)] == ["u1", "u2", "early", "late"]
    assert [mail.subject for mail in fetch_sent_mail(db, anna.id, 3)] == ["u2", "early", "late"]


def test_order_of_a_large_undated_batch_is_that_of_the_file(db: Database, anna: User, account: str) -> None:
    names = [f"{(n * 7919) % 1000:04}" for n in range(1000)]
    insert_mail(db, account, [row(name, subject=name) for name in names])
    assert [mail.subject for mail in fetch_sent_mail(db, anna.id, 1000)] == names


def test_answered_text_is_the_received_message_cut_to_fit(db: Database, anna: User, account: str) -> None:
    long = "x" * (MAX_ANSWERED_CHARS + 1)
    insert_mail(db, account, [row("q", is_sent=False, body_text=long), row("a", in_reply_to="q"), row("b")])
    answer, other = fetch_sent_mail(db, anna.id, 10)
    assert (answer.answered_text, answer.is_reply) == (long[:-1], True)
    assert (other.answered_text, other.is_reply) == ("", False)


def test_nobody_elses_message_is_an_answered_text(db: Database, anna: User, account: str) -> None:
    bert = create_user(db, "bert@example.org")
    insert_mail(db, ensure_account(db, bert), [row("q", is_sent=False, body_text="private")])
    insert_mail(db, account, [row("a", in_reply_to="q")])
    assert fetch_sent_mail(db, anna.id, 1)[0].answered_text == ""
    assert fetch_sent_mail(db, bert.id, 1) == []


def test_fields_survive_the_round_trip(db: Database, anna: User, account: str) -> None:
    headers = {"list-id": "<dev.example.org>", "references-present": "1"}
    stored = row(
        "1", to='"Li, Wei" <w@x.org>, b@x.org', cc="c@x.org", subject="Grüße 🎈", headers=headers,
        body_text="a\tb\\N\n", body_html="<p>", sent_at=DAY, thread_id="t7",
    )  # fmt: skip
    insert_mail(db, account, [stored])
    (mail,) = fetch_sent_mail(db, anna.id, 1)
    assert (mail.to, mail.cc) == (('"Li, Wei" <w@x.org>', "b@x.org"), ("c@x.org",))
    assert (mail.subject, mail.body_text, mail.body_html) == ("Grüße 🎈", "a\tb\\N\n", "<p>")
    assert (mail.headers, mail.sent_at, mail.thread_id, mail.is_reply) == (headers, DAY, "t7", True)


def test_missing_body_is_filled_and_a_stored_one_is_kept(db: Database, anna: User, account: str) -> None:
    insert_mail(db, account, [row("1", body_text=None), row("2", body_text="first")])
    assert insert_mail(db, account, [row("1", body_text="filled"), row("2", body_text="second")]) == 0
    assert [mail.body_text for mail in fetch_sent_mail(db, anna.id, 5)] == ["filled", "first"]


def test_count_follows_insert_update_delete_and_truncate(db: Database, anna: User, account: str) -> None:
    insert_mail(db, account, [row(str(n), is_sent=n % 2 == 0) for n in range(10)])
    assert count_sent(db, anna.id) == 5
    with db.connection() as connection:
        connection.execute('UPDATE "EmailMessage" SET "isSent" = true WHERE "messageId" = %s', ("1",))
        assert count_sent(db, anna.id) == 6
        connection.execute('UPDATE "EmailMessage" SET "subject" = %s', ("x",))
        assert count_sent(db, anna.id) == 6
        connection.execute("""DELETE FROM "EmailMessage" WHERE "messageId" IN ('0', '1', '3')""")
        assert count_sent(db, anna.id) == 4
        connection.execute('TRUNCATE "EmailMessage"')
    assert count_sent(db, anna.id) == 0


def test_count_survives_copy_rollback_and_deleted_account(db: Database, anna: User, account: str) -> None:
    with pytest.raises(RuntimeError), db.transaction() as connection:
        connection.execute(
            """INSERT INTO "EmailMessage" ("id", "emailAccountId", "threadId", "messageId", "isSent")
               VALUES ('x', %s, 't', 'x', true)""",
            (account,),
        )
        raise RuntimeError
    assert count_sent(db, anna.id) == 0
    with db.transaction() as connection:
        copy = 'COPY "EmailMessage" ("id", "emailAccountId", "threadId", "messageId", "isSent") FROM STDIN'
        with connection.cursor().copy(copy) as rows:
            for n in range(2000):
                rows.write_row((f"c{n}", account, "t", f"c{n}", True))
    assert count_sent(db, anna.id) == 2000
    with db.connection() as connection:
        connection.execute('DELETE FROM "EmailAccount" WHERE "id" = %s', (account,))
    assert count_sent(db, anna.id) == 0


def test_two_imports_at_once_lose_no_count(db: Database, anna: User, account: str) -> None:
    def run(start: int) -> None:
        for batch in range(5):
            insert_mail(db, account, [row(f"{start}-{batch}-{n}") for n in range(50)])

    threads = [threading.Thread(target=run, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count_sent(db, anna.id) == 1000


def test_counts_of_everybody_and_since_a_moment(db: Database, anna: User, account: str) -> None:
    create_user(db, "bert@example.org")
    before = datetime.now(UTC) - timedelta(minutes=1)
    insert_mail(db, account, [row(str(n)) for n in range(3)])
    assert [(count.user_id, count.sent) for count in list_sent_counts(db, at_least=1)] == [(anna.id, 3)]
    assert len(list_sent_counts(db)) == 2
    assert count_sent_since(db, anna.id, before) == 3
    assert count_sent_since(db, anna.id, datetime.now(UTC) + timedelta(minutes=1)) == 0


def test_refused_data_shows_no_mail_in_message_or_traceback(db: Database, account: str) -> None:
    words = " ".join(["marsupial", "sherry"])  # not written out: a traceback quotes this file too
    with pytest.raises(StoreError, match="refused the data") as refused:
        insert_mail(db, account, [row("1", body_text=words, subject=None, sender=None)])
    assert isinstance(refused.value.__cause__, psycopg.Error)
    assert words not in "".join(traceback.format_exception(refused.value))


def test_restarted_server_costs_a_reconnect_and_no_error(db: Database, anna: User, database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as other:
        other.execute(
            """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND pid <> pg_backend_pid()
            """
        )
    assert count_sent(db, anna.id) == 0
