"""Maildir: folders with `cur` and `new`, one file a message; also Maildir++ (`.Sent` beside `cur`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from store.importers.eml import read_file
from store.importers.source import Found
from training.errors import UnreadableMailbox


def find_maildirs(root: Path) -> list[Path]:
    """Return `root` and the folders under it that are Maildirs, in a stable order."""
    found = []
    for folder, children, _ in os.walk(root):
        if "cur" in children:
            found.append(Path(folder))
        # Messages lie in these; there is no Maildir below them, only many files to list.
        children[:] = sorted(set(children) - {"cur", "new", "tmp"})
    return found


def read_maildir(root: Path) -> Iterator[Found]:
    """Yield the messages of all Maildirs at and under `root`. Raises UnreadableMailbox when there is none."""
    maildirs = find_maildirs(root)
    if not maildirs:
        raise UnreadableMailbox(f'{root} is no Maildir: no folder in it holds a folder "cur".')
    done = 0
    for maildir in maildirs:
        # Maildir++ writes Sent/2024 as ".Sent.2024"; the last part is the folder's own name.
        folder = "" if maildir == root else maildir.name.rpartition(".")[2]
        for part in ("cur", "new"):
            for path in message_files(maildir / part):
                found, size = read_file(path, folder)
                done += size
                found.done = done
                if found.message is not None and "D" in path.name.rpartition(":2,")[2] and ":2," in path.name:
                    found.message.unsent = True  # the Draft flag
                yield found


def message_files(folder: Path) -> list[Path]:
    """Return the message files of a `cur` or `new` folder in order of arrival (their names begin with it)."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
