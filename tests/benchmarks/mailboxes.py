"""The mail that is measured on: real mailboxes beside the repository, else the sample or invented mail."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import format_datetime
from mailbox import mbox
from pathlib import Path

from app.clean import as_mail
from store.importers.jsonl import JsonLines
from store.importers.mbox import read_mbox
from store.importers.message import Message
from training.schemas import Mail
from training.settings import PROJECT_ROOT

SHARED = PROJECT_ROOT.parent / "shared" / "data" / "mailboxes"
SAMPLE = PROJECT_ROOT / "samples" / "merrin.mbox"
SAMPLE_OWNER = ("merrin.tolquay@example.org", "yard@example.net")
OWNER = "owner@example.org"
VOCABULARY = """
    the a to of and in for on it is was will we you they this that with from about please thanks meeting
    report contract price team call week friday draft numbers figures client review send look need think agree
    change budget later today tomorrow morning question answer office project plan note page table line
"""


@dataclass(frozen=True)
class Mailbox:
    """A mailbox that can be imported."""

    name: str
    path: Path
    owner: tuple[str, ...] = (OWNER,)
    """The owner's addresses; a JSONL mailbox of sent mail is anybody's."""


def find_mailbox(name: str) -> Mailbox:
    """Return the real mailbox `name`, or the sample where the real ones are not at hand."""
    path = SHARED / f"{name}.jsonl"
    return Mailbox(name, path) if path.is_file() else Mailbox("merrin (sample)", SAMPLE, SAMPLE_OWNER)


def find_or_generate(name: str, folder: Path, mails: int) -> Mailbox:
    """Return the real mailbox `name`, or write `mails` invented mails into `folder`."""
    path = SHARED / f"{name}.jsonl"
    if path.is_file():
        return Mailbox(name, path)
    path = folder / "generated.jsonl"
    write_generated(path, mails)
    return Mailbox(f"generated ({mails} mails)", path)


def read_sent(mailbox: Mailbox) -> list[Mail]:
    """Read the owner's mail as the store would hand it over, without a database."""
    mails = []
    for position, message in enumerate(_sent_messages(mailbox), start=1):
        mails.append(as_mail(message).model_copy(update={"id": f"mail-{position}", "position": position}))
    return mails


def write_mbox(mailbox: Mailbox, path: Path) -> Mailbox:
    """Write the mails of a JSONL mailbox as an mbox, all sent by OWNER; returns it."""
    archive = mbox(path, create=True)
    try:
        for number, message in enumerate(_sent_messages(mailbox), start=1):
            mail = EmailMessage()
            mail["From"], mail["To"] = OWNER, "reader@example.org"
            mail["Subject"] = message.subject
            mail["Message-ID"] = f"<{number}@example.org>"
            if message.sent_at is not None:
                mail["Date"] = format_datetime(message.sent_at)
            mail.set_content(message.body_text or "")
            archive.add(mail)
    finally:
        archive.close()
    return Mailbox(mailbox.name, path)


def write_generated(path: Path, mails: int, seed: int = 17) -> None:
    """Write invented mails as JSON lines; the same seed writes the same file."""
    chance, words = random.Random(seed), VOCABULARY.split()
    with path.open("w", encoding="utf-8") as file:
        for number in range(mails):
            length = min(600, max(5, round(chance.lognormvariate(4.2, 0.9))))  # median 67 words, long tail
            day, minute = f"20{10 + number % 15}-{1 + number % 12:02}-{1 + number % 28:02}", number % 60
            line = {
                "message_id": f"generated/{number}",
                "date": f"{day}T09:{minute:02}:00Z",
                "from": OWNER,
                "to": [f"reader{number % 40}@example.org"],
                "subject": " ".join(chance.choices(words, k=4)),
                "body": " ".join(chance.choices(words, k=length)) + ".",
            }
            file.write(json.dumps(line) + "\n")


def _sent_messages(mailbox: Mailbox) -> Iterator[Message]:
    if mailbox.path.suffix == ".jsonl":
        for found in JsonLines(mailbox.path, ()):
            if found.message is not None and found.is_sent:
                yield found.message
        return
    for found in read_mbox([mailbox.path]):
        if found.message is not None and found.message.sender_address.lower() in mailbox.owner:
            yield found.message
