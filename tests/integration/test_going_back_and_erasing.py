"""`ownvoice rollback` and `ownvoice erase` as a person types them, with a Prefect server and no workers."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from store import users
from store.database import Database
from store.erase import count_rows
from tests.adapters import write_adapter
from tests.e2e.stack import OWNVOICE, CommandLine, finish
from tests.prefect_server import PASSWORD, PrefectServer
from tests.voices import at_the_gate, promote, put_in_folder
from training.schemas import User


@pytest.fixture
def command(home: Path, database_url: str, shared_prefect_server: PrefectServer) -> CommandLine:
    address = {"PREFECT_API_URL": shared_prefect_server.api, "PREFECT_API_AUTH_STRING": PASSWORD}
    return CommandLine(home, {"DATABASE_URL": database_url, **address})


@pytest.fixture
def anna(db: Database, command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> User:
    """Anna has the promoted versions 1 and 2; 2 is active."""
    user = users.create_user(db, "anna@example.net", user_id="anna", consent=True)
    folder = tmp_path_factory.mktemp("adapters")
    for version in (1, 2):
        adapter = write_adapter(folder / f"{version}.gguf", seed=version)
        job = promote(db, user, at_the_gate(db, user, adapter))
        put_in_folder(command.home / "adapters", str(job.model_name), adapter)
    return user


def test_rollback_prints_one_line_and_a_second_one_is_refused_in_one_sentence(
    command: CommandLine, anna: User, db: Database
) -> None:
    done = command("rollback", "anna@example.net")
    assert done.out.strip() == "emailai-anna:v2 → emailai-anna:v1"
    assert "INFO" not in done.err and "flow run" not in done.err.lower()
    assert users.find_user(db, "anna").ai_model == "emailai-anna:v1"

    refused = command("rollback", "anna", "--json", code=3)
    assert refused.error["code"] == "INVALID_TRANSITION" and "oldest promoted" in refused.error["message"]
    assert command("rollback", "anna", "--to", "2", "--json").json["newModel"] == "emailai-anna:v2"
    users.withdraw_consent(db, "anna")
    assert command("rollback", "anna", "--json", code=3).error["code"] == "NO_CONSENT"


def test_erase_asks_and_without_an_answer_erases_nothing(
    command: CommandLine, anna: User, db: Database
) -> None:
    refused = command("erase", "anna", "--json", code=2)
    assert "--yes" in refused.error["message"]
    answers = {"n\n": 3, "\n": 3}
    for answer, code in answers.items():
        assert "2 jobs with their folders, 2 published adapters" in _typed(command, answer, code)
    assert users.find_user(db, "anna").voice_consent_at is not None
    assert command("erase", "nobody@example.net", "--yes", "--json", code=2).error["code"] == "UNKNOWN_USER"


def test_erase_prints_the_receipt_and_a_second_one_finds_nothing(
    command: CommandLine, anna: User, db: Database
) -> None:
    shown = command("erase", "anna@example.net", "--yes")
    assert "User anna is erased." in shown.out and "emailai-anna:v2" in shown.out
    assert count_rows(db, "anna").jobs == 0
    again = command("erase", "anna", "--yes", "--json").json
    assert again["complete"]
    assert {item["result"] for item in again["items"] if item["where"] != "prefect"} == {"absent"}


def _typed(command: CommandLine, answer: str, code: int) -> str:
    """Run `ownvoice erase anna` on a terminal, type `answer` and return what was asked."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(OWNVOICE), "erase", "anna"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command.environment(),
        cwd=command.home,
    )
    try:
        os.write(ours, answer.encode())
        return finish(process, code, 120).err
    finally:
        os.close(ours)
        os.close(theirs)
