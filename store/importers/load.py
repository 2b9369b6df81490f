"""`import_mailbox`: from a path to rows, with a count of everything and no surprise from one bad message."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from store.database import Database
from store.importers.eml import find_eml, read_eml
from store.importers.jsonl import JsonLines
from store.importers.maildir import find_maildirs, message_files, read_maildir
from store.importers.mbox import read_mbox
from store.importers.message import Message, canonical_address
from store.importers.source import DamagedArchive, Found, open_source, total_bytes
from store.mail import MailRow, insert_mail
from store.users import add_aliases, addresses, ensure_account
from training.errors import ConfigError, UnreadableMailbox
from training.schemas import ImportReport, User

FORMATS = ("auto", "mbox", "maildir", "eml", "jsonl")
BATCH_ROWS = 500
BATCH_CHARS = 8_000_000
"""A batch is one transaction: what is committed stays when the import is interrupted. This bounds memory."""
_SNIFFED_BYTES = 65_536
_MAX_SENDERS = 10_000
"""Distinct senders that are counted for the hint; more would be a mailing list's archive."""
_HEADER_LINE = re.compile(rb"[!-9;-~]+:[ \t]*\S")


def import_mailbox(
    db: Database,
    user: User,
    path: Path | str,
    *,
    format: str = "auto",
    aliases: Iterable[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Store the mail of a mailbox export in the account of `user` and say what became of every message.

    `format` is one of FORMATS. `aliases` are further addresses the person writes from; they are kept.
    `on_progress(bytes_done, bytes_total)` is called after every stored batch. Running it again adds nothing,
    goes on after an interruption, and marks mail as sent that only a new alias shows to be the person's.

    In the report `read` = `added` + `already_present` + all of `broken`; `sent` counts the person's own.
    Raises UnreadableMailbox when the source as a whole cannot be read, ConfigError for an unknown format.
    """
    began = time.monotonic()
    path = Path(path).expanduser()
    kind = _format(path, format)
    aliases = tuple(aliases)
    own = addresses(db, user.id) | {alias.strip().lower() for alias in aliases}
    if kind == "jsonl":
        lines = JsonLines(path, own)
        aliases += (lines.new_alias,) if lines.new_alias else ()
        files, found = [path], iter(lines)
    elif kind == "mbox":
        files = _mbox_files(path)
        found = read_mbox(files)
    elif kind == "maildir":
        files = [
            f for folder in find_maildirs(path) for sub in ("cur", "new") for f in message_files(folder / sub)
        ]
        found = read_maildir(path)
    else:
        files = find_eml(path)
        found = read_eml(path)
    # An unreadable source says so at its first message: before anything of the account is changed.
    found = chain([first], found) if (first := next(found, None)) is not None else found
    total = total_bytes(files)

    added_aliases = add_aliases(db, user.id, aliases)
    account = ensure_account(db, user)
    senders = _Senders(own)
    broken: Counter[str] = Counter()
    read = added = present = sent = done = 0
    for rows, batch_broken, done in _batches(found, senders):
        new = insert_mail(db, account, rows) if rows else 0
        read += len(rows) + batch_broken.total()
        added += new
        present += len(rows) - new
        sent += sum(row.is_sent for row in rows)
        broken += batch_broken
        if on_progress is not None:
            on_progress(min(done, total), total)
    return ImportReport(
        path=str(path),
        format=kind,
        read=read,
        added=added,
        already_present=present,
        sent=sent,
        broken=dict(broken),
        aliases_added=added_aliases,
        hint=senders.hint(user.email, sent),
        seconds=round(time.monotonic() - began, 3),
    )


class _Senders:
    """Whose mail it is, and who else seems to be the same person."""

    def __init__(self, own: Iterable[str]) -> None:
        self._own = {canonical_address(address) for address in own}
        self._names = set(own)
        self._strangers: Counter[str] = Counter()
        self._strangers_in_sent: Counter[str] = Counter()

    def is_sent(self, found: Found, message: Message) -> bool:
        if found.is_sent is not None:
            return found.is_sent
        if message.unsent:
            return False
        address = message.sender_address
        if address and canonical_address(address) in self._own:
            return True
        if not address and message.sender.lower() in self._names:
            return True
        for counter in (self._strangers, *([self._strangers_in_sent] if message.in_sent_folder else [])):
            if address and (address in counter or len(counter) < _MAX_SENDERS):
                counter[address] += 1
        return False

    def hint(self, email: str, sent: int) -> str:
        """Return a sentence when the person seems to write from an address that is not known as theirs."""
        if self._strangers_in_sent:
            address, count = self._strangers_in_sent.most_common(1)[0]
            others = self._strangers_in_sent.total()
            return (
                f"{others} messages lie among the sent mail but are from addresses that are not known as "
                f"{email}'s, {count} of them from {address}. If that is the same person, import again with "
                f"`--alias {address}`."
            )
        if sent == 0 and self._strangers:
            address, count = self._strangers.most_common(1)[0]
            return (
                f"No message is from {email}; the most frequent sender is {address} ({count} messages). "
                f"If that is the same person, import again with `--alias {address}`."
            )
        return ""


def _batches(found: Iterable[Found], senders: _Senders) -> Iterator[tuple[list[MailRow], Counter[str], int]]:
    """Group messages into transactions: (rows, broken by reason, bytes of the source read)."""
    rows: list[MailRow] = []
    broken: Counter[str] = Counter()
    size = done = 0
    for item in found:
        done = item.done
        if item.message is None:
            broken[item.broken] += 1
        else:
            rows.append(_row(item.message, senders.is_sent(item, item.message)))
            size += item.message.size
        if len(rows) + broken.total() >= BATCH_ROWS or size >= BATCH_CHARS:
            yield rows, broken, done
            rows, broken, size = [], Counter(), 0
    if rows or broken:
        yield rows, broken, done


def _row(message: Message, is_sent: bool) -> MailRow:
    return MailRow(
        message_id=message.message_id,
        thread_id=message.thread_id,
        in_reply_to=message.in_reply_to,
        is_sent=is_sent,
        sender=message.sender,
        to=message.to,
        cc=message.cc,
        subject=message.subject,
        body_text=message.body_text,
        body_html=message.body_html,
        headers=message.headers,
        sent_at=message.sent_at,
        ai_generated=message.ai_generated,
    )


# ---- what kind of source is it ---------------------------------------------------------------------


def _format(path: Path, format: str) -> str:
    """Return the format of a source that exists. Raises UnreadableMailbox, ConfigError."""
    if format not in FORMATS:
        raise ConfigError(f'"{format}" is no mailbox format. Choose one of {", ".join(FORMATS)}.')
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as exc:
        raise UnreadableMailbox(f"{path} cannot be read ({exc.strerror}).") from exc
    if not exists:
        raise UnreadableMailbox(f"{path} does not exist. Give the path of a mailbox export.")
    if is_folder and format == "jsonl":
        raise UnreadableMailbox(f"{path} is a folder. Give one .jsonl file.")
    if not is_folder and format == "maildir":
        raise UnreadableMailbox(f"{path} is a file, a Maildir is a folder.")
    if format != "auto":
        return format
    return _folder_format(path) if is_folder else _file_format(path)


def _folder_format(path: Path) -> str:
    if find_maildirs(path):
        return "maildir"
    if _mbox_files(path):
        return "mbox"
    if find_eml(path):
        return "eml"
    raise UnreadableMailbox(
        f"{path} holds no mail: no Maildir (a folder with cur and new), no .mbox file, no .eml file. "
        "Give the folder or the file that the export wrote."
    )


def _file_format(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return "jsonl"
    if name.endswith((".zip", ".tgz", ".tar", ".tar.gz", ".pst", ".ost", ".msg")):
        raise UnreadableMailbox(
            f"{path} is an archive or an Outlook file. Unpack it (or export to mbox or .eml) and give "
            "the result."
        )
    with open_source(path) as source:
        try:
            start = source.read(_SNIFFED_BYTES)
        except DamagedArchive as exc:
            raise UnreadableMailbox(f"{path} is a damaged gzip file. Copy it again.") from exc
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise UnreadableMailbox(f"{path} is empty. Export the mailbox again.")
    if start.startswith(b"From "):
        return "mbox"
    if start.startswith(b"{"):
        return "jsonl"
    if name.endswith(".eml") or (b"\0" not in start and _HEADER_LINE.match(start)):
        return "eml"
    raise UnreadableMailbox(
        f'{path} is no mailbox: it begins neither with "From " (mbox) nor with "{{" (JSONL) nor with a mail '
        "header (.eml). Give an mbox, a Maildir, a folder of .eml files or a .jsonl file."
    )


def _mbox_files(path: Path) -> list[Path]:
    """Return the mbox files at or under `path`; Apple Mail writes a folder `Name.mbox` with a file `mbox`."""
    if not path.is_dir():
        return [path]
    candidates = [*path.rglob("*.mbox"), *path.rglob("*.mbox.gz"), *path.rglob("mbox")]
    return sorted(candidate for candidate in set(candidates) if candidate.is_file())
