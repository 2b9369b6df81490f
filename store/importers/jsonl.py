"""JSON lines: one sent message a line, plain or gzip.

Keys: `body` (text or null; required), `message_id`, `date` (ISO 8601), `from`, `to`, `cc` (lists or strings),
`subject`, and, when the source knows them, `body_html`, `thread_id`, `in_reply_to`, `aiGenerated` (or
`ai_generated`; true, false or null: a mail that the AI drafted is never trained on). Others are ignored.

Every line counts as sent by the account's owner. Only when the account's own address is among the senders do
lines from other well-formed addresses count as received; a sender that is a mere name (archives that were
scanned have dozens of spellings of one) is the owner. Otherwise the most frequent sender becomes an alias.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from store.importers.message import (
    MAX_BODY_BYTES,
    MAX_HEADER_CHARS,
    MAX_MESSAGE_BYTES,
    Message,
    Unparsable,
    canonical_address,
    content_id,
    parse_date,
    short_id,
    storable,
    subject_thread,
)
from store.importers.source import DamagedArchive, Found, OpenedFile, open_source
from store.mail import join_addresses
from store.users import is_address
from training.errors import UnreadableMailbox

_MAX_SENDERS = 10_000
"""Distinct senders that are counted; the owner of a mailbox of sent mail is among the first."""
_AI_GENERATED = ("aiGenerated", "ai_generated")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class JsonLines:
    """A .jsonl file: the first pass learns who wrote it, the second yields the messages."""

    def __init__(self, path: Path, own: Collection[str]) -> None:
        """Read all senders. Raises UnreadableMailbox when no line is a JSON object."""
        self._path = path
        self._own = {canonical_address(address) for address in own}
        senders: Counter[str] = Counter()
        lines = objects = 0
        with open_source(path) as source:
            for _, value in _parsed_lines(source):
                lines += 1
                if isinstance(value, dict):
                    objects += 1
                    sender = _first_text(value.get("from"))
                    if sender and (sender in senders or len(senders) < _MAX_SENDERS):
                        senders[sender] += 1
        if objects == 0:
            what = "is empty" if lines == 0 else "holds no line that is a JSON object"
            raise UnreadableMailbox(f"{path} {what}. A .jsonl mailbox has one JSON object a line.")
        self._owner_known = any(canonical_address(_bare(sender)) in self._own for sender in senders)
        self.new_alias = "" if self._owner_known else _dominant(senders)
        """The owner's address or name as the file has it, when the account did not know it."""

    def __iter__(self) -> Iterator[Found]:
        with open_source(self._path) as source:
            for reason, value in _parsed_lines(source):
                if reason:
                    yield Found(None, reason, done=source.done)
                    continue
                reason = _broken(value)
                if reason:
                    yield Found(None, reason, done=source.done)
                    continue
                message = _message(value)
                stranger = (
                    self._owner_known
                    and is_address(message.sender_address)
                    and canonical_address(message.sender_address) not in self._own
                )
                yield Found(message, is_sent=not stranger, done=source.done)


def parse_line(line: bytes) -> Message:
    """Read one JSON line. Raises Unparsable with the same reasons that an import counts."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise Unparsable("not_json") from None
    if reason := _broken(value):
        raise Unparsable(reason)
    return _message(value)


def _parsed_lines(source: OpenedFile) -> Iterator[tuple[str, Any]]:
    """Yield (reason, value) for every line that is not blank; `reason` is empty for a line that is JSON."""
    first = True
    while True:
        try:
            line = source.readline(MAX_MESSAGE_BYTES)
            if len(line) == MAX_MESSAGE_BYTES and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = source.readline(MAX_MESSAGE_BYTES)
                yield "too_large", None
                continue
        except DamagedArchive:
            yield "damaged_archive", None
            return
        if not line:
            return
        if first:
            line, first = line.removeprefix(_BYTE_ORDER_MARK), False
        if line.isspace():
            continue
        try:
            yield "", json.loads(line)
        except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
            yield "not_json", None


def _broken(value: Any) -> str:
    if not isinstance(value, dict):
        return "not_an_object"
    if "body" not in value:
        return "no_body_field"
    if value["body"] is not None and not isinstance(value["body"], str):
        return "body_not_text"
    if any(not isinstance(value.get(key), bool | None) for key in _AI_GENERATED):
        return "ai_generated_not_boolean"
    return ""


def _message(value: dict[str, Any]) -> Message:
    sender = _first_text(value.get("from"))[:MAX_HEADER_CHARS]
    to, cc = _entries(value.get("to")), _entries(value.get("cc"))
    subject = storable(" ".join(_scalar(value.get("subject")).split()))[:MAX_HEADER_CHARS]
    date, body = _scalar(value.get("date")), value["body"]
    html = value.get("body_html")
    address = _bare(sender).lower()
    message_id = short_id(_scalar(value.get("message_id")).strip().strip("<>")) or content_id(
        sender, ",".join(to), date, subject, body or ""
    )
    thread_id = short_id(_scalar(value.get("thread_id")).strip()) or subject_thread(
        subject, [_bare(entry) for entry in (sender, *to, *cc)], message_id
    )
    in_reply_to = short_id(_scalar(value.get("in_reply_to")).strip().strip("<>"))
    return Message(
        message_id=message_id,
        thread_id=thread_id,
        in_reply_to=in_reply_to or None,
        sender=sender,
        sender_address=address if is_address(address) else "",
        to=join_addresses(to),
        cc=join_addresses(cc),
        subject=subject,
        body_text=None if body is None else _body(body),
        body_html=_body(html) if isinstance(html, str) and html else None,
        sent_at=parse_date(date),
        headers={"in-reply-to": in_reply_to} if in_reply_to else {},
        ai_generated=any(value.get(key) is True for key in _AI_GENERATED),
    )


def _body(text: str) -> str:
    return storable(text[:MAX_BODY_BYTES].replace("\r\n", "\n"))


def _scalar(value: Any) -> str:
    """Return a field that should be text: numbers are written out, anything else is empty."""
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else ""


def _first_text(value: Any) -> str:
    """Return a sender: text, the first of a list, or the address of an object."""
    entries = _entries(value)
    return entries[0] if entries else ""


def _entries(value: Any) -> list[str]:
    """Return recipients from whatever stands there: a list, one text, an object with name and address."""
    if isinstance(value, str):
        text = storable(" ".join(value.split()))
        return [text] if text else []
    if isinstance(value, dict):
        return _entries(value.get("address") or value.get("email") or value.get("name"))
    if isinstance(value, list):
        return [entry for item in value[:1000] if not isinstance(item, list) for entry in _entries(item)]
    return []


def _bare(sender: str) -> str:
    """Return the address of `Name <address>`, or all of it when that is none."""
    inside = sender.rpartition("<")[2].rstrip("> ") if sender.endswith(">") else sender
    return inside if is_address(inside) else sender


def _dominant(senders: Counter[str]) -> str:
    """Return the most frequent sender: its address, else the name (`Name <Name>` written once)."""
    for sender, _ in senders.most_common():
        bare = _bare(sender)
        if is_address(bare):
            return bare.lower()
        name = sender.partition("<")[0].strip() or sender.strip("<> ")
        if name:
            return name[:MAX_HEADER_CHARS]
    return ""
