"""What every importer is built from: the stream of found messages, opened files, folder sizes."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from store.importers.message import Message, Unparsable, parse_message
from training.errors import UnreadableMailbox

GZIP_MAGIC = b"\x1f\x8b"


@dataclass(slots=True)
class Found:
    """One message of a source, or the reason why there is none; and how far the source has been read."""

    message: Message | None
    broken: str = ""
    """Key of `ImportReport.broken` when `message` is None."""
    is_sent: bool | None = None
    """What the source itself says; None leaves it to the sender's address."""
    done: int = 0
    """Bytes of the source read so far, compressed bytes for a compressed one."""


def found_message(raw: bytes, folder: str) -> Found:
    """Parse one message; whatever is wrong with it becomes a count, never an error of the whole import."""
    try:
        return Found(parse_message(raw, folder))
    except Unparsable as exc:
        return Found(None, exc.reason)
    except Exception:  # the standard library's header code has its own surprises for hostile input
        return Found(None, "unparsable")


@dataclass(slots=True)
class OpenedFile:
    """A mailbox file, decompressed on the way when it is gzip."""

    stream: BinaryIO
    raw: BinaryIO

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes. Raises DamagedArchive where a compressed file ends early or is corrupt."""
        try:
            return self.stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise DamagedArchive(str(exc)) from exc

    def readline(self, limit: int) -> bytes:
        """Read one line of at most `limit` bytes. Raises DamagedArchive like `read`."""
        try:
            return self.stream.readline(limit)
        except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
            raise DamagedArchive(str(exc)) from exc

    @property
    def done(self) -> int:
        return self.raw.tell()


class DamagedArchive(Exception):
    """A compressed file that ends early: what came before it counts, the rest is reported."""


@contextmanager
def open_source(path: Path) -> Iterator[OpenedFile]:
    """Open a mailbox file for reading. Raises UnreadableMailbox."""
    try:
        raw = path.open("rb")
    except OSError as exc:
        raise UnreadableMailbox(f"{path} cannot be read ({exc.strerror}).") from exc
    with raw:
        compressed = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw
        yield OpenedFile(stream, raw)


def total_bytes(paths: Iterable[Path]) -> int:
    """Return the size of all files together; a file that has gone meanwhile counts nothing."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total
