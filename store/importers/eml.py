"""Single messages as files: one .eml, or all .eml files in a folder and its subfolders."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from store.importers.message import MAX_MESSAGE_BYTES
from store.importers.source import Found, found_message
from training.errors import UnreadableMailbox


def find_eml(root: Path) -> list[Path]:
    """Return the .eml files at or under `root`, in a stable order."""
    if root.is_file():
        return [root]
    return sorted(
        Path(folder) / name
        for folder, _, names in os.walk(root)
        for name in names
        if name.lower().endswith(".eml") and not name.startswith("._")  # "._": macOS metadata in archives
    )


def read_eml(root: Path) -> Iterator[Found]:
    """Yield the messages of all .eml files. Raises UnreadableMailbox when there is none."""
    paths = find_eml(root)
    if not paths:
        raise UnreadableMailbox(f"{root} holds no .eml file. Give the folder that the export wrote.")
    done = 0
    for path in paths:
        found, size = read_file(path, path.parent.name if path.parent != root else "")
        done += size
        found.done = done
        yield found


def read_file(path: Path, folder: str) -> tuple[Found, int]:
    """Read one message file; return it with the file's size. Never raises for the one file."""
    try:
        size = path.stat().st_size
        if size > MAX_MESSAGE_BYTES:
            return Found(None, "too_large"), size
        return found_message(path.read_bytes(), folder), size
    except OSError:
        return Found(None, "unreadable_file"), 0
