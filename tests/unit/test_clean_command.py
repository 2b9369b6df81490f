"""`ownvoice clean`: what is kept of one mail, what is cut and why, and one sentence for anything else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from app.clean import read_message
from app.cli import app
from training.errors import ConfigError, OwnvoiceError, UnreadableMailbox
from training.settings import PROJECT_ROOT

BODY = """Hi Bob,

the cutter is ready and the alarm code is 482913 until Friday.

Best,
Anna

-- \nAnna Smith
Boats of every kind

On Tue, 3 Mar 2026 at 10:12, Bob Lee <bob@x.example> wrote:
> Is the cutter ready?
"""
HEADERS = "From: Anna <anna@x.example>\nTo: bob@x.example\nSubject: Re: cutter\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in os.environ:
        if name.startswith("OWNVOICE_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("OWNVOICE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def run(*arguments: str | Path, given: bytes | None = None) -> Result:
    return CliRunner().invoke(app, ["clean", *map(str, arguments)], input=given)


def as_json(*arguments: str | Path, given: bytes | None = None) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(run(*arguments, "--json", given=given).stdout)
    return told


def eml(body: str) -> bytes:
    return f"{HEADERS}\n{body}".encode()


def test_json_has_the_four_keys_and_positions_count_in_the_body(home: Path) -> None:
    path = home / "mail.eml"
    path.write_bytes(eml(BODY))
    told = as_json(path)
    assert list(told) == ["own_words", "cut", "kept", "drop_reason"]
    assert told["own_words"].startswith("Hi Bob,\n\nthe cutter is ready and the alarm code is [code] until")
    assert told["own_words"].endswith("Best,\nAnna")
    assert (told["kept"], told["drop_reason"]) == (True, None)
    assert all(list(cut) == ["reason", "text_start", "text_end"] for cut in told["cut"])
    pieces = {cut["reason"]: BODY[cut["text_start"] : cut["text_end"]] for cut in told["cut"]}
    assert pieces["signature"].endswith("Boats of every kind")
    assert pieces["attribution"].startswith("On Tue") and pieces["quote"] == "> Is the cutter ready?"


def test_a_json_line_on_standard_input_is_the_same_mail(home: Path) -> None:
    line = {"from": "anna@x.example", "to": ["bob@x.example"], "subject": "Re: cutter", "body": BODY}
    assert as_json("-", given=json.dumps(line).encode()) == as_json("-", given=eml(BODY))
    assert as_json("-", given=json.dumps(line, indent=2).encode()) == as_json("-", given=eml(BODY))


def test_the_terminal_shows_reasons_beside_what_is_cut_and_one_sentence(home: Path) -> None:
    shown = run("-", given=eml(BODY))
    assert shown.exit_code == 0
    lines = [line.rstrip() for line in shown.stdout.splitlines()]
    assert any(line.startswith("attribution │ On Tue, 3 Mar") for line in lines)
    assert any(line.endswith("quote │ > Is the cutter ready?") for line in lines)
    assert "482913" not in shown.stdout and "[code]" in shown.stdout
    assert lines[-1] == "Kept: 16 words of your own. 1 secret is replaced."


@pytest.mark.parametrize(
    ("body", "sentence", "reason"),
    [
        ("pls print", "Dropped: too few own words (2 words, 8 are needed).", "too_short"),
        ("", "Dropped: empty body.", "empty"),
    ],
)
def test_a_dropped_mail_is_an_answer_with_exit_code_3(body: str, sentence: str, reason: str) -> None:
    shown = run("-", given=eml(body))
    assert shown.exit_code == 3
    assert shown.stdout.strip().splitlines()[-1] == sentence
    told = as_json("-", given=eml(body))
    assert (told["kept"], told["drop_reason"]) == (False, reason)


@pytest.mark.parametrize("spelling", ["aiGenerated", "ai_generated"])
def test_a_mail_that_the_ai_drafted_is_dropped_as_in_training(spelling: str) -> None:
    body = "The cutter is ready and waits for you at the yard until Friday."
    line = json.dumps({"from": "anna@x.example", "body": body, spelling: True}).encode()
    shown = run("-", given=line)
    assert shown.exit_code == 3
    assert shown.stdout.strip().splitlines()[-1] == "Dropped: drafted by the AI."
    assert as_json("-", given=line)["drop_reason"] == "ai_generated"
    for human in (False, None):
        assert as_json("-", given=json.dumps({"body": body, spelling: human}).encode())["kept"] is True


def test_escape_sequences_of_a_mail_do_not_reach_the_terminal() -> None:
    shown = run("-", given=eml("\x1b]0;owned\x07 \x1b[31mhello\x1b[0m, this is a mail with a few more words"))
    assert "\x1b" not in shown.stdout and "\x07" not in shown.stdout and "hello" in shown.stdout


ODD = {
    "empty": (b"", UnreadableMailbox, "is empty"),
    "blank": (b" \r\n\n", UnreadableMailbox, "is empty"),
    "binary": (bytes(range(256)) * 40, UnreadableMailbox, "holds no mail"),
    "zeros": (b"\0" * 5000, UnreadableMailbox, "holds no mail"),
    "prose": (b"Hello Bob, how are you today?\nNote: all well.", UnreadableMailbox, "holds no mail"),
    "torn JSON": (b'{"body": "half', UnreadableMailbox, "is not valid JSON"),
    "deep JSON": (b'{"a":' * 100_000, UnreadableMailbox, "is not valid JSON"),
    "no body": (b'{"subject": "x"}', UnreadableMailbox, 'without the field "body"'),
    "a torn flag": (b'{"body": "x", "aiGenerated": "yes"}', UnreadableMailbox, "neither true nor false"),
    "two lines": (b'{"body": "a"}\n{"body": "b"}\n', ConfigError, "has 2 lines"),
    "an mbox": (b"From anna Tue Mar  3 10:12:00 2026\nFrom: a@x.example\n\nhi", ConfigError, "is an mbox"),
    "a list": (b'[{"body": "a"}]', UnreadableMailbox, "holds no mail"),
}


@pytest.mark.parametrize("odd", ODD)
def test_anything_else_is_one_sentence_without_its_text(odd: str) -> None:
    given, kind, words = ODD[odd]
    shown = run("-", given=given)
    assert isinstance(shown.exception, kind)
    message = str(shown.exception)
    assert message.startswith("Standard input ") and words in message and message.endswith(".")
    assert "\n" not in message and "Hello" not in message
    assert shown.stdout == ""


@pytest.mark.parametrize("shell", ["<&-", "0>given"])
@pytest.mark.parametrize("command", ["clean -", "erase nobody"])
def test_a_standard_input_that_cannot_be_read_is_one_sentence(shell: str, command: str, home: Path) -> None:
    program = "import app.cli as cli; cli.erasure.find_erasable = lambda *_: 'u1'; cli.main()"
    given = ["sh", "-c", f'{sys.executable} -c "$0" {command} {shell}', program]
    ended = subprocess.run(
        given, cwd=home, env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}, capture_output=True, text=True
    )
    assert "Traceback" not in ended.stderr and ended.stderr.count("\n") == 1
    assert (ended.returncode, ended.stdout) == (1 if command == "clean -" else 2, "")
    assert ("Standard input" if command == "clean -" else "--yes") in ended.stderr


def cleaned(
    home: Path, *arguments: str, out: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own; `out` is what the shell does with standard output."""
    (home / "m.eml").write_bytes(f"{HEADERS}Content-Type: text/plain; charset=utf-8\n\n{BODY}Café.".encode())
    command = f'{sys.executable} -c "import app.cli; app.cli.main()" clean {" ".join(arguments)} m.eml {out}'
    paths = {"PYTHONPATH": str(PROJECT_ROOT), **environment}
    return subprocess.run(["sh", "-c", command], cwd=home, env={**os.environ, **paths}, capture_output=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_knows_no_umlauts_gets_the_words_all_the_same(home: Path, encoding: str) -> None:
    told = cleaned(home, "--json", PYTHONIOENCODING=encoding)
    assert (told.returncode, told.stderr) == (0, b"")
    assert "cutter" in json.loads(told.stdout.decode("ascii"))["own_words"]
    shown = cleaned(home, PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, b"") and b"cutter" in shown.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_a_full_disk_is_one_sentence(home: Path, arguments: tuple[str, ...]) -> None:
    ended = cleaned(home, *arguments, out="> /dev/full")
    assert ended.returncode == 1
    assert ended.stderr.decode() == "The output cannot be written: no space is left on the device.\n"


def test_missing_files_and_folders_are_named(home: Path) -> None:
    for path, words in ((home / "none.eml", "does not exist"), (home, "is a folder")):
        shown = run(path)
        assert isinstance(shown.exception, OwnvoiceError)
        assert f"{path} {words}" in str(shown.exception)


def test_one_line_of_a_pretty_printed_object_is_not_taken_for_a_mailbox() -> None:
    assert read_message(b'{\n "body": "x"\n}\n', "x").body_text == "x"
