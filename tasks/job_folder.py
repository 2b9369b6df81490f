"""The job folder: everything one job leaves in storage, under `<storage>/jobs/<job id>/`.

Both sides of a job meet here: CPU stages write the data set, the GPU side writes the adapter, its numbers
and its progress. Storage is any fsspec URL; a local folder is used in place, anything else is worked on in
a scratch copy. Local folders are 0700: they hold mail.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from training.errors import StorageError

SPEC = "job.json"
DATASET = "dataset.jsonl"
HELD_OUT = "held_out.jsonl"
OLD_HELD_OUT = "held_out_old.jsonl"
LEARNT = "learnt.jsonl"
OLD_SET = "old_set.json"
PANEL = "panel.jsonl"
REPORT = "report.json"
PROGRESS = "progress.json"
METRICS = "metrics.json"
RECIPE = "run.json"
ERROR = "error.json"
CANCEL = "cancel"
SAMPLES = "samples.json"
OUTPUTS = "outputs.json"
CHECKPOINT = "checkpoint"
ADAPTER = "adapter"
ADAPTER_GGUF = "adapter.gguf"


class JobFolder:
    """One job's files. Every method raises StorageError with the file's name when storage fails."""

    def __init__(self, storage_url: str, job_id: str) -> None:
        if not job_id or not all((c.isascii() and c.isalnum()) or c in "-_" for c in job_id):
            raise StorageError(f"{job_id!r:.40} is not a job id; no folder is made for it.")
        self.storage_url = storage_url
        self.job_id = job_id
        with self._storage("the storage"):
            # A remembered listing would hide what the other side of the job has written since, the cancel
            # marker above all.
            self.fs, root = fsspec.core.url_to_fs(storage_url, use_listings_cache=False)
        self.path = str(PurePosixPath(root) / "jobs" / job_id)
        self.is_local = isinstance(self.fs, LocalFileSystem)

    @property
    def url(self) -> str:
        """The folder's address as other processes find it."""
        between = "" if self.storage_url.endswith("/") else "/"
        return f"{self.storage_url}{between}jobs/{self.job_id}"

    def create(self) -> None:
        with self._storage("the job folder"):
            self.fs.makedirs(self.path, exist_ok=True)
            if self.is_local:
                os.chmod(self.path, 0o700)

    def exists(self, name: str) -> bool:
        with self._storage(name):
            return bool(self.fs.exists(f"{self.path}/{name}"))

    def read_text(self, name: str) -> str:
        with self._storage(name):
            return str(self.fs.cat_file(f"{self.path}/{name}").decode("utf-8"))

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole: on a local disk it is renamed into place, object stores do so themselves."""
        self.create()
        with self._storage(name):
            target = f"{self.path}/{name}"
            if self.is_local:
                aside = Path(f"{self.path}/.{name}.{os.getpid()}")
                try:
                    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as handle:
                        handle.write(text.encode("utf-8"))
                        handle.flush()
                        os.fsync(handle.fileno())
                    aside.replace(target)
                finally:
                    aside.unlink(missing_ok=True)  # a full disk must not leave half a data set behind
            else:
                self.fs.pipe_file(target, text.encode("utf-8"))

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads(self.read_text(name))
        except ValueError as exc:
            raise StorageError(f"{name} of job {self.job_id} is not JSON; retry the job.") from exc
        if not isinstance(data, dict):
            raise StorageError(f"{name} of job {self.job_id} is not an object; retry the job.")
        return data

    def write_json(self, name: str, data: dict[str, Any]) -> None:
        self.write_text(name, json.dumps(data, ensure_ascii=False, indent=1) + "\n")

    def remove(self, *names: str) -> None:
        """Delete files or folders; what is not there is fine."""
        for name in names:
            with self._storage(name):
                target = f"{self.path}/{name}"
                if self.fs.exists(target):
                    self.fs.rm(target, recursive=True)

    def files(self) -> int:
        """Return how many files the folder holds; 0 when it is not there."""
        with self._storage("the job folder"):
            return len(self.fs.find(self.path)) if self.fs.exists(self.path) else 0

    def remove_all(self) -> None:
        with self._storage("the job folder"):
            if self.fs.exists(self.path):
                self.fs.rm(self.path, recursive=True)

    @contextmanager
    def workspace(self, *, without: Collection[str] = ()) -> Iterator[Path]:
        """Yield a local folder that holds the job's files: the folder itself, or a scratch copy.

        A scratch copy is written back with `push` and deleted at the end; `without` are files that it need
        not hold.
        """
        self.create()
        if self.is_local:
            yield Path(self.path)
            return
        for stale in Path(tempfile.gettempdir()).glob(f"ownvoice-{self.job_id}-*"):
            # Left by a process that was killed: it holds mail.
            shutil.rmtree(stale, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"ownvoice-{self.job_id}-"))
        try:
            with self._storage("the job folder"):
                for found in self.fs.find(self.path) if self.fs.exists(self.path) else ():
                    # Some file systems give paths from their root, some without its slash.
                    name = PurePosixPath(f"/{found.lstrip('/')}").relative_to(f"/{self.path.lstrip('/')}")
                    if name.parts[0] not in without:
                        (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                        self.fs.get_file(found, str(scratch / name))
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def push(self, workspace: Path, *names: str) -> None:
        """Copy files or folders of a scratch workspace back into storage; nothing to do for a local one."""
        if self.is_local:
            return
        for name in names:
            with self._storage(name):
                source, target = workspace / name, f"{self.path}/{name}"
                if source.is_dir():
                    for file in sorted(source.rglob("*")):
                        if file.is_file():
                            self.fs.put_file(str(file), f"{target}/{file.relative_to(source).as_posix()}")
                elif source.is_file():
                    self.fs.put_file(str(source), target)

    def size_of(self, name: str) -> int:
        """Return a file's size in bytes."""
        with self._storage(name):
            return int(self.fs.size(f"{self.path}/{name}"))

    @contextmanager
    def _storage(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except FileNotFoundError as exc:
            raise StorageError(f"{name} of job {self.job_id} is not in storage; retry the job.") from exc
        except (OSError, ValueError, ImportError, UnicodeDecodeError) as exc:
            raise StorageError(
                f"Storage failed at {name} of job {self.job_id} ({type(exc).__name__}). "
                "Check OWNVOICE_STORAGE_URL and free disk space, then retry the job."
            ) from exc
