"""Small private files in storage, beside the job folders: written whole, read whole, for the owner alone.

Any fsspec URL. A local file is renamed into place and has the mode 0600, its folder 0700.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from training.errors import StorageError


def read_private(storage_url: str, folder: str, name: str) -> str | None:
    """Return a file's text, None when there is none. Raises StorageError."""
    try:
        fs, path = _place(storage_url, folder, name)
        return str(fs.cat_file(path).decode("utf-8")) if fs.exists(path) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ImportError) as exc:
        raise _failed(folder, name, "read", exc) from exc


def write_private(storage_url: str, folder: str, name: str, text: str) -> None:
    """Write a file whole, or leave it as it was. Raises StorageError."""
    try:
        fs, path = _place(storage_url, folder, name)
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, text.encode("utf-8"))
            return
        Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = Path(path).with_name(f".{name}.{os.getpid()}")
        try:
            descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)  # a full disk must not leave half a file behind
    except (OSError, ValueError, ImportError) as exc:
        raise _failed(folder, name, "written", exc) from exc


def remove_private(storage_url: str, folder: str, name: str) -> bool:
    """Delete a file and what a killed writer left aside; True when it was there. Raises StorageError."""
    try:
        fs, path = _place(storage_url, folder, name)
        if isinstance(fs, LocalFileSystem):
            for aside in Path(path).parent.glob(f".{name}.*"):
                aside.unlink(missing_ok=True)
        if not fs.exists(path):
            return False
        fs.rm_file(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, ImportError) as exc:
        raise _failed(folder, name, "deleted", exc) from exc
    return True


def _place(storage_url: str, folder: str, name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.core.url_to_fs(storage_url, use_listings_cache=False)
    return fs, str(PurePosixPath(root) / folder / name)


def _failed(folder: str, name: str, done: str, exc: Exception) -> StorageError:
    return StorageError(
        f"{folder}/{name} could not be {done} ({type(exc).__name__}). Check OWNVOICE_STORAGE_URL and free "
        "disk space, then run it again."
    )
