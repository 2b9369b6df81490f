"""Real mailboxes through the command line: who can be trained, and what the others are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import CommandLine
from training.settings import PROJECT_ROOT

pytestmark = pytest.mark.shared_data
MAILBOXES = PROJECT_ROOT.parent / "shared" / "data" / "mailboxes"


def check(command: CommandLine, name: str, code: int) -> dict[str, Any]:
    """Import a mailbox under an invented address and return its data report."""
    mailbox: Path = MAILBOXES / f"{name}.jsonl"
    if not mailbox.exists():
        pytest.skip(f"the real mailbox {name} is not beside the repository (shared/data/mailboxes)")
    address = f"{name}@shared.example.org"
    command("import", mailbox, "--user", address, "--json")
    report: dict[str, Any] = command("check", address, "--json", code=code).json
    assert report["eligible"] is (code == 0)
    assert report["sent"] >= report["usable"] + sum(report["dropped"].values())
    return report


def test_clean_mailbox_of_short_undated_mails_can_be_trained(command: CommandLine) -> None:
    report = check(command, "david", 0)
    assert report["sent"] == 166 and report["usable"] >= 130
    assert report["train"] + report["heldOut"] == report["usable"] and report["heldOut"] >= 20
    assert report["estimate"]["seconds"] > 10


def test_mailbox_of_mostly_empty_mails_is_told_how_many_are_empty(command: CommandLine) -> None:
    report = check(command, "wh-bianchi-s", 3)
    assert report["sent"] == 192 and report["dropped"]["empty"] >= 100
    for number in (report["sent"], report["dropped"]["empty"], report["usable"], 100):
        assert str(number) in report["reason"]


def test_mailbox_that_a_machine_wrote_is_refused_as_such(command: CommandLine) -> None:
    report = check(command, "davis-pete", 3)
    assert "machine" in report["reason"]


def test_mailbox_just_below_the_threshold_is_told_how_many_mails_are_missing(command: CommandLine) -> None:
    report = check(command, "black-t", 3)
    assert report["sent"] == 110 and 50 < report["usable"] < 100
    for number in (report["usable"], 100):
        assert str(number) in report["reason"]
