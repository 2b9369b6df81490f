"""The llamacpp engine's published adapters: a folder that several processes share.

An adapter is `<name>.gguf` and becomes published by `<name>.json` (name, digest, base digest), which is
renamed into place last: a process killed halfway leaves files that nobody reads and the next publish
replaces. Writers hold `.lock`; readers need no lock, because every file appears by rename.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from serving.adapter_file import file_digest
from training.errors import AdapterRefused, ServingError
from training.schemas import Schema

# A staged copy lives for the seconds of one publish; older ones were left by a killed process.
_STALE_SECONDS = 3600


class PublishedAdapter(Schema):
    """The manifest beside a published adapter file."""

    name: str
    digest: str
    base_digest: str
    """Digest of the base GGUF that it was proven to load on; it means nothing on another one."""


class AdapterFolder:
    """Reads and writes the folder. Names are checked by the caller (`serving.checks.check_name`)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, name: str) -> Path:
        return self.path / f"{name}.gguf"

    def read(self, name: str) -> PublishedAdapter | None:
        """Return the manifest of `name`, None when it is not published. Raises ServingError when damaged."""
        try:
            text = self._manifest(name).read_text("utf-8")
        except FileNotFoundError:
            return None
        try:
            return PublishedAdapter.model_validate_json(text)
        except ValidationError as exc:
            raise ServingError(
                f"The manifest of {name} is damaged. Remove {name} and publish it again."
            ) from exc

    def all(self) -> list[PublishedAdapter]:
        """Return every published adapter, by name."""
        names = sorted(path.name.removesuffix(".json") for path in self.path.glob("[!.]*.json"))
        return [manifest for name in names if (manifest := self.read(name)) is not None]

    def names(self) -> list[str]:
        """Return the names of everything in the folder, published or left over from a crash."""
        files = {*self.path.glob("[!.]*.json"), *self.path.glob("[!.]*.gguf")}
        return sorted({path.name.removesuffix(".json").removesuffix(".gguf") for path in files})

    def remove_staged(self, digests: Collection[str]) -> int:
        """Delete copies with these digests that a killed publish left; return how many."""
        found = [path for path in self.path.glob(".staged-*.gguf") if file_digest(path) in digests]
        for path in found:
            path.unlink(missing_ok=True)
        return len(found)

    @contextmanager
    def stage(self, source: Path) -> Iterator[tuple[Path, str]]:
        """Copy `source` into the folder under a hidden name; yield the copy and its digest, then drop it.

        What is tried out and what is published are the same bytes, whatever happens to `source` meanwhile.
        """
        self._prepare()
        digest = hashlib.sha256()
        handle, name = tempfile.mkstemp(prefix=".staged-", suffix=".gguf", dir=self.path)
        copy = Path(name)
        try:
            with os.fdopen(handle, "wb") as target, source.open("rb") as original:
                while chunk := original.read(1 << 20):
                    digest.update(chunk)
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
            yield copy, f"sha256:{digest.hexdigest()}"
        finally:
            copy.unlink(missing_ok=True)

    def add(self, staged: Path, manifest: PublishedAdapter) -> None:
        """Publish the staged copy. Raises AdapterRefused when the name means another adapter by now."""
        with self.locked():
            refuse_other_digest(self.read(manifest.name), manifest.digest)
            os.replace(staged, self.file(manifest.name))
            write_atomically(self._manifest(manifest.name), json.dumps(manifest.to_json_dict()))

    def remove(self, name: str) -> bool:
        """Delete manifest and file; True when `name` was published."""
        with self.locked():
            there = self._manifest(name).exists()
            # The manifest goes first: without it the file is nobody's.
            self._manifest(name).unlink(missing_ok=True)
            self.file(name).unlink(missing_ok=True)
            return there

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's writer lock (flock: the kernel releases it when the process dies)."""
        self._prepare()
        with (self.path / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _manifest(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _prepare(self) -> None:
        # A voice is personal data: only the owner of the process reads it.
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self.path.glob(".staged-*"):
            try:
                if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                    left.unlink()
            except FileNotFoundError:
                continue  # another process was quicker


def refuse_other_digest(present: PublishedAdapter | None, digest: str) -> None:
    """Raise AdapterRefused when the name is taken by another adapter: names are never re-pointed."""
    if present is not None and present.digest != digest:
        raise AdapterRefused(
            f"{present.name} is already published with another adapter ({present.digest[:19]}…, not "
            f"{digest[:19]}…). A name is never re-pointed: publish under the next version."
        )


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the whole new one, also after a power cut."""
    handle, name = tempfile.mkstemp(prefix=".staged-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
