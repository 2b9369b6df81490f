"""Mail goes in once, comes out newest first in the order of writing, and is counted without counting."""

from __future__ import annotations

import threading
import traceback
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from store.database import Database
from store.mail import (
    MAX_ANSWERED_CHARS,
    MailRow,
    Selection,
    SentState,
    count_sent,
    count_sent_since,
    fetch_mail_by_hash,
    fetch_sent_mail,
    fetch_sent_state,
    insert_mail,
    list_sent_counts,
    select_mail,
    share_places,
)
from store.users import create_user, ensure_account
from training.dataset import hash_id
from training.errors import StoreError
from training.schemas import RetrainMode, User

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


def test_a_later_export_may_say_that_the_ai_drafted_a_mail_and_none_takes_it_back(
    db: Database, anna: User, account: str
) -> None:
    insert_mail(db, account, [row("1"), row("2", ai_generated=True)])
    insert_mail(db, account, [row("1", ai_generated=True), row("2")])
    assert [mail.ai_generated for mail in fetch_sent_mail(db, anna.id, 5)] == [True, True]


def test_a_flag_that_the_app_left_empty_is_a_mail_of_a_person(db: Database, anna: User, account: str) -> None:
    insert_mail(db, account, [row("1")])
    with db.connection() as connection:
        connection.execute('ALTER TABLE "EmailMessage" ALTER COLUMN "aiGenerated" DROP NOT NULL')
        connection.execute('UPDATE "EmailMessage" SET "aiGenerated" = NULL')
    assert [mail.ai_generated for mail in fetch_sent_mail(db, anna.id, 5)] == [False]


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


# ---- the mail of a retrain -------------------------------------------------------------------------


@pytest.fixture
def old_and_new(db: Database, anna: User, account: str) -> int:
    """Eight mails that the adapter in use knows, then four new ones; returns the last known position."""
    insert_mail(db, account, [arrived(f"old{n}", day=n) for n in range(8)])
    seen = fetch_sent_state(db, anna.id).last_position
    assert seen is not None
    # An archive that is imported late is old by date and new to the adapter; so is mail without a date.
    days = {"new0": 20, "new1": 21, "new2": -90, "new3": None}
    insert_mail(db, account, [arrived(name, day=day) for name, day in days.items()])
    return seen


def arrived(name: str, *, day: int | None, **fields: object) -> MailRow:
    moment = None if day is None else DAY + timedelta(days=day)
    return row(name, subject=name, thread_id=f"thread of {name}", sent_at=moment, **fields)


def select(
    db: Database,
    user: User,
    limit: int,
    seen: int | None,
    mode: RetrainMode,
    seed: str = "job-1",
    **rest: Any,
) -> Selection:
    end = fetch_sent_state(db, user.id).last_position or 0
    return select_mail(db, user.id, limit, seen=seen, mode=mode, seed=seed, **{"up_to": end, **rest})


def names(selection: Selection) -> set[str]:
    return {mail.subject for mail in selection.mails}


def set_drafted(db: Database, name: str) -> None:
    with db.connection() as connection:
        connection.execute('UPDATE "EmailMessage" SET "aiGenerated" = true WHERE "messageId" = %s', (name,))


def test_sent_mail_reaches_to_the_last_arrival_whatever_its_date(
    db: Database, anna: User, account: str, old_and_new: int
) -> None:
    state = fetch_sent_state(db, anna.id)
    assert state == SentState(12, old_and_new + 4)
    insert_mail(db, account, [row("received", is_sent=False)])
    assert fetch_sent_state(db, anna.id) == state
    assert fetch_sent_state(db, create_user(db, "bert@example.org").id) == SentState(0, None)


def test_incremental_takes_what_arrived_since_and_nothing_else(
    db: Database, anna: User, old_and_new: int
) -> None:
    chosen = select(db, anna, 500, old_and_new, RetrainMode.INCREMENTAL)
    assert names(chosen) == {"new0", "new1", "new2", "new3"}
    assert (chosen.new, chosen.new_found, chosen.old_found) == (4, 4, 8)
    assert names(select(db, anna, 2, old_and_new, RetrainMode.INCREMENTAL)) == {"new0", "new1"}


def test_rolling_takes_the_newest_by_date_and_undated_mail_last(
    db: Database, anna: User, old_and_new: int
) -> None:
    chosen = select(db, anna, 5, old_and_new, RetrainMode.ROLLING)
    assert names(chosen) == {"new0", "new1", "old7", "old6", "old5"}
    assert (chosen.new, chosen.new_found, chosen.old_found) == (2, 4, 8)
    assert "new3" not in names(select(db, anna, 11, old_and_new, RetrainMode.ROLLING))


