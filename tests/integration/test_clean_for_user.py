"""`ownvoice clean --user`: judged as a mail of that user's imported mailbox."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from store import users
from store.database import Database
from store.importers.load import import_mailbox
from training.errors import UnknownUser

ANNA = "anna@x.example"
TAIL = "Boats of every kind, ask for the yard"
TOPICS = (
    "budget", "garden", "server", "invoice", "holiday", "contract", "kitchen", "printer",
    "seminar", "bicycle", "museum", "boiler", "passport", "choir", "harbour", "lecture",
)  # fmt: skip


def words(topic: str) -> str:
    return f"I looked at the {topic} this morning and the {topic} is what we need for the {topic} week."


@pytest.fixture
def mailbox(db: Database, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Anna's imported mailbox, whose mails all end alike; returns one more mail of hers."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("OWNVOICE_HOME", str(tmp_path))
    path = tmp_path / "anna.jsonl"
    lines = [
        {"message_id": str(n), "from": ANNA, "subject": topic, "body": f"{words(topic)}\n{TAIL}"}
        for n, topic in enumerate(TOPICS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    import_mailbox(db, users.create_user(db, ANNA, consent=True), path)
    mail = tmp_path / "mail.eml"
    mail.write_text(f"From: Anna <{ANNA}>\nSubject: orchard\n\n{words('orchard')}\n{TAIL}\n")
    return mail


def cleaned(path: Path, *options: str) -> dict[str, object]:
    told: dict[str, object] = json.loads(
        CliRunner().invoke(app, ["clean", str(path), *options, "--json"]).stdout
    )
    return told


def test_endings_that_the_mailbox_repeats_are_cut_as_in_training(mailbox: Path) -> None:
    assert cleaned(mailbox)["own_words"] == f"{words('orchard')}\n{TAIL}"
    told = cleaned(mailbox, "--user", ANNA)
    assert told["own_words"] == words("orchard") and told["kept"] is True
    assert [cut["reason"] for cut in told["cut"]] == ["repeated tail"]  # type: ignore[attr-defined]


def test_mail_of_somebody_else_is_not_kept(mailbox: Path) -> None:
    mailbox.write_text(mailbox.read_text().replace(ANNA, "tom@y.example"))
    told = cleaned(mailbox, "--user", ANNA)
    assert (told["kept"], told["drop_reason"]) == (False, "not_sent")
    shown = CliRunner().invoke(app, ["clean", str(mailbox), "--user", ANNA])
    assert shown.exit_code == 3
    assert f"Dropped: it is not from {ANNA}" in shown.stdout.splitlines()[-1]


def test_an_unknown_user_is_named(mailbox: Path) -> None:
    error = CliRunner().invoke(app, ["clean", str(mailbox), "--user", "nobody@example.net"]).exception
    assert isinstance(error, UnknownUser)


def test_the_command_ends_with_1_for_unreadable_input_and_2_for_wrong_use(mailbox: Path) -> None:
    def ends(*arguments: str, given: bytes = b"") -> tuple[int, bytes]:
        done = subprocess.run(
            [sys.executable, "-m", "app.cli", "clean", *arguments],
            input=given, capture_output=True, timeout=60,
        )  # fmt: skip
        assert b"Traceback" not in done.stderr
        return done.returncode, done.stdout

    assert ends("-") == (1, b"")
    assert ends("-", given=b'{"body": "a"}\n' * 3)[0] == 2
    assert ends()[0] == 2
    code, out = ends("-", "--json")
    assert code == 1 and json.loads(out)["error"]["code"] == "UNREADABLE_MAILBOX"
