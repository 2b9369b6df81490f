"""Whole mailboxes: every format, every kind of damage, twice, and within bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from store.database import Database
from store.importers import import_mailbox
from store.mail import count_sent, fetch_sent_mail, fetch_sent_state, select_mail
from store.users import addresses, create_user
from training.errors import ConfigError, UnreadableMailbox
from training.schemas import User

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "mailboxes"
MAILBOXES = sorted(SHARED.glob("*.jsonl"))


@pytest.fixture
def anna(db: Database) -> User:
    return create_user(db, "anna@example.org")


def mail(
    number: int, sender: str = "Anna <anna@example.org>", headers: str = "", body: str = "Hello"
) -> bytes:
    return (
        f"From: {sender}\nTo: bert@example.org\nSubject: Mail {number}\nMessage-ID: <{number}@x>\n"
        f"Date: Mon, 03 Feb 2020 10:00:{number % 60:02} +0000\n{headers}\n{body} {number}\n"
    ).encode()


def mbox(*mails: bytes) -> bytes:
    return b"".join(b"From x@example.org Mon Feb 03 10:00:00 +0000 2020\n" + each + b"\n" for each in mails)


def jsonl(*lines: object) -> bytes:
    return b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )


def line(number: int, sender: object = "anna@example.org", **fields: object) -> dict[str, object]:
    return {
        "message_id": f"m/{number}",
        "from": sender,
        "to": [],
        "subject": "S",
        "body": f"B {number}",
        **fields,
    }


def as_mbox(folder: Path, mails: list[bytes]) -> Path:
    (folder / "all.mbox").write_bytes(mbox(*mails))
    return folder / "all.mbox"


def as_crlf_mbox(folder: Path, mails: list[bytes]) -> Path:
    (folder / "mail").write_bytes(mbox(*mails).replace(b"\n", b"\r\n"))
    return folder / "mail"


def as_gzip_mbox(folder: Path, mails: list[bytes]) -> Path:
    (folder / "all.mbox.gz").write_bytes(gzip.compress(mbox(*mails)))
    return folder / "all.mbox.gz"


def as_apple_mail(folder: Path, mails: list[bytes]) -> Path:
    (folder / "Mail" / "Sent.mbox").mkdir(parents=True)
    (folder / "Mail" / "Sent.mbox" / "mbox").write_bytes(mbox(*mails))
    return folder / "Mail"


def as_maildir(folder: Path, mails: list[bytes]) -> Path:
    for part in ("cur", "new", "tmp"):
        (folder / "Maildir" / ".Sent" / part).mkdir(parents=True)
        (folder / "Maildir" / part).mkdir(parents=True)
    for number, each in enumerate(mails):
        where = folder / "Maildir" / (".Sent/cur" if number % 2 else "new")
        (where / f"{number:04}.x.host:2,S").write_bytes(each)
    return folder / "Maildir"


def as_eml(folder: Path, mails: list[bytes]) -> Path:
    (folder / "export" / "2020").mkdir(parents=True)
    for number, each in enumerate(mails):
        (folder / "export" / "2020" / f"{number:04}.EML").write_bytes(each)
    return folder / "export"


# ---- every format ----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [as_mbox, as_crlf_mbox, as_gzip_mbox, as_apple_mail, as_maildir, as_eml])
def test_format_is_recognised_and_imported_once(
    db: Database, anna: User, tmp_path: Path, write: Callable[[Path, list[bytes]], Path]
) -> None:
    mails = [mail(n) for n in range(6)] + [mail(n, "Bert <bert@example.org>") for n in range(6, 9)]
    path = write(tmp_path, mails)
    report = import_mailbox(db, anna, path)
    assert (report.read, report.added, report.sent, report.broken) == (9, 9, 6, {})
    got = fetch_sent_mail(db, anna.id, 100)
    assert [each.subject for each in got] == [f"Mail {n}" for n in range(6)]
    assert got[0].body_text.strip() == "Hello 0"
    again = import_mailbox(db, anna, path)
    assert (again.read, again.added, again.already_present, again.sent) == (9, 0, 9, 6)
    assert count_sent(db, anna.id) == 6


def test_single_eml_and_jsonl_gz_are_recognised(db: Database, anna: User, tmp_path: Path) -> None:
    (tmp_path / "one.eml").write_bytes(mail(1))
    (tmp_path / "two.jsonl.gz").write_bytes(gzip.compress(jsonl(line(2), line(3))))
    assert import_mailbox(db, anna, tmp_path / "one.eml").format == "eml"
    assert import_mailbox(db, anna, str(tmp_path / "two.jsonl.gz")).added == 2


def test_answered_mail_becomes_context(db: Database, anna: User, tmp_path: Path) -> None:
    question = mail(1, "bert@example.org", body="When?")
    answer = mail(2, headers="In-Reply-To: <1@x>\nReferences: <1@x>\n", body="At ten.")
    import_mailbox(db, anna, as_mbox(tmp_path, [question, answer]))
    (got,) = fetch_sent_mail(db, anna.id, 10)
    assert (got.answered_text.strip(), got.is_reply, got.thread_id) == ("When? 1", True, "1@x")


def test_takeout_drafts_and_spam_are_not_sent(db: Database, anna: User, tmp_path: Path) -> None:
    mails = [mail(n, headers=f"X-GM-THRID: 7\nX-Gmail-Labels: {label}\n") for n, label in
             enumerate(["Sent", "Drafts", "Spam", "Archived"])]  # fmt: skip
    report = import_mailbox(db, anna, as_mbox(tmp_path, mails))
    assert (report.added, report.sent) == (4, 2)
    assert {each.thread_id for each in fetch_sent_mail(db, anna.id, 10)} == {"gm:7"}


def test_maildir_draft_flag_is_not_sent(db: Database, anna: User, tmp_path: Path) -> None:
    (tmp_path / "cur").mkdir()
    (tmp_path / "cur" / "1.x.host:2,DS").write_bytes(mail(1))
    (tmp_path / "cur" / "2.x.host:2,S").write_bytes(mail(2))
    assert import_mailbox(db, anna, tmp_path).sent == 1


def test_gmail_spelling_and_alias_count_as_the_person(db: Database, tmp_path: Path) -> None:
    gina = create_user(db, "gina.b@gmail.com")
    senders = ["GinaB+news@googlemail.com", "gina@work.example", "other@work.example"]
    path = as_mbox(tmp_path, [mail(n, sender) for n, sender in enumerate(senders)])
    report = import_mailbox(db, gina, path, aliases=["Gina@Work.example"])
    assert (report.sent, report.aliases_added) == (2, ("Gina@Work.example",))


# ---- whose mail is it ------------------------------------------------------------------------------


def test_unknown_sender_in_the_sent_folder_gives_the_alias_to_add(
    db: Database, anna: User, tmp_path: Path
) -> None:
    mails = [mail(n, "A. B. <ab@old.example>", "X-Gmail-Labels: Sent\n") for n in range(3)]
    path = as_mbox(tmp_path, [*mails, mail(3, "c@x.example", "X-Gmail-Labels: Sent\n"), mail(4)])
    first = import_mailbox(db, anna, path)
    assert first.sent == 1
    assert (
        "4 messages" in first.hint and "3 of them" in first.hint and "`--alias ab@old.example`" in first.hint
    )
    second = import_mailbox(db, anna, path, aliases=["ab@old.example"])
    assert (second.added, second.sent, count_sent(db, anna.id)) == (0, 4, 4)


def test_mailbox_of_somebody_else_gives_a_hint(db: Database, anna: User, tmp_path: Path) -> None:
    report = import_mailbox(db, anna, as_mbox(tmp_path, [mail(n, "zoe@x.example") for n in range(3)]))
    assert report.sent == 0 and "`--alias zoe@x.example`" in report.hint


def test_jsonl_lines_are_the_persons_and_the_dominant_sender_becomes_an_alias(
    db: Database, anna: User, tmp_path: Path
) -> None:
    path = tmp_path / "box.jsonl"
    path.write_bytes(jsonl(line(1, "Anna <a.b@corp.example>"), line(2, "a.b@corp.example"), line(3, "A~ B")))
    report = import_mailbox(db, anna, path)
    assert (report.sent, report.aliases_added) == (3, ("a.b@corp.example",))
    assert "a.b@corp.example" in addresses(db, anna.id)
    assert import_mailbox(db, anna, path).aliases_added == ()


def test_jsonl_of_names_makes_the_usual_spelling_an_alias(db: Database, anna: User, tmp_path: Path) -> None:
    path = tmp_path / "box.jsonl"
    names = ["Anna B.", "Anna B.", "Anna 8.", "Anna <Anna>", "<>", None, 7]
    path.write_bytes(jsonl(*(line(n, name) for n, name in enumerate(names))))
    report = import_mailbox(db, anna, path)
    assert (report.sent, report.aliases_added, report.broken) == (7, ("Anna B.",), {})


def test_jsonl_with_the_own_address_takes_other_addresses_as_received(
    db: Database, anna: User, tmp_path: Path
) -> None:
    path = tmp_path / "box.jsonl"
    path.write_bytes(jsonl(line(1, "ANNA@example.org"), line(2, "bert@x.example"), line(3, "Anna B.")))
    report = import_mailbox(db, anna, path)
    assert (report.added, report.sent, report.aliases_added) == (3, 2, ())


def test_wrong_types_in_jsonl_are_survived(db: Database, anna: User, tmp_path: Path) -> None:
    path = tmp_path / "box.jsonl"
    odd = [
        line(1, to="b@x.org, c@x.org", cc=None, subject=None, date=[1]),
        line(2, to=[{"name": "Bert", "address": "b@x.org"}, 7, ["x"]], date="OS/28/97"),
        line(3, body=None, date="2020-02-03T10:00:00"),
        {"body": "no id\0 and a lone \ud800 surrogate"},
        {"body": "", "message_id": 9, "from": ["anna@example.org"]},
    ]
    path.write_bytes(jsonl(*odd))
    report = import_mailbox(db, anna, path)
    assert (report.read, report.added, report.sent, report.broken) == (5, 5, 5, {})
    assert [each.body_text for each in fetch_sent_mail(db, anna.id, 9)] == [
        "B 1", "B 2", "no id and a lone \ufffd surrogate", "", "",
    ]  # fmt: skip


def test_what_the_ai_drafted_is_no_training_mail(db: Database, anna: User, tmp_path: Path) -> None:
    path = tmp_path / "box.jsonl"
    drafted = [
        line(2, aiGenerated=True),
        line(3, ai_generated=True),
        line(6, aiGenerated=False, ai_generated=True),
    ]
    path.write_bytes(jsonl(line(1), *drafted, line(4, aiGenerated=False), line(5, ai_generated=None)))
    assert import_mailbox(db, anna, path).sent == 6
    chosen = select_mail(db, anna.id, 9, up_to=fetch_sent_state(db, anna.id).last_position or 0)
    assert ([each.body_text for each in chosen.mails], chosen.drafted) == (["B 1", "B 4", "B 5"], 3)


# ---- damage ----------------------------------------------------------------------------------------


def test_broken_lines_are_counted_by_reason(db: Database, anna: User, tmp_path: Path) -> None:
    path = tmp_path / "box.jsonl"
    deep = b"[" * 100_000 + b"]" * 100_000
    path.write_bytes(
        jsonl(
            line(1),
            b"\x00\xff\xfe garbage",
            b'{"cut',
            deep,
            [1],
            7,
            {"subject": "x"},
            line(2, body=7),
            line(4, aiGenerated="no"),
            line(5, ai_generated=1),
            b"",
            line(3),
        )
    )
    report = import_mailbox(db, anna, path)
    assert report.broken == {
        "not_json": 3,
        "not_an_object": 2,
        "no_body_field": 1,
        "body_not_text": 1,
        "ai_generated_not_boolean": 2,
    }
    assert (report.read, report.added) == (11, 2)


def test_broken_messages_are_counted_and_the_rest_is_stored(db: Database, anna: User, tmp_path: Path) -> None:
    bad = [b"", b"just words\n\nand more\n", b"Subject: \xff\xfe\x00\n\n\x00\x01\x02"]
    path = tmp_path / "export"
    path.mkdir()
    for number, content in enumerate([mail(1), *bad, mail(2)]):
        (path / f"{number}.eml").write_bytes(content)
    (path / "9.eml").mkdir()
    (path / "8.eml").symlink_to(tmp_path / "gone")
    report = import_mailbox(db, anna, path)
    assert report.broken == {"empty": 1, "no_headers": 1, "unreadable_file": 1}
    assert (report.added, report.sent) == (3, 2)
    assert report.read == report.added + report.already_present + sum(report.broken.values())


def test_cut_off_archive_keeps_what_came_before(db: Database, anna: User, tmp_path: Path) -> None:
    path = tmp_path / "box.jsonl.gz"
    noise = [line(n, body=os.urandom(300).hex()) for n in range(500)]
    path.write_bytes(gzip.compress(jsonl(*noise))[:100_000])
    report = import_mailbox(db, anna, path)
    assert report.added > 50 and report.broken["damaged_archive"] == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.mbox", None, "does not exist"),
        ("empty.mbox", b"", "is empty"),
        ("photo.mbox", b"\x89PNG\r\n\x1a\n\0\0\0", "no mailbox"),
        ("words.txt", b"Dear all, hello\n", "no mailbox"),
        ("box.jsonl", b"not json\nneither\n", "no line that is a JSON object"),
        ("box.jsonl", b"", "is empty"),
        ("takeout.zip", b"PK\x03\x04", "Unpack it"),
        ("bad.gz", b"\x1f\x8b\x08\0garbage", "damaged gzip"),
    ],
)
def test_unreadable_source_is_a_sentence_and_changes_nothing(
    db: Database, anna: User, tmp_path: Path, name: str, content: bytes | None, sentence: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableMailbox, match=sentence):
        import_mailbox(db, anna, tmp_path / name, aliases=["x@example.org"])
    assert addresses(db, anna.id) == {"anna@example.org"}


def test_folder_without_mail_and_wrong_format_are_refused(db: Database, anna: User, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UnreadableMailbox, match="holds no mail"):
        import_mailbox(db, anna, tmp_path)
    for format in ("maildir", "eml", "jsonl"):
        with pytest.raises(UnreadableMailbox):
            import_mailbox(db, anna, tmp_path, format=format)
    with pytest.raises(UnreadableMailbox, match="no mbox"):
        import_mailbox(db, anna, tmp_path / "notes.txt", format="mbox")
    with pytest.raises(ConfigError, match="pst"):
        import_mailbox(db, anna, tmp_path, format="pst")


# ---- progress, interruption, size ------------------------------------------------------------------


def test_progress_rises_to_the_size_of_the_source(db: Database, anna: User, tmp_path: Path) -> None:
    path = as_mbox(tmp_path, [mail(n, body="x" * 2000) for n in range(1200)])
    calls: list[tuple[int, int]] = []
    import_mailbox(db, anna, path, on_progress=lambda done, total: calls.append((done, total)))
    size = path.stat().st_size
    assert len(calls) == 3 and calls == sorted(calls) and calls[-1] == (size, size)


def test_interrupted_import_goes_on_when_run_again(db: Database, anna: User, tmp_path: Path) -> None:
    path = as_mbox(tmp_path, [mail(n) for n in range(1200)])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_mailbox(db, anna, path, on_progress=interrupt)
    assert count_sent(db, anna.id) == 500
    report = import_mailbox(db, anna, path)
    assert (report.added, report.already_present) == (700, 500)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_large_mbox_with_giant_messages_needs_little_memory(
    db: Database, anna: User, tmp_path: Path, database_url: str
) -> None:
    path = tmp_path / "large.mbox"
    attachment = "Content-Type: multipart/mixed; boundary=B\n"
    with path.open("wb") as out:
        for number in range(150):
            image = "\n--B\nContent-Type: text/plain\n\nHi\n--B\nContent-Type: image/png\n" + (
                "Content-Transfer-Encoding: base64\n\n" + ("QUJD" * 19 + "\n") * 6000 + "--B--\n"
            )
            out.write(mbox(mail(number, headers=attachment, body=image)))
        out.write(b"From x@example.org Mon Feb 03 10:00:00 2020\nSubject: giant\n\n")
        for _ in range(80):
            out.write(b"x" * 1_000_000)
        out.write(b"\n\n" + mbox(mail(1000)))
    assert path.stat().st_size > 140_000_000
    # A process of its own: the peak of this one belongs to other tests.
    code = textwrap.dedent(
        """
        import sys
        from store.database import open_database
        from store.importers import import_mailbox
        from store.users import find_user

        # Not getrusage: its peak is inherited from the process that started this one.
        def memory_kib(field):
            return int(open("/proc/self/status").read().partition(field + ":")[2].split()[0])

        with open_database(sys.argv[1]) as db:
            user = find_user(db, "anna@example.org")
            before = memory_kib("VmRSS")
            report = import_mailbox(db, user, sys.argv[2])
            peak = memory_kib("VmHWM")
        print(report.added, report.broken.get("too_large"), (peak - before) // 1024)
        """
    )
    result = subprocess.run(
        [sys.executable, "-c", code, database_url, str(path)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    added, too_large, grown_mib = result.stdout.split()
    assert (added, too_large) == ("151", "1")
    print(f"peak grew by {grown_mib} MiB")
    assert int(grown_mib) < 150


# ---- real mailboxes --------------------------------------------------------------------------------


@pytest.mark.shared_data
@pytest.mark.skipif(not MAILBOXES, reason="the shared mailboxes are not beside the repository")
def test_every_shared_mailbox_is_imported_once(db: Database) -> None:
    assert len(MAILBOXES) == 11
    for path in MAILBOXES:
        lines = sum(1 for _ in path.open("rb"))
        user = create_user(db, f"{path.stem}@own.example")
        report = import_mailbox(db, user, path)
        assert (report.added, report.sent, report.broken) == (lines, lines, {}), path.stem
        assert len(report.aliases_added) == 1, path.stem
        assert len(fetch_sent_mail(db, user.id, 500)) == min(lines, 500)
        assert import_mailbox(db, user, path).added == 0