def test_replay_takes_all_new_mail_and_a_sample_of_the_old_that_the_seed_decides(
    db: Database, anna: User, old_and_new: int
) -> None:
    chosen = select(db, anna, 8, old_and_new, RetrainMode.REPLAY)
    assert {name for name in names(chosen) if name.startswith("new")} == {"new0", "new1", "new2", "new3"}
    assert len(chosen.mails) == 8
    assert names(select(db, anna, 8, old_and_new, RetrainMode.REPLAY)) == names(chosen)
    samples = {
        frozenset(names(select(db, anna, 8, old_and_new, RetrainMode.REPLAY, seed=f"job-{n}")))
        for n in range(9)
    }
    assert len(samples) > 3
    dates = [mail.sent_at for mail in chosen.mails if mail.sent_at]
    assert dates == sorted(dates)


@pytest.mark.parametrize(
    ("new", "old", "places"),
    [
        (50, 200, (50, 200)),
        (50, 1000, (50, 450)),
        (1000, 1000, (250, 250)),
        (1000, 100, (400, 100)),
        (1000, 0, (500, 0)),
        (0, 1000, (0, 500)),
        (0, 0, (0, 0)),
    ],
)
def test_new_mail_comes_first_but_leaves_half_of_the_places_to_the_old(
    new: int, old: int, places: tuple[int, int]
) -> None:
    assert share_places(new, old, 500) == places


def test_more_new_mail_than_places_leaves_half_to_the_old(db: Database, anna: User, old_and_new: int) -> None:
    chosen = select(db, anna, 4, old_and_new, RetrainMode.REPLAY)
    assert (chosen.new, len(chosen.mails)) == (2, 4)
    assert {"new0", "new1"} < names(chosen)


@pytest.mark.parametrize("mode", RetrainMode)
def test_mail_that_the_ai_drafted_counts_as_sent_and_takes_no_place(
    db: Database, anna: User, old_and_new: int, mode: RetrainMode
) -> None:
    set_drafted(db, "new0")
    set_drafted(db, "old7")
    chosen = select(db, anna, 10, old_and_new, mode)
    assert not {"new0", "old7"} & names(chosen)
    assert chosen.new_found == 3 and chosen.drafted == (1 if mode is RetrainMode.INCREMENTAL else 2)
    assert len(chosen.mails) == (3 if mode is RetrainMode.INCREMENTAL else 10)
    assert fetch_sent_state(db, anna.id).sent == 12


def test_mail_that_arrives_while_the_data_set_is_made_waits_for_the_next(
    db: Database, anna: User, account: str, old_and_new: int
) -> None:
    end = old_and_new + 4
    insert_mail(db, account, [arrived("late", day=50)])
    for mode in RetrainMode:
        assert "late" not in names(select(db, anna, 500, old_and_new, mode, up_to=end))
    assert names(select(db, anna, 500, end, RetrainMode.INCREMENTAL)) == {"late"}


def test_threads_that_are_kept_apart_stay_out_with_all_that_arrives_in_them(
    db: Database, anna: User, account: str, old_and_new: int
) -> None:
    apart = [hash_id("thread of old3"), hash_id("thread of new1")]
    insert_mail(db, account, [arrived("more", day=30)._replace(thread_id="thread of old3")])
    for mode in RetrainMode:
        chosen = select(db, anna, 500, old_and_new, mode, apart=apart)
        assert not {"old3", "more", "new1"} & names(chosen)
        assert chosen.new_found == 3 and chosen.old_found == 7


def test_thread_is_unseen_when_nothing_of_it_was_there_at_the_last_training(
    db: Database, anna: User, account: str, old_and_new: int
) -> None:
    insert_mail(db, account, [arrived("answer", day=30)._replace(thread_id="thread of old3")])
    chosen = select(db, anna, 500, old_and_new, RetrainMode.INCREMENTAL)
    unseen = {mail.subject for mail in chosen.mails if mail.id in chosen.unseen}
    assert unseen == {"new0", "new1", "new2", "new3"} == names(chosen) - {"answer"}


def test_mail_is_found_again_by_the_hash_of_its_id(db: Database, anna: User, old_and_new: int) -> None:
    mails = fetch_sent_mail(db, anna.id, 500)
    wanted = [mail for mail in mails if mail.subject in {"old1", "new2"}]
    hashes = [hash_id(mail.id) for mail in wanted]
    assert fetch_mail_by_hash(db, anna.id, [*hashes, hash_id("deleted")], 60) == wanted
    assert len(fetch_mail_by_hash(db, anna.id, hashes, 1)) == 1
    assert fetch_mail_by_hash(db, create_user(db, "bert@example.org").id, hashes, 60) == []


def test_bodies_are_read_for_the_chosen_mail_only(
    db: Database, anna: User, account: str, old_and_new: int
) -> None:
    insert_mail(db, account, [arrived(f"big{n}", day=-n - 1, body_text="x" * 100_000) for n in range(300)])
    tracemalloc.start()
    try:
        chosen = select(db, anna, 5, fetch_sent_state(db, anna.id).last_position, RetrainMode.REPLAY)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(chosen.mails) == 5 and peak_bytes < 5_000_000  # of 30 MB


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
