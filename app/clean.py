"""One mail as the cleaner sees it: what `ownvoice clean` does. Nothing is stored, logged or sent anywhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.given_file import read_given
from app.session import Session
from store import mail as stored_mail
from store import users
from store.importers.jsonl import parse_line
from store.importers.message import (
    MAX_MESSAGE_BYTES,
    Message,
    Unparsable,
    canonical_address,
    parse_message,
)
from store.mail import REPLY_PREFIX, split_addresses
from training.config import DataConfig, load_train_config
from training.errors import ConfigError, UnreadableMailbox
from training.mail.clean import Learnt, clean_mailbox
from training.mail.explain import Explanation, explain
from training.schemas import DropReason, Mail

NOT_SENT = "not_sent"
"""`drop_reason` of a mail that somebody else wrote: an import would not count it as sent."""
_WHAT_TO_GIVE = "Give one message as an .eml file, or one JSON line of a .jsonl mailbox."
_BROKEN = {
    "empty": "is empty",
    "too_large": f"is larger than {MAX_MESSAGE_BYTES // 1024**2} MB, the most that a mail may have",
    "no_headers": "holds no mail: it has no header lines (From:, Subject:, Date: …)",
    "not_json": "is not valid JSON",
    "not_an_object": "is JSON, but no object",
    "no_body_field": 'is a JSON object without the field "body"',
    "body_not_text": 'is a JSON object whose "body" is neither text nor null',
    "ai_generated_not_boolean": 'is a JSON object whose "aiGenerated" is neither true nor false nor null',
    "unparsable": "cannot be read as a mail",
}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """One mail explained, and whether the user wrote it at all."""

    explanation: Explanation
    words_needed: int
    not_sent_by: str = ""
    """The user that was asked about, when the mail is from somebody else."""

    @property
    def kept(self) -> bool:
        return self.explanation.kept and not self.not_sent_by

    @property
    def sentence(self) -> str:
        """Kept, or dropped and why."""
        words = len(self.explanation.own_words.split())
        counted = "1 word" if words == 1 else f"{words} words"
        if self.not_sent_by:
            return f"Dropped: it is not from {self.not_sent_by}, so an import would not count it as sent."
        reason = self.explanation.drop_reason
        if reason is None:
            return f"Kept: {counted} of your own."
        limit = f" ({counted}, {self.words_needed} are needed)" if reason is DropReason.TOO_SHORT else ""
        return f"Dropped: {reason.label}{limit}."

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints: own_words, cut, kept, drop_reason."""
        told = self.explanation.as_dict()
        return {**told, "kept": False, "drop_reason": NOT_SENT} if self.not_sent_by else told


def clean_file(path: Path, *, user: str | None = None, config: str | None = None) -> Cleaned:
    """Read one mail from a file, or from standard input when `path` is "-", and explain what is kept of it.

    A `user` (id or address) must have sent it, and the endings that their imported mailbox repeats are cut as
    in training; without one the mail is judged by itself, and no database is needed.

    Raises UnreadableMailbox, ConfigError, UnknownUser.
    """
    name = "Standard input" if str(path) == "-" else str(path)
    message = read_message(_read(path, name), name)
    session = Session()
    data = load_train_config(config or session.settings.train_config).data
    learnt, not_sent_by = Learnt(), ""
    if user is not None:
        person = users.find_user(session.db, user)
        own = {canonical_address(address) for address in users.addresses(session.db, person.id)}
        sender = message.sender_address or message.sender
        if sender and canonical_address(sender) not in own:
            not_sent_by = person.email
        learnt = _learnt_from(session, person.id, data)
    explanation = explain(as_mail(message), learnt, min_words=data.min_words, max_words=data.max_words)
    return Cleaned(explanation, data.min_words, not_sent_by)


def read_message(raw: bytes, name: str) -> Message:
    """Read one message from the bytes of an .eml file or of one JSON line.

    Raises UnreadableMailbox, and ConfigError when there are several messages. `name` is what the sentence
    calls the source.
    """
    text = raw.removeprefix(b"\xef\xbb\xbf").strip()
    if text.startswith(b"From "):
        raise ConfigError(f"{name} is an mbox; `ownvoice import` reads those. {_WHAT_TO_GIVE}")
    try:
        if text.startswith(b"{"):
            lines = [line for line in text.split(b"\n") if line.strip()]
            # An object that is spread over lines is one message all the same.
            if len(lines) > 1 and _is_json(lines[0]):
                raise ConfigError(
                    f"{name} has {len(lines)} lines, but one mail is cleaned at a time. {_WHAT_TO_GIVE}"
                )
            return parse_line(text)
        message = parse_message(raw)
    except Unparsable as exc:
        raise UnreadableMailbox(f"{name} {_BROKEN[exc.reason]}. {_WHAT_TO_GIVE}") from None
    except RecursionError:
        raise UnreadableMailbox(f"{name} {_BROKEN['unparsable']}. {_WHAT_TO_GIVE}") from None
    if not (message.sender or message.to or message.subject or message.sent_at or message.headers):
        # Any bytes with a colon in a line look like a header to a reader that must never give up.
        raise UnreadableMailbox(f"{name} {_BROKEN['no_headers']}. {_WHAT_TO_GIVE}")
    return message


def as_mail(message: Message) -> Mail:
    """Return a parsed message as the store would hand it to the cleaner."""
    return Mail(
        id=message.message_id,
        thread_id=message.thread_id,
        position=0,
        sent_at=message.sent_at,
        sender=message.sender,
        to=split_addresses(message.to),
        cc=split_addresses(message.cc),
        subject=message.subject,
        body_text=message.body_text or "",
        body_html=message.body_html or "",
        headers=message.headers,
        ai_generated=message.ai_generated,
        is_reply=bool(
            message.in_reply_to
            or "references-present" in message.headers
            or REPLY_PREFIX.match(message.subject)
        ),
    )


def _read(path: Path, name: str) -> bytes:
    if str(path) == "-":
        raw = _standard_input()
    else:
        raw = read_given(path, MAX_MESSAGE_BYTES, error=UnreadableMailbox, hint=_WHAT_TO_GIVE)
    if not raw.strip():
        raise UnreadableMailbox(f"{name} {_BROKEN['empty']}. {_WHAT_TO_GIVE}")
    return raw


def _standard_input() -> bytes:
    try:
        if sys.stdin is not None:  # a caller that closed it leaves None
            return sys.stdin.buffer.read(MAX_MESSAGE_BYTES + 1)
        reason = "it is closed"
    except OSError as exc:
        reason = exc.strerror or "it is not open for reading"
    raise UnreadableMailbox(f"Standard input cannot be read ({reason}). {_WHAT_TO_GIVE}")


def _is_json(line: bytes) -> bool:
    try:
        parse_line(line)
    except Unparsable as exc:
        return exc.reason != "not_json"
    return True


def _learnt_from(session: Session, user_id: str, data: DataConfig) -> Learnt:
    """Return what training would learn from the user's mailbox about each of its mails."""
    mails = stored_mail.fetch_sent_mail(session.db, user_id, data.max_mails)
    return clean_mailbox(mails, min_words=data.min_words, max_words=data.max_words).learnt
