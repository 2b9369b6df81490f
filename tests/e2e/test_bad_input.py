"""Wrong input, one sentence, one exit code: 1 failed, 2 usage, 3 refused. Never a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from store.database import Database
from tests.e2e.conftest import MainJob
from tests.e2e.stack import MERRIN, TRAIN_S, CommandLine, Running
from tests.e2e.weird_mail import OWN, mail, weird_messages, write_mbox, write_weird_mailbox

NOBODY = "nobody@example.net"
PASSWORD = "marsupilami"


def users_in(db: Database) -> int:
    with db.connection() as connection:
        row = connection.execute('SELECT count(*) FROM "User"').fetchone()
    assert row is not None
    return int(row[0])


# ---- people and jobs that are not there --------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("check", NOBODY), ("train", NOBODY), ("write", NOBODY, "Write an email"), ("jobs", NOBODY)],
    ids=lambda arguments: arguments[0],
)
def test_unknown_user_is_named_with_the_way_to_add_them(
    command: CommandLine, arguments: tuple[str, ...]
) -> None:
    error = command(*arguments, "--json", code=2).error
    assert error["code"] == "UNKNOWN_USER"
    assert f"ownvoice import PATH --user {NOBODY}" in error["message"]


@pytest.mark.parametrize("verb", ["show", "cancel", "retry"])
def test_unknown_job_is_a_sentence(command: CommandLine, verb: str) -> None:
    error = command(verb, "jmarsupilami", "--json", code=2).error
    assert error["code"] == "UNKNOWN_JOB" and "ownvoice jobs" in error["message"]


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_finished_job_can_be_neither_cancelled_nor_retried(
    command: CommandLine, main_job: MainJob, verb: str
) -> None:
    error = command(verb, main_job.job["id"], "--json", code=3).error
    assert error["code"] == "INVALID_TRANSITION" and "COMPLETED" in error["message"]


# ---- mailboxes ---------------------------------------------------------------------------------------


def test_source_that_cannot_be_read_is_a_sentence_and_creates_nobody(
    command: CommandLine, db: Database, tmp_path: Path
) -> None:
    (tmp_path / "garbage.mbox").write_bytes(bytes(range(256)) * 400)
    (tmp_path / "garbage.jsonl").write_bytes(bytes(range(256)) * 400)
    (tmp_path / "empty.mbox").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("no mail here")
    before = users_in(db)
    for name in ("missing.mbox", "garbage.mbox", "garbage.jsonl", "empty.mbox", "folder"):
        error = command("import", tmp_path / name, "--user", NOBODY, "--json", code=1).error
        assert error["code"] == "UNREADABLE_MAILBOX", name
        assert name in error["message"]
    error = command(
        "import", tmp_path / "folder", "--user", NOBODY, "--format", "pst", "--json", code=2
    ).error
    assert error["code"] == "CONFIG"
    error = command("import", tmp_path / "empty.mbox", "--user", "no address", "--json", code=2).error
    assert error["code"] == "CONFIG" and "no address" in error["message"]
    assert users_in(db) == before


def test_odd_mail_is_stored_and_counted_whole(command: CommandLine, tmp_path: Path) -> None:
    odd = "odd@example.net"
    mailbox = write_weird_mailbox(tmp_path / "odd.mbox", odd)
    report = command("import", mailbox, "--user", odd, "--json").json
    assert report["read"] == len(weird_messages(odd)) == report["added"] + sum(report["broken"].values())
    assert report["sent"] == report["added"]
    data = command("check", odd, "--json", code=3).json
    assert data["sent"] == data["usable"] + sum(data["dropped"].values()) == report["sent"]
    assert data["dropped"]["too_long"] == 1
    assert not data["eligible"] and data["reason"]


def test_mailbox_of_somebody_else_is_reported_as_no_sent_mail(command: CommandLine, tmp_path: Path) -> None:
    strangers = [mail("rufus@example.com", number) for number in range(5)]
    mailbox = write_mbox(tmp_path / "inbox.mbox", strangers)
    report = command("import", mailbox, "--user", "empty@example.net", "--json").json
    assert (report["added"], report["sent"]) == (5, 0)
    assert "--alias rufus@example.com" in report["hint"]
    data = command("check", "empty@example.net", "--json", code=3).json
    assert (data["sent"], data["usable"], data["eligible"]) == (0, 0, False)


def test_too_few_usable_mails_end_the_job_with_the_numbers(running: Running, tmp_path: Path) -> None:
    command, few = running.command, "few@example.net"
    texts = [f"{OWN} This is note {word}." for word in ("one", "two about oil", "three about rope", "four")]
    mailbox = write_mbox(tmp_path / "few.mbox", [mail(few, n, text) for n, text in enumerate(texts)])
    command("import", mailbox, "--user", few)
    job = command("train", few, "--follow", "--json", code=3, timeout_s=TRAIN_S).json
    assert (job["status"], job["errorCode"]) == ("FAILED", "NOT_ENOUGH_MAIL")
    assert "100" in job["errorMessage"] and "4 sent" in job["errorMessage"]
    assert running.training_runs(job["id"]) == []
    left = running.folder(job["id"])
    assert not left.exists() or not {"dataset.jsonl", "held_out.jsonl"} & {
        path.name for path in left.iterdir()
    }
    error = command("write", few, "Write an email", "--json", code=1).error
    assert f"ownvoice train {few}" in error["message"]


def test_withdrawn_consent_refuses_training_before_a_job_is_made(
    command: CommandLine, tmp_path: Path
) -> None:
    shy = "shy@example.net"
    mailbox = write_mbox(tmp_path / "shy.mbox", [mail(shy, 1)])
    command("import", mailbox, "--user", shy)
    command("import", mailbox, "--user", shy, "--no-consent")
    error = command("train", shy, "--json", code=3).error
    assert error["code"] == "NO_CONSENT" and "--consent" in error["message"]
    assert command("jobs", shy, "--json").json == []


# ---- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: [", "not readable YAML"),
        ("epochs: many", "epochs"),
        ("lora: {alhpa: 8}", "lora.alhpa"),
        ("- epochs", "key: value"),
        ("\x00\xff", "not readable YAML"),
    ],
)
def test_preset_that_cannot_be_used_is_named(
    command: CommandLine, main_job: MainJob, tmp_path: Path, text: str, said: str
) -> None:
    preset = tmp_path / "own.yaml"
    preset.write_text(text, encoding="latin-1")
    for verb in ("check", "train"):
        error = command(verb, MERRIN, "--config", preset, "--json", code=2).error
        assert error["code"] == "CONFIG"
        assert "own.yaml" in error["message"] and said in error["message"]


def test_preset_that_does_not_exist_lists_those_that_do(command: CommandLine, main_job: MainJob) -> None:
    error = command("train", MERRIN, "--config", "nonesuch", "--json", code=2).error
    assert "cpu-smoke" in error["message"] and "default" in error["message"]
    error = command("check", MERRIN, "--config", "/nowhere/own.yaml", "--json", code=2).error
    assert "own.yaml" in error["message"]


def test_setting_that_cannot_be_used_is_named(command: CommandLine) -> None:
    refused = command.with_variables(OWNVOICE_SERVING="marsupilami")("jobs", "--json", code=2)
    assert "OWNVOICE_SERVING" in refused.error["message"]


def test_prefect_server_that_is_down_is_named_with_the_way_to_start_it(
    running: Running, main_job: MainJob
) -> None:
    before = running.command("jobs", MERRIN, "--json").json
    away = running.command.with_variables(PREFECT_API_URL="http://127.0.0.1:9/api")
    error = away("train", MERRIN, "--json", code=1).error
    assert error["code"] == "ORCHESTRATOR_UNAVAILABLE"
    assert "ownvoice up" in error["message"] and "127.0.0.1:9" in error["message"]
    assert running.command("jobs", MERRIN, "--json").json == before


def test_stack_that_was_never_started_is_named_with_the_way_to_start_it(
    running: Running, main_job: MainJob, tmp_path: Path
) -> None:
    bare = CommandLine(tmp_path, {"DATABASE_URL": running.written["databaseUrl"]})
    error = bare("train", MERRIN, "--json", code=1).error
    assert error["code"] == "ORCHESTRATOR_UNAVAILABLE" and "ownvoice up" in error["message"]
    assert bare("status", "--json", code=1).json == {"running": False, "stack": None}
    assert "ownvoice up" in bare("status", code=1).out
    assert "not running" in bare("down").out or "Nothing was running" in bare("down").out


@pytest.mark.parametrize("verb", [("jobs",), ("check", MERRIN), ("db", "upgrade")], ids=lambda verb: verb[0])
def test_database_that_does_not_answer_is_named_without_its_password(
    command: CommandLine, verb: tuple[str, ...]
) -> None:
    url = f"postgresql://anna:{PASSWORD}@127.0.0.1:9/mail"
    answer = command.with_variables(DATABASE_URL=url)(*verb, code=1)
    assert "127.0.0.1:9" in answer.err.splitlines()[-1] and PASSWORD not in answer.out + answer.err


def test_database_url_that_is_none_is_named_without_its_password(command: CommandLine) -> None:
    answer = command.with_variables(DATABASE_URL=f"mysql://anna:{PASSWORD}@db/mail")("jobs", code=2)
    assert "DATABASE_URL" in answer.err and PASSWORD not in answer.out + answer.err


def test_doctor_says_what_is_missing_instead_of_failing(command: CommandLine, tmp_path: Path) -> None:
    ill = CommandLine(
        tmp_path,
        {"DATABASE_URL": f"postgresql://anna:{PASSWORD}@127.0.0.1:9/mail", "OLLAMA_BASE_URL": "127.0.0.1:9"},
    )
    answer = ill("doctor", "--json", code=1)
    wrong = {finding["name"] for finding in answer.json if not finding["ok"]}
    assert wrong >= {"database", "prefect server", "serving engine"}
    said = {finding["name"]: f"{finding['detail']} {finding['remedy']}" for finding in answer.json}
    assert "DATABASE_URL" in said["database"]
    assert "ownvoice up" in said["prefect server"]
    assert "OLLAMA_BASE_URL" in said["serving engine"]
    assert PASSWORD not in answer.out + answer.err


@pytest.mark.parametrize("arguments", [("train",), ("marsupilami",), ("jobs", "--limit", "0")])
def test_wrong_usage_ends_with_2(command: CommandLine, arguments: tuple[str, ...]) -> None:
    command(*arguments, code=2)
