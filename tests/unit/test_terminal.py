"""What others wrote is shown as it stands: no markup of it is obeyed, and no control character."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from app import cli, demo, erasure, terminal
from app.doctor import Finding
from training.schemas import EraseReceipt, Generated, Job, JobEvent, JobStatus, Outcome

ODD = "[/x] is [bold]a[/bold] folder :smile:"
"""Unbalanced markup, markup that would vanish, and a name that would become a picture."""
HOSTILE = "ahoy \x1b]0;owned\x07 \x1b[31mred \x9b1m \u202eliah \u2066x \r\b"

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def job(**fields: Any) -> Job:
    return Job(**{"id": "j1", "user_id": "u1", "version": 1, "base_model": "tiny", **fields})


def event(**fields: Any) -> JobEvent:
    return JobEvent(**{"job_id": "j1", "at": NOW, "level": "info", **fields})


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    # A console that was made in a process with COLUMNS, as pytest-xdist's workers are, keeps that width.
    monkeypatch.setattr(terminal.console, "width", 160)


def assert_harmless(shown: str) -> None:
    assert "ahoy" in shown and "liah" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e\u2066\r\b")


# ---- markup ------------------------------------------------------------------------------------------


def test_a_job_is_shown_with_the_brackets_of_its_strings(capsys: pytest.CaptureFixture[str]) -> None:
    failed = job(status=JobStatus.FAILED, error_code="CONFIG", error_message=ODD, model_name="[/]")
    terminal.show_job(failed, [event(type="message", message=ODD)])
    terminal.show_jobs([failed.model_copy(update={"id": "[/j]"})])
    terminal.show_result(failed)
    shown = capsys.readouterr()
    assert shown.out.count(ODD) == 2 and ODD in shown.err and "[/j]" in shown.out


def test_titles_lines_and_things_keep_their_brackets(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.side_by_side(f"base {ODD}", "left", ODD, "right")
    terminal.show_registered([(ODD, ODD, ODD)])
    terminal.show_facts([("name", ODD)])
    terminal.console.print(ODD)
    demo._headline(ODD)
    assert capsys.readouterr().out.count(ODD) == 8


def test_a_receipt_keeps_the_brackets_of_names(capsys: pytest.CaptureFixture[str]) -> None:
    item = {"kind": "adapter", "name": ODD, "where": "[/w]", "result": "removed", "verified": "[/v]"}
    erasure.show_receipt(
        EraseReceipt.model_validate({"user_id": "[/u]", "started_at": NOW, "complete": True, "items": [item]})
    )
    shown = capsys.readouterr().out
    assert all(words in shown for words in (ODD, "[/w]", "[/v]", "[/u]", "removed"))


def test_a_finding_of_the_doctor_keeps_its_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.cli.examine", lambda _: [Finding("disk", False, ODD, f"fix {ODD}")])
    assert CliRunner().invoke(cli.app, ["doctor"]).stdout.count(ODD) == 2


def test_bars_keep_the_brackets_of_steps_and_phases(capsys: pytest.CaptureFixture[str]) -> None:
    with terminal.steps("stack") as on_step:
        on_step("[/step]", "[/died]")
    with terminal.count_bar("[/count]") as on_count:
        on_count(1, 2)
    with terminal.bytes_bar("[/bytes]") as on_bytes:
        on_bytes(1, 2)
    with terminal.job_bar() as on_change:
        on_change(job(), [event(type="metrics", message="", data={"step": 1, "phase": "[/phase]"})])
    shown = capsys.readouterr().err
    assert all(f"[/{name}]" in shown for name in ("step", "died", "count", "bytes", "phase"))


# ---- control characters ------------------------------------------------------------------------------


def test_nothing_that_is_printed_carries_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_error(HOSTILE)
    terminal.show_notice(HOSTILE)
    shown = capsys.readouterr()
    assert_harmless(shown.out)
    assert_harmless(shown.err)


@pytest.mark.parametrize("columns", ["60", "160"])
def test_two_letters_side_by_side_carry_none_and_keep_their_frames(
    columns: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    terminal.side_by_side("base", HOSTILE, "own", HOSTILE)
    shown = capsys.readouterr().out
    assert_harmless(shown)
    assert len({len(line) for line in shown.splitlines()}) == 1


@pytest.mark.parametrize("options", [(), ("--base",)])
def test_write_prints_no_control_character_of_the_model(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Written:
        db = None

        @contextmanager
        def serving(self, base_model: str) -> Iterator[Any]:
            answer = Generated(text=HOSTILE, stopped=True)
            yield SimpleNamespace(generate=lambda *_: answer)

    user = SimpleNamespace(id="u1", email="a@x.example", ai_model="emailai-u1:v1")
    monkeypatch.setattr("app.cli.Session", Written)
    monkeypatch.setattr("app.cli.users.find_user", lambda *_: user)
    monkeypatch.setattr("app.cli.jobs.current_adapter", lambda *_: job(outcome=Outcome.PROMOTED))
    monkeypatch.setattr("app.terminal.errors.status", lambda _: nullcontext())
    shown = CliRunner().invoke(cli.app, ["write", "u1", "Write", *options])
    assert shown.exit_code == 0, shown.exception
    assert_harmless(shown.stdout)
