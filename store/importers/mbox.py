"""mbox: one file, messages after one another, each behind a line that begins with "From ".

Understands mboxo and mboxrd (`>From ` in bodies), CRLF and LF, Gmail Takeout. Read in one pass in blocks, so
memory is bounded by the largest message that is accepted, not by the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from store.importers.message import MAX_MESSAGE_BYTES
from store.importers.source import DamagedArchive, Found, found_message, open_source
from training.errors import UnreadableMailbox

BLOCK_BYTES = 1024 * 1024
_LOOKAHEAD_BYTES = 4096
"""Enough for a separator and the header line behind it."""
_SEPARATOR = re.compile(
    # "From " + a sender and a date with time and year in any order (Takeout has the zone before the
    # year), or the sender alone; then a header line. An unquoted "From now on …" in a body is none of these.
    rb"From (?:(?=[^\r\n]*\d:\d\d)(?=[^\r\n]*\b(?:19|20)\d\d\b)[^\r\n]*|\S+@\S+[ \t]*|-[ \t]*)\r?\n"
    rb"(?=>?From |[!-9;-~]+:)"
)
_QUOTED_FROM = re.compile(rb"^>(>*From )", re.MULTILINE)


def read_mbox(paths: Sequence[Path]) -> Iterator[Found]:
    """Yield the messages of mbox files. Raises UnreadableMailbox when the only one is none."""
    before = 0
    for path in paths:
        folder = folder_name(path)
        with open_source(path) as source:
            try:
                for raw in _split_messages(path, source.read):
                    yield _found(raw, folder, before + source.done)
            except DamagedArchive:
                yield Found(None, "damaged_archive", done=before + source.done)
            except UnreadableMailbox:
                if len(paths) == 1:
                    raise
                yield Found(None, "not_an_mbox", done=before + source.done)
            before += source.done


def folder_name(path: Path) -> str:
    """Return the mail folder that a file stands for: `Sent.mbox`, or Apple Mail's `Sent.mbox/mbox`."""
    name = path.parent.name if path.name == "mbox" and path.parent.suffix == ".mbox" else path.name
    for suffix in (".gz", ".mbox"):
        name = name.removesuffix(suffix)
    return name


def _found(raw: bytes | None, folder: str, done: int) -> Found:
    if raw is None:
        return Found(None, "too_large", done=done)
    found = found_message(_QUOTED_FROM.sub(rb"\1", raw), folder)
    found.done = done
    return found


def _split_messages(path: Path, read: Callable[[int], bytes]) -> Iterator[bytes | None]:
    """Yield each message without its separator; None for one that is larger than MAX_MESSAGE_BYTES."""
    buffer = bytearray()
    ended = False
    while not ended and len(buffer.lstrip()) < _LOOKAHEAD_BYTES:
        block = read(BLOCK_BYTES)
        ended = not block
        buffer += block
    del buffer[: len(buffer) - len(buffer.removeprefix(b"\xef\xbb\xbf").lstrip())]
    if not buffer:
        raise UnreadableMailbox(f"{path} is empty. Export the mailbox again.")
    if not buffer.startswith(b"From "):
        raise UnreadableMailbox(
            f'{path} is no mbox: its first line does not begin with "From ". Give an mbox, a Maildir, '
            "a folder of .eml files or a .jsonl file."
        )
    first_line = buffer.find(b"\n")
    start = first_line + 1 if first_line >= 0 else len(buffer)
    searched = start
    too_large = False
    while True:
        position = buffer.find(b"\nFrom ", max(searched - 1, 0))
        if position >= 0 and (ended or len(buffer) - position > _LOOKAHEAD_BYTES):
            match = _SEPARATOR.match(buffer, position + 1)
            if match is None:
                searched = position + 2
                continue
            yield None if too_large else bytes(buffer[start : position + 1])
            del buffer[: match.end()]
            start = searched = 0
            too_large = False
            continue
        if ended:
            break
        # Found, but too near the end to tell: read on and look there again.
        searched = position + 1 if position >= 0 else max(len(buffer) - len(b"\nFrom "), start)
        if too_large or searched - start > MAX_MESSAGE_BYTES:
            too_large = True
            # What may be the beginning of a separator stays, with the line end before it.
            del buffer[start : max(searched - 1, start)]
            searched = start + 1
        block = read(BLOCK_BYTES)
        ended = not block
        buffer += block
    yield None if too_large or len(buffer) - start > MAX_MESSAGE_BYTES else bytes(buffer[start:])
